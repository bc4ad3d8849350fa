//! Reads a request's header in HTTP/2 strictly (RFC 9113, 8.2 and 8.3). The same rules hold as over HTTP/1.1, and the
//! result has the same form: `:authority` becomes Host, and the parts of a cookie become one field.

use http::Version;
use http::header::{HeaderName, HeaderValue};
use pingora_http::RequestHeader;
use policy::values::path::encode_query;
use policy::values::refusal::Code;

use crate::downstream::head::{HeadFault, check_target, is_host, malformed, too_many_fields};

/// What a field costs besides its bytes (RFC 9113, 6.5.2).
const FIELD: usize = 32;

/// Hop-by-hop fields; HTTP/2 has other means for them (RFC 9113, 8.2.2).
const OF_A_CONNECTION: [&str; 5] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// How large a header may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadBounds {
    /// The most fields; a cookie in several parts counts as one.
    pub(crate) fields: usize,
    /// The most bytes, with [`FIELD`] for each field.
    pub(crate) bytes: usize,
}

/// The fields of a block, as they arrived. Fields beyond the bounds are counted and not stored.
#[derive(Debug)]
pub(super) struct FieldList {
    bounds: HeadBounds,
    text: Vec<u8>,
    /// Where each name and each value ends in `text`.
    ends: Vec<(usize, usize)>,
    fields: usize,
    bytes: usize,
    has_cookie: bool,
}

impl FieldList {
    pub(super) fn new(bounds: HeadBounds) -> Self {
        Self { bounds, text: Vec::new(), ends: Vec::new(), fields: 0, bytes: 0, has_cookie: false }
    }

    /// Adds the next field.
    pub(super) fn push(&mut self, name: &[u8], value: &[u8]) {
        let is_crumb = name == b"cookie" && self.has_cookie;
        self.has_cookie |= name == b"cookie";
        let cost = match (name.first(), is_crumb) {
            (Some(b':'), _) => value.len(),
            (_, true) => value.len() + "; ".len(),
            (_, false) => name.len() + value.len() + FIELD,
        };
        self.bytes = self.bytes.saturating_add(cost);
        self.fields += usize::from(name.first() != Some(&b':') && !is_crumb);
        if self.is_too_large() {
            return;
        }
        self.text.extend_from_slice(name);
        let name_end = self.text.len();
        self.text.extend_from_slice(value);
        self.ends.push((name_end, self.text.len()));
    }

    fn is_too_large(&self) -> bool {
        self.fields > self.bounds.fields || self.bytes > self.bounds.bytes
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut begin = 0;
        self.ends.iter().map(move |(name_end, end)| {
            let field = (&self.text[begin..*name_end], &self.text[*name_end..*end]);
            begin = *end;
            field
        })
    }
}

/// The header of a request, with or without a body. A refused header has the [`HeadFault`] among its extensions, and
/// the readable part of its method and target, for the log.
pub(super) fn request(fields: &FieldList, ends_stream: bool) -> Box<RequestHeader> {
    let mut header = read(fields, ends_stream).unwrap_or_else(|fault| {
        let mut header = what_is_readable(fields);
        header.extensions_mut().insert(fault);
        header
    });
    header.set_version(Version::HTTP_2);
    Box::new(header)
}

fn read(fields: &FieldList, ends_stream: bool) -> Result<RequestHeader, HeadFault> {
    if fields.fields > fields.bounds.fields {
        return Err(too_many_fields());
    }
    if fields.bytes > fields.bounds.bytes {
        return Err(HeadFault { code: Code::HeaderTooLarge, detail: "the request's header is too large" });
    }
    let pseudo = Pseudo::read(fields)?;
    let method = pseudo.method.ok_or(malformed("`:method` is missing"))?;
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(HeadFault { code: Code::MethodNotAllowed, detail: "CONNECT and TRACE are never taken" });
    }
    if !pseudo.scheme.is_some_and(|scheme| scheme == "http" || scheme == "https") {
        return Err(malformed("`:scheme` is http or https"));
    }
    let target = pseudo.path.ok_or(malformed("`:path` is missing"))?;
    check_target(method, target)?;
    if !target.starts_with('/') && target != "*" {
        return Err(malformed("`:path` is a path"));
    }
    let target = encode_query(target);
    let mut header = RequestHeader::build_no_case(method, target.as_bytes(), Some(fields.fields))
        .map_err(|_| malformed("the method or the target is malformed"))?;
    let mut cookie: Option<Vec<u8>> = None;
    for (name, value) in fields.iter().filter(|(name, _)| name.first() != Some(&b':')) {
        check_field(name, value)?;
        if name == b"cookie" {
            let joined = cookie.get_or_insert_default();
            if !joined.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(value);
            continue;
        }
        append(&mut header, name, value)?;
    }
    if let Some(cookie) = cookie {
        append(&mut header, b"cookie", &cookie)?;
    }
    name_host(&mut header, pseudo.authority)?;
    check_length(&header, ends_stream)?;
    Ok(header)
}

/// The fields that begin with a colon; each at most once, and before all others (RFC 9113, 8.3).
#[derive(Default)]
struct Pseudo<'f> {
    method: Option<&'f str>,
    scheme: Option<&'f str>,
    authority: Option<&'f str>,
    path: Option<&'f str>,
}

impl<'f> Pseudo<'f> {
    fn read(fields: &'f FieldList) -> Result<Self, HeadFault> {
        let mut pseudo = Self::default();
        let mut begun = false;
        for (name, value) in fields.iter() {
            if name.first() != Some(&b':') {
                begun = true;
                continue;
            }
            if begun {
                return Err(malformed("a pseudo-header field stands behind a header field"));
            }
            let place = match name {
                b":method" => &mut pseudo.method,
                b":scheme" => &mut pseudo.scheme,
                b":authority" => &mut pseudo.authority,
                b":path" => &mut pseudo.path,
                _ => return Err(malformed("a pseudo-header field is unknown")),
            };
            let value = std::str::from_utf8(value).map_err(|_| malformed("the target is not ASCII"))?;
            if place.replace(value).is_some() {
                return Err(malformed("a pseudo-header field stands twice"));
            }
        }
        Ok(pseudo)
    }
}

/// A name in lower case and a value without blanks around it or control bytes in it (RFC 9113, 8.2.1).
fn check_field(name: &[u8], value: &[u8]) -> Result<(), HeadFault> {
    check_name_and_value(name, value)?;
    let is = |other: &str| name == other.as_bytes();
    if OF_A_CONNECTION.into_iter().any(is) || (is("te") && !value.eq_ignore_ascii_case(b"trailers")) {
        return Err(malformed("a header field concerns one connection, which HTTP/2 has no such fields for"));
    }
    if is("transfer_encoding") || is("content_length") {
        return Err(malformed("a header field that frames the message is misspelt"));
    }
    Ok(())
}

fn check_name_and_value(name: &[u8], value: &[u8]) -> Result<(), HeadFault> {
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte) && !byte.is_ascii_uppercase()) {
        return Err(malformed("a header field's name is malformed"));
    }
    let fine = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    if !value.iter().all(fine) || value.trim_ascii().len() != value.len() {
        return Err(malformed("a header field's value is malformed"));
    }
    Ok(())
}

/// RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn append(header: &mut RequestHeader, name: &[u8], value: &[u8]) -> Result<(), HeadFault> {
    let name = HeaderName::from_bytes(name).map_err(|_| malformed("a header field's name is malformed"))?;
    let value =
        HeaderValue::from_bytes(value).map_err(|_| malformed("a header field's value is malformed"))?;
    header.append_header(name, value).map(drop).map_err(|_| too_many_fields())
}

/// The authority of the request: in one place, or the same in both.
fn name_host(header: &mut RequestHeader, authority: Option<&str>) -> Result<(), HeadFault> {
    let mut hosts = header.headers.get_all("host").iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(malformed("the request has more than one Host"));
    }
    let host = host.map(|host| host.to_str().unwrap_or_default());
    let both_differ = authority.zip(host).is_some_and(|(one, other)| !one.eq_ignore_ascii_case(other));
    if both_differ {
        return Err(malformed("`:authority` and Host name different places"));
    }
    let Some(authority) = authority.or(host).filter(|authority| is_host(authority)) else {
        return Err(malformed("`:authority` is a name or an address, with a port or without"));
    };
    let authority = authority.to_owned();
    header.insert_header("host", authority).map_err(|_| malformed("`:authority` is malformed"))
}

fn check_length(header: &RequestHeader, ends_stream: bool) -> Result<(), HeadFault> {
    let mut lengths = header.headers.get_all("content-length").iter();
    let Some(length) = lengths.next() else { return Ok(()) };
    if lengths.next().is_some() {
        return Err(malformed("the request has more than one Content-Length"));
    }
    let digits = length.as_bytes().iter().all(u8::is_ascii_digit);
    let length: Option<u64> = length.to_str().ok().filter(|_| digits).and_then(|text| text.parse().ok());
    match length {
        None => Err(malformed("Content-Length is one number")),
        Some(1..) if ends_stream => Err(malformed("the body is shorter than Content-Length says")),
        Some(_) => Ok(()),
    }
}

/// What can be read of a header that is refused.
fn what_is_readable(fields: &FieldList) -> RequestHeader {
    let text = |wanted: &[u8]| {
        let (_, value) = fields.iter().find(|(name, _)| *name == wanted)?;
        std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))
    };
    let (method, target) = (text(b":method").unwrap_or("GET"), text(b":path").unwrap_or("/"));
    let target = encode_query(target);
    RequestHeader::build_no_case(method, target.as_bytes(), None)
        .or_else(|_| RequestHeader::build_no_case("GET", b"/", None))
        .expect("GET of / is a request")
}

/// Checks the trailers of a request, which are not passed on: they have no pseudo-header fields, and they end the body.
pub(super) fn check_trailers(fields: &FieldList, ends_stream: bool) -> Result<(), HeadFault> {
    if !ends_stream {
        return Err(malformed("a second header that does not end the request"));
    }
    if fields.is_too_large() {
        return Err(malformed("the trailers are too large"));
    }
    for (name, value) in fields.iter() {
        check_name_and_value(name, value)?;
        if !value.is_ascii() {
            return Err(malformed("a trailer's value is not ASCII"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", "/")];

    fn list(fields: &[(&str, &str)]) -> FieldList {
        let mut list = FieldList::new(HeadBounds { fields: 100, bytes: 64_000 });
        for (name, value) in fields {
            list.push(name.as_bytes(), value.as_bytes());
        }
        list
    }

    /// GET with `more`, which replaces what has the same name.
    fn with(more: &[(&str, &str)]) -> Result<Box<RequestHeader>, HeadFault> {
        let kept = GET.into_iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
        let mut fields: Vec<_> = kept.chain(more.iter().copied()).collect();
        fields.sort_by_key(|(name, _)| !name.starts_with(':'));
        let header = request(&list(&fields), true);
        header.extensions.get::<HeadFault>().copied().map_or(Ok(header), Err)
    }

    #[test]
    fn a_header_becomes_one_of_http_1() {
        let header =
            with(&[("cookie", "a=1"), ("x-a", "b c"), ("cookie", "b=2"), (":path", "/a?b=\"{")]).unwrap();
        assert_eq!(header.raw_path(), b"/a?b=%22%7B");
        assert_eq!(header.headers["host"], "h");
        assert_eq!(header.headers["cookie"], "a=1; b=2");
        assert_eq!(header.headers["x-a"], "b c");
        assert_eq!(header.version, Version::HTTP_2);
        let header = with(&[("host", "H")]).unwrap();
        assert_eq!(header.headers.get_all("host").iter().count(), 1);
    }

    #[test]
    fn a_cookie_in_crumbs_is_one_field() {
        let crumbs = vec![("cookie", "a=1"); 500];
        assert!(with(&crumbs).is_ok());
        let many: Vec<_> = (0..101).map(|_| ("x", "y")).collect();
        assert_eq!(with(&many).unwrap_err().code, Code::HeaderTooLarge);
        let long = "x".repeat(64_000);
        assert_eq!(with(&[("x", &long)]).unwrap_err().code, Code::HeaderTooLarge);
    }

    #[test]
    fn what_is_beyond_the_bounds_is_not_kept() {
        let mut list = list(&GET);
        (0..100_000).for_each(|_| list.push(b"x", &[b'y'; 4_000]));
        assert!(list.text.len() <= 64_000 && list.ends.len() <= 104);
    }

    #[test]
    fn what_is_malformed_is_refused_by_name() {
        for more in [
            &[("X", "y")][..],
            &[("x y", "z")],
            &[("", "z")],
            &[("x\u{e9}", "z")],
            &[("x", " y")],
            &[("x", "y\u{0}")],
            &[("x", "y\nz")],
            &[("x", "y\rz")],
            &[("connection", "close")],
            &[("transfer-encoding", "chunked")],
            &[("te", "gzip")],
            &[("content_length", "1")],
            &[("content-length", "+1")],
            &[("content-length", "1")],
            &[("content-length", "0"), ("content-length", "0")],
            &[("host", "other")],
            &[("host", "h"), ("host", "h")],
            &[(":authority", "u@h")],
            &[(":authority", "")],
            &[(":method", "")],
            &[(":method", "G T")],
            &[(":path", "")],
            &[(":path", "a")],
            &[(":path", "*")],
            &[(":path", "/a#b")],
            &[(":path", "/a\\b")],
            &[(":path", "http://h/")],
            &[(":path", "/\u{e9}")],
            &[(":scheme", "ftp")],
            &[(":status", "200")],
            &[(":protocol", "websocket")],
            &[(":path", "/"), (":path", "/")],
        ] {
            assert_eq!(
                with(more).map_err(|fault| fault.code).unwrap_err(),
                Code::MalformedRequest,
                "{more:?}"
            );
        }
        assert_eq!(with(&[(":method", "TRACE")]).unwrap_err().code, Code::MethodNotAllowed);
        let late = request(&list(&[GET[0], GET[1], GET[2], ("x", "y"), GET[3]]), true);
        assert!(late.extensions.get::<HeadFault>().is_some());
    }
}
