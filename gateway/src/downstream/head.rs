//! Reads a request's header strictly (RFC 9110, RFC 9112; stricter where they leave a choice).
//!
//! These are refused, never repaired: bare CR or LF, obs-fold, a space before the colon, control bytes, a second or
//! missing or ungrammatical Host, Content-Length with Transfer-Encoding, two lengths even if equal, any
//! Transfer-Encoding but one plain `chunked`, and the spellings `Transfer_Encoding` and `Content_Length`.

use std::borrow::Cow;

use bytes::BytesMut;
use pingora_http::RequestHeader;
use policy::values::path::encode_query;
use policy::values::refusal::Code;

/// The most header fields that the parser can hold; a policy's `max_headers` is never more.
const MAX_FIELDS: usize = policy::rules::requests::MAX_HEADERS as usize;

/// How the message's end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes follow the header; for most requests none.
    Length(u64),
    /// Chunks follow.
    Chunked,
}

/// What the connection must know of a request; the rest is judged later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The length of the header in bytes, with the empty line.
    pub length: usize,
    /// How the body ends.
    pub framing: Framing,
    /// A WebSocket handshake: what follows is not HTTP.
    pub upgrade: bool,
    /// The request line has to be [rewritten](plain_form) before any other code reads it.
    pub rewrite: bool,
}

/// Why a header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadFault {
    /// The code of the refusal.
    pub code: Code,
    /// The sentence that the client receives.
    pub detail: &'static str,
}

pub(crate) const fn malformed(detail: &'static str) -> HeadFault {
    HeadFault { code: Code::MalformedRequest, detail }
}

/// Reads the header at the start of `bytes`; `None` while it is not complete. A fault is found as soon as the bytes
/// that show it have arrived.
pub fn parse(bytes: &[u8], max_fields: usize) -> Result<Option<Head>, HeadFault> {
    line_ends(bytes)?;
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(too_many_fields()),
        Err(error) => return Err(grammar(error)),
    };
    if request.headers.len() > max_fields {
        return Err(too_many_fields());
    }
    let http_11 = request.version == Some(1);
    let method = request.method.unwrap_or_default();
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(HeadFault { code: Code::MethodNotAllowed, detail: "CONNECT and TRACE are never taken" });
    }
    check_target(method, request.path.unwrap_or_default())?;
    check_host(request.headers, http_11)?;
    check_authority(request.path.unwrap_or_default(), request.headers)?;
    let framing = framing(request.headers, http_11)?;
    let upgrade = http_11
        && method == "GET"
        && framing == Framing::Length(0)
        && holds(request.headers, "connection", "upgrade")
        && holds(request.headers, "upgrade", "websocket");
    let target = request.path.unwrap_or_default();
    let rewrite = absolute(target).is_some() || matches!(encode_query(target), Cow::Owned(_));
    Ok(Some(Head { length, framing, upgrade, rewrite }))
}

/// Rewrites a header that was parsed before. A target in absolute form becomes origin form with the same Host (RFC
/// 9112, 3.2.2). Bytes that a query may not hold are encoded.
pub fn plain_form(header: &[u8]) -> BytesMut {
    let text = header.trim_ascii_start();
    let line_end = text.iter().position(|byte| *byte == b'\r').unwrap_or(text.len());
    let line = String::from_utf8_lossy(&text[..line_end]);
    let mut words = line.split(' ');
    let (method, target, version) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let target = encode_query(target);
    let (authority, rest) = absolute(&target).unwrap_or(("", &target));
    let rest = match (rest, method) {
        ("", "OPTIONS") => "*".to_owned(),
        (rest, _) if rest.starts_with('/') || rest == "*" => rest.to_owned(),
        (rest, _) => format!("/{rest}"),
    };
    let mut rewritten = BytesMut::from(format!("{method} {rest} {version}").as_bytes());
    let has_host =
        authority.is_empty() || text.to_ascii_lowercase().windows(7).any(|window| window == b"\r\nhost:");
    if !has_host {
        rewritten.extend_from_slice(format!("\r\nHost: {authority}").as_bytes());
    }
    rewritten.extend_from_slice(&text[line_end..]);
    rewritten
}

/// Whether a request is the handshake of a WebSocket (RFC 6455, 4.1), the one upgrade that passes.
pub fn is_websocket(header: &RequestHeader) -> bool {
    let holds = |name: &str, token: &str| {
        let values =
            header.headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
        values.into_iter().any(|one| one.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    };
    let has_body = header.headers.contains_key("transfer-encoding")
        || header.headers.get("content-length").is_some_and(|length| length != "0");
    header.version == http::Version::HTTP_11
        && header.method == http::Method::GET
        && !has_body
        && holds("connection", "upgrade")
        && holds("upgrade", "websocket")
}

pub(crate) const fn too_many_fields() -> HeadFault {
    HeadFault { code: Code::HeaderTooLarge, detail: "the request has too many header fields" }
}

const fn grammar(error: httparse::Error) -> HeadFault {
    malformed(match error {
        httparse::Error::HeaderName => "a header field's name is malformed",
        httparse::Error::HeaderValue => "a header field's value is malformed",
        httparse::Error::NewLine => "a line does not end with CR LF",
        httparse::Error::Version => "the version is not HTTP/1.0 or HTTP/1.1",
        _ => "the request line is malformed",
    })
}

/// A CR is followed by LF and an LF follows a CR; at most one empty line stands before the request line.
fn line_ends(bytes: &[u8]) -> Result<(), HeadFault> {
    for (at, byte) in bytes.iter().enumerate() {
        let fine = match byte {
            b'\n' => at > 0 && bytes[at - 1] == b'\r',
            b'\r' => bytes.get(at + 1).is_none_or(|next| *next == b'\n'),
            _ => true,
        };
        if !fine {
            return Err(malformed("a line ends with CR LF, and neither stands alone"));
        }
        if *byte == b'\n' && bytes[..=at].ends_with(b"\r\n\r\n") && at > 3 {
            break; // what follows is not part of the header
        }
    }
    if bytes.starts_with(b"\r\n\r\n") {
        return Err(malformed("the request line is missing"));
    }
    Ok(())
}

/// Checks a target. Bytes of its query that a target may not hold are encoded later.
pub(crate) fn check_target(method: &str, target: &str) -> Result<(), HeadFault> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let refused = |byte: u8| !(0x21..=0x7e).contains(&byte) || byte == b'#';
    if target.bytes().any(refused) || path.bytes().any(|byte| b"\\<>`\"".contains(&byte)) {
        return Err(malformed("the target holds a byte that must be percent-encoded"));
    }
    if path.contains("%00") {
        return Err(malformed("the path holds a NUL byte"));
    }
    let fine = match absolute(target) {
        Some((authority, _)) => is_host(authority),
        None => target.starts_with('/') || (method == "OPTIONS" && target == "*"),
    };
    if fine { Ok(()) } else { Err(malformed("the target is a path, or an http address with its host")) }
}

/// The authority and the rest of a target in absolute form.
pub fn absolute(target: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

fn check_host(fields: &[httparse::Header<'_>], http_11: bool) -> Result<(), HeadFault> {
    let mut hosts = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    match (hosts.next(), hosts.next()) {
        (None, _) if http_11 => Err(malformed("the request has no Host")),
        (None, _) => Ok(()),
        (Some(_), Some(_)) => Err(malformed("the request has more than one Host")),
        (Some(host), None) => {
            let fine = std::str::from_utf8(host.value).is_ok_and(is_host);
            if fine { Ok(()) } else { Err(malformed("Host is a name or an address, with a port or without")) }
        }
    }
}

/// A target in absolute form and Host must name the same place: if they differ, it is not clear which one the client
/// means.
fn check_authority(target: &str, fields: &[httparse::Header<'_>]) -> Result<(), HeadFault> {
    let Some((authority, _)) = absolute(target) else { return Ok(()) };
    let host = fields.iter().find(|field| field.name.eq_ignore_ascii_case("host"));
    if host.is_none_or(|host| host.value.eq_ignore_ascii_case(authority.as_bytes())) {
        Ok(())
    } else {
        Err(malformed("the target and Host name different places"))
    }
}

/// `uri-host [ ":" port ]`, RFC 9110, 7.2, not empty.
pub fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, after)) => match after.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host_fine = if text.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        let mut after_percent = host.split('%').skip(1);
        let two_digits =
            |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
        !host.is_empty()
            && after_percent.all(two_digits)
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte))
    };
    host_fine
        && port.is_none_or(|port| port.is_empty() || port.parse::<u16>().is_ok() && !port.starts_with('+'))
}

fn framing(fields: &[httparse::Header<'_>], http_11: bool) -> Result<Framing, HeadFault> {
    let mut length = None;
    let mut chunked = false;
    for field in fields {
        let name = field.name;
        if name.eq_ignore_ascii_case("transfer_encoding") || name.eq_ignore_ascii_case("content_length") {
            return Err(malformed("a header field that frames the message is misspelt"));
        }
        if name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(field.value).unwrap_or_default();
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let value = text.parse().ok().filter(|_| digits);
            let value = value.ok_or(malformed("Content-Length is one number"))?;
            if length.replace(value).is_some() {
                return Err(malformed("the request has more than one Content-Length"));
            }
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            if !http_11 || chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(malformed("Transfer-Encoding is `chunked`, once, and only in HTTP/1.1"));
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(malformed("the request has both Content-Length and Transfer-Encoding")),
        (None, true) => Ok(Framing::Chunked),
        (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
    }
}

/// Whether the list field `name` holds `token`.
fn holds(fields: &[httparse::Header<'_>], name: &str, token: &str) -> bool {
    let named = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    let mut tokens = named.flat_map(|field| field.value.split(|byte| *byte == b','));
    tokens.any(|one| one.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing_of(text: &str) -> Result<Framing, Code> {
        let head = parse(text.as_bytes(), 100).map_err(|fault| fault.code)?;
        Ok(head.expect("a complete header").framing)
    }

    #[test]
    fn what_is_valid_but_rare_is_read() {
        assert_eq!(framing_of("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Framing::Length(0)));
        assert_eq!(framing_of("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Framing::Length(0)));
        assert_eq!(framing_of("GET / HTTP/1.0\r\n\r\n"), Ok(Framing::Length(0)));
        assert_eq!(
            framing_of("GET http://[::1]:80/a?b HTTP/1.1\r\nHost:[::1]:80 \r\n\r\n"),
            Ok(Framing::Length(0))
        );
        assert_eq!(
            framing_of("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"),
            Ok(Framing::Length(5))
        );
        assert_eq!(
            framing_of("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"),
            Ok(Framing::Chunked)
        );
        let body = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na\nb";
        assert_eq!(framing_of(body), Ok(Framing::Length(3)), "a line feed in the body is nobody's business");
    }

    #[test]
    fn an_incomplete_header_is_waited_for() {
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r", 100), Ok(None));
        assert_eq!(parse(b"", 100), Ok(None));
    }

    #[test]
    fn what_two_parties_could_read_differently_is_refused() {
        let host = "GET / HTTP/1.1\r\nHost: a\r\n";
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned(),
            "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            format!("{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
            format!("{host}Content-Length: 5\r\nContent-Length: 5\r\n\r\n"),
            format!("{host}Content-Length: 5, 5\r\n\r\n"),
            format!("{host}Content-Length: +5\r\n\r\n"),
            format!("{host}Content-Length: \r\n\r\n"),
            format!("{host}Content-Length: 99999999999999999999\r\n\r\n"),
            format!("{host}Transfer-Encoding: gzip, chunked\r\n\r\n"),
            format!("{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
            format!("{host}Transfer-Encoding: xchunked\r\n\r\n"),
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            format!("{host}Transfer_Encoding: chunked\r\n\r\n"),
            format!("{host}Content_Length: 5\r\n\r\n"),
            format!("{host}X : b\r\n\r\n"),
            format!("{host}X: b\r\n folded\r\n\r\n"),
            format!("{host}X: a\0b\r\n\r\n"),
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        ] {
            assert_eq!(framing_of(&text), Err(Code::MalformedRequest), "{text:?}");
        }
        assert_eq!(framing_of("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(Code::MethodNotAllowed));
        let many = format!("{host}{}\r\n", "X: y\r\n".repeat(100));
        assert_eq!(framing_of(&many), Err(Code::HeaderTooLarge));
    }

    #[test]
    fn only_a_websocket_handshake_is_an_upgrade() {
        let upgrade = |protocol: &str| {
            let text = format!(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
            );
            parse(text.as_bytes(), 100).unwrap().unwrap().upgrade
        };
        assert!(upgrade("websocket"));
        assert!(!upgrade("h2c"));
    }
}
