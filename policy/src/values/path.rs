//! The normal form of a target's path.
//!
//! The same string is matched, limited, authorised and forwarded, so that no two parts of the system read a path
//! differently. RFC 3986, 6.2.2:
//!
//! - percent-encoding of *unreserved* characters is decoded; the other escapes get capital hexadecimal digits,
//! - dot segments are resolved in any spelling, and `//` is one slash,
//! - reserved characters are not changed, because `%2B` and `+` may name two objects,
//! - nothing is decoded twice: `%2525` stays `%2525`,
//! - `;` is an ordinary character.

use std::borrow::Cow;

/// What to do with an encoded slash or backslash in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncodedSlash {
    /// `%2F` and `%5C` are refused, because upstreams disagree on whether they separate segments.
    #[default]
    Refuse,
    /// They are not changed and never separate segments.
    Keep,
}

/// Why a path has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// Not the origin form.
    #[error("a path begins with `/`")]
    NotAbsolute,
    /// Raw backslash, fragment, space, control or non-ASCII byte.
    #[error("a path has no byte 0x{0:02X}: write it as %{0:02X}")]
    RawByte(u8),
    /// `%` without two hexadecimal digits.
    #[error("`%` is followed by two hexadecimal digits")]
    BadEscape,
    /// `%00`.
    #[error("a path has no NUL byte")]
    Nul,
    /// `%2F` or `%5C` where they are refused.
    #[error("a path has no encoded slash or backslash")]
    EncodedSlash,
    /// `..` at the root.
    #[error("the path climbs above the root")]
    AboveRoot,
}

/// The normal form of `path`, the part of the target before its `?`.
pub fn normalise(path: &str, encoded_slash: EncodedSlash) -> Result<String, PathFault> {
    if !path.starts_with('/') {
        return Err(PathFault::NotAbsolute);
    }
    let mut normal = String::with_capacity(path.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let start = normal.len();
        normal.push('/');
        decode_segment(segment, encoded_slash, &mut normal)?;
        let last = segments.peek().is_none();
        match &normal[start + 1..] {
            "" | "." if !last => normal.truncate(start),
            "." => normal.truncate(start + 1),
            ".." => {
                normal.truncate(start);
                let parent = normal.rfind('/').ok_or(PathFault::AboveRoot)?;
                normal.truncate(parent);
                if last {
                    normal.push('/');
                }
            }
            _ => {}
        }
    }
    Ok(normal)
}

fn decode_segment(segment: &str, encoded_slash: EncodedSlash, normal: &mut String) -> Result<(), PathFault> {
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = bytes.next().and_then(hex).ok_or(PathFault::BadEscape)?;
                let low = bytes.next().and_then(hex).ok_or(PathFault::BadEscape)?;
                match high << 4 | low {
                    0 => return Err(PathFault::Nul),
                    b'/' | b'\\' if encoded_slash == EncodedSlash::Refuse => {
                        return Err(PathFault::EncodedSlash);
                    }
                    plain if is_unreserved(plain) => normal.push(char::from(plain)),
                    other => push_escaped(other, normal),
                }
            }
            b'\\' | b'#' | b'?' | 0..=b' ' | 0x7f.. => return Err(PathFault::RawByte(byte)),
            // RFC 3986 does not allow these bytes unescaped, but browsers send them. In one spelling they are safe.
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' => push_escaped(byte, normal),
            plain => normal.push(char::from(plain)),
        }
    }
    Ok(())
}

fn push_escaped(byte: u8, normal: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    normal.push('%');
    normal.push(char::from(DIGITS[usize::from(byte >> 4)]));
    normal.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// RFC 3986, 2.3: these characters have the same meaning whether they are encoded or not.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// A segment as services read it: percent-decoded, once. When the result is not UTF-8 the segment is not changed.
pub fn decoded(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, more @ ..] = rest {
        match (first, more) {
            (b'%', [high, low, after @ ..]) if let Some(byte) = escaped(*high, *low) => {
                bytes.push(byte);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(segment), Cow::Owned)
}

/// The byte that two hexadecimal digits encode.
fn escaped(high: u8, low: u8) -> Option<u8> {
    Some(hex(high)? << 4 | hex(low)?)
}

/// The target with a valid query (RFC 3986, 3.4). Browsers send more characters than a query may hold, and only the
/// service knows what they mean. So they are percent-encoded, which has the same meaning. Brackets are not changed,
/// because all common servers accept them.
pub fn encode_query(target: &str) -> Cow<'_, str> {
    let Some((path, query)) = target.split_once('?') else { return Cow::Borrowed(target) };
    let bytes = query.as_bytes();
    let is_escape = |at: usize| matches!(bytes[at + 1..], [high, low, ..] if escaped(high, low).is_some());
    let must_be_encoded = |at: usize| match bytes[at] {
        b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => true,
        b'%' => !is_escape(at),
        _ => false,
    };
    if !(0..bytes.len()).any(must_be_encoded) {
        return Cow::Borrowed(target);
    }
    let mut encoded = String::with_capacity(target.len() + 16);
    encoded.push_str(path);
    encoded.push('?');
    for (at, byte) in query.bytes().enumerate() {
        if must_be_encoded(at) { push_escaped(byte, &mut encoded) } else { encoded.push(char::from(byte)) }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(path: &str) -> Result<String, PathFault> {
        normalise(path, EncodedSlash::Refuse)
    }

    #[test]
    fn spellings_of_one_path_have_one_form() {
        for spelling in ["/a/b", "//a///b", "/a/./b", "/a/x/../b", "/%61/b", "/a/%2e/b", "/a/x/%2E%2e/b"] {
            assert_eq!(normal(spelling).as_deref(), Ok("/a/b"), "{spelling}");
        }
    }

    #[test]
    fn trailing_slash_and_semicolon_are_kept() {
        assert_eq!(normal("/").as_deref(), Ok("/"));
        assert_eq!(normal("/a/").as_deref(), Ok("/a/"));
        assert_eq!(normal("/a/.").as_deref(), Ok("/a/"));
        assert_eq!(normal("/a/b/..").as_deref(), Ok("/a/"));
        assert_eq!(normal("/a;v=1/..;/b").as_deref(), Ok("/a;v=1/..;/b"));
    }

    #[test]
    fn reserved_characters_are_not_changed() {
        let path = "/a+b:c;d@e,f=g&h!i$j'k(l)m*n";
        assert_eq!(normal(path).as_deref(), Ok(path));
        let encoded = "/a%2Bb%3Ac%3Bd%40e%2Cf%3Dg%26h%21i%24j%27k%28l%29m%2An";
        assert_eq!(normal(encoded).as_deref(), Ok(encoded));
        assert_eq!(normal("/a%3bb%20c").as_deref(), Ok("/a%3Bb%20c"));
        assert_eq!(decoded("a%2Bb%20c%C3%A9"), "a+b c\u{e9}");
        assert_eq!(decoded("%FF%"), "%FF%", "not UTF-8");
        assert_eq!(decoded("%252B"), "%2B", "once");
    }

    #[test]
    fn a_query_passes_and_holds_only_allowed_characters() {
        assert_eq!(encode_query("/a?b=%2f&c[]=+;:@/?~"), "/a?b=%2f&c[]=+;:@/?~");
        assert_eq!(encode_query("/a?`\\\"<>^{|}"), "/a?%60%5C%22%3C%3E%5E%7B%7C%7D");
        assert_eq!(encode_query("/a?100%&%zz&%4"), "/a?100%25&%25zz&%254");
        assert_eq!(encode_query("/a%"), "/a%", "a path is not a query");
    }

    #[test]
    fn nothing_is_decoded_twice() {
        assert_eq!(normal("/%2525/%252e%252e/b").as_deref(), Ok("/%2525/%252e%252e/b"));
        assert_eq!(normal("/caf%c3%a9").as_deref(), Ok("/caf%C3%A9"));
    }

    #[test]
    fn a_path_without_a_normal_form_is_refused() {
        assert_eq!(normal("a"), Err(PathFault::NotAbsolute));
        assert_eq!(normal("/.."), Err(PathFault::AboveRoot));
        assert_eq!(normal("/a/../../b"), Err(PathFault::AboveRoot));
        assert_eq!(normal("/a%2fb"), Err(PathFault::EncodedSlash));
        assert_eq!(normal("/a%5Cb"), Err(PathFault::EncodedSlash));
        assert_eq!(normal("/a%00"), Err(PathFault::Nul));
        assert_eq!(normal("/a%0"), Err(PathFault::BadEscape));
        assert_eq!(normal("/a%+1"), Err(PathFault::BadEscape));
        assert_eq!(normal("/a\\b"), Err(PathFault::RawByte(b'\\')));
        assert_eq!(normal("/a#b"), Err(PathFault::RawByte(b'#')));
        assert_eq!(normalise("/a%2fb", EncodedSlash::Keep).as_deref(), Ok("/a%2Fb"));
    }

    proptest! {
        #[test]
        fn a_normal_path_is_its_own_normal_form(path in "/[a-c./%25;2eE]{0,24}") {
            if let Ok(once) = normal(&path) {
                prop_assert_eq!(normal(&once), Ok(once.clone()));
                prop_assert!(!once.contains("//") && !once.split('/').any(|s| s == "." || s == ".."));
            }
        }
    }
}
