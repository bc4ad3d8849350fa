//! Reads the header of an answer in HTTP/1, and how its body ends (RFC 9112, 6.3). Its lines may end in a bare line
//! feed (2.2); the fields that frame the body are read strictly.

use std::mem::MaybeUninit;

use http::{HeaderMap, Version};
use pingora_core::Result;
use pingora_http::ResponseHeader;

use crate::upstream::fault::UpstreamFault;

/// The most fields of a header, and the most bytes.
const MAX_FIELDS: usize = 256;
const MAX_LENGTH: usize = 256 * 1024;

/// A header that was read.
#[derive(Debug)]
pub(super) struct AnswerHead {
    pub(super) header: ResponseHeader,
    /// Its length in bytes, with the empty line.
    pub(super) length: usize,
    pub(super) body: Body,
    /// Whether the connection can be used again after it.
    pub(super) keeps: bool,
}

/// How the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// This header is informational; another one follows.
    Later,
    None,
    Length(u64),
    Chunked,
    UntilClose,
    /// Another protocol follows.
    Upgraded,
}

/// The rule of the grammar that a header breaks.
fn broken_rule(error: httparse::Error) -> UpstreamFault {
    match error {
        httparse::Error::HeaderName => UpstreamFault::FieldName,
        httparse::Error::HeaderValue => UpstreamFault::FieldValue,
        httparse::Error::NewLine => UpstreamFault::LineEnd,
        httparse::Error::TooManyHeaders => UpstreamFault::TooManyFields,
        httparse::Error::Status | httparse::Error::Token | httparse::Error::Version => {
            UpstreamFault::StatusLine
        }
    }
}

/// Reads the header at the start of `bytes`; `None` while it is not complete. An answer to HEAD has no body.
pub(super) fn parse(bytes: &[u8], head_only: bool) -> Result<Option<AnswerHead>> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut answer, bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_LENGTH => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(UpstreamFault::HeaderTooLarge.error()),
        Err(error) => return Err(broken_rule(error).error()),
    };
    let status = answer.code.unwrap_or_default();
    let mut header = ResponseHeader::build(status, Some(answer.headers.len()))
        .map_err(|_| UpstreamFault::StatusLine.error())?;
    let http_11 = answer.version == Some(1);
    header.set_version(if http_11 { Version::HTTP_11 } else { Version::HTTP_10 });
    // An unusual reason phrase is passed on; one that pingora does not accept is dropped, which loses nothing.
    let _ = header.set_reason_phrase(answer.reason);
    for field in answer.headers.iter() {
        if header.append_header(field.name.to_owned(), field.value).is_err() {
            return Err(UpstreamFault::FieldValue.error());
        }
    }
    let body = body(&mut header, head_only)?;
    let keeps = is_kept(&header);
    Ok(Some(AnswerHead { header, length, body, keeps }))
}

/// Whether the connection stays open: in HTTP/1.1 unless the header says `close`, in HTTP/1.0 only if it says
/// `keep-alive`.
fn is_kept(header: &ResponseHeader) -> bool {
    let says = |wanted: &str| {
        let mut values = header.headers.get_all("connection").iter();
        values.any(|value| {
            let mut words = value.as_bytes().split(|byte| *byte == b',');
            words.any(|word| word.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
        })
    };
    !says("close") && (header.version == Version::HTTP_11 || says("keep-alive"))
}

fn body(header: &mut ResponseHeader, head_only: bool) -> Result<Body> {
    let status = header.status.as_u16();
    let length = content_length(header)?;
    let chunked = is_chunked(header)?;
    if chunked && length.is_some() {
        return Err(UpstreamFault::LengthAndChunks.error());
    }
    Ok(match (status, length) {
        (101, _) => Body::Upgraded,
        (100..=199, _) => Body::Later,
        (204 | 304, _) => Body::None,
        _ if head_only => Body::None,
        _ if chunked => Body::Chunked,
        (_, Some(0)) => Body::None,
        (_, Some(length)) => Body::Length(length),
        (_, None) => Body::UntilClose,
    })
}

/// Whether a header or trailers of HTTP/2 exceed the bounds of HTTP/1.
pub(super) fn is_too_large(fields: &HeaderMap) -> bool {
    let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    fields.len() > MAX_FIELDS || bytes > MAX_LENGTH
}

/// The length, if there is one. A repeated equal length is reduced to one (RFC 9110, 8.6).
pub(super) fn content_length(header: &mut ResponseHeader) -> Result<Option<u64>> {
    let mut length = None;
    let mut times = 0;
    for value in header.headers.get_all("content-length") {
        for one in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let digits = !one.is_empty() && one.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(one).ok().filter(|_| digits).and_then(|one| one.parse().ok());
            let Some(number): Option<u64> = number else {
                return Err(UpstreamFault::LengthMalformed.error());
            };
            if length.replace(number).is_some_and(|before| before != number) {
                return Err(UpstreamFault::LengthsDiffer.error());
            }
            times += 1;
        }
    }
    if times > 1
        && let Some(length) = length
    {
        header.insert_header("content-length", length.to_string())?;
    }
    Ok(length)
}

/// Whether the body is in chunks. Only one plain `chunked` is accepted.
fn is_chunked(header: &ResponseHeader) -> Result<bool> {
    let mut codings = header.headers.get_all("transfer-encoding").iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None)
            if coding.as_bytes().eq_ignore_ascii_case(b"chunked") && header.version == Version::HTTP_11 =>
        {
            Ok(true)
        }
        _ => Err(UpstreamFault::TransferEncoding.error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Body, bool)> {
        parse(text.as_bytes(), false).map(|head| {
            let head = head.expect("a complete header");
            (head.body, head.keeps)
        })
    }

    #[test]
    fn the_end_of_a_body_is_found_as_the_standard_says() {
        for (text, body, keeps) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Body::Length(5), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\n", Body::Length(5), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Body::None, true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Body::Chunked, true),
            ("HTTP/1.1 200\r\nConnection: x, Close\r\n\r\n", Body::UntilClose, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Body::Length(5), false),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n", Body::Length(5), true),
            ("HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n", Body::None, true),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Body::None, true),
            ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", Body::Later, true),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", Body::Upgraded, true),
            ("HTTP/1.1 200 OK\nContent-Length: 5\nConnection: close\n\n", Body::Length(5), false),
            ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\r\n\n", Body::Chunked, true),
        ] {
            assert_eq!(read(text).unwrap(), (body, keeps), "{text}");
        }
        let head = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true).unwrap().unwrap();
        assert_eq!((head.body, head.length), (Body::None, 38), "an answer to HEAD");
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Le", false).unwrap().is_none());
    }

    #[test]
    fn the_same_length_said_twice_is_passed_on_once() {
        let head = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", false);
        let header = head.unwrap().unwrap().header;
        assert_eq!(header.headers.get_all("content-length").iter().count(), 1);
    }

    #[test]
    fn what_could_end_in_two_places_is_no_answer_and_which_rule_it_breaks_is_known() {
        use UpstreamFault as Fault;
        for (text, rule) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::LengthAndChunks,
            ),
            ("HTTP/1.1 200 OK\nContent-Length: 5\nTransfer-Encoding: chunked\n\n", Fault::LengthAndChunks),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Fault::LengthsDiffer),
            ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", Fault::LengthMalformed),
            ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", Fault::LengthMalformed),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Fault::TransferEncoding),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                Fault::TransferEncoding,
            ),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Fault::TransferEncoding),
            ("HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", Fault::FieldName),
            ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", Fault::FieldName),
            ("HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", Fault::FieldValue),
            ("HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", Fault::FieldValue),
            ("HTTP/1.1 200 OK\r\n\rA: b\r\n\r\n", Fault::LineEnd),
            ("HTTP/2 200 OK\r\n\r\n", Fault::StatusLine),
            ("HTTP/1.1 two OK\r\n\r\n", Fault::StatusLine),
            ("HTTP/1.1 99 Low\r\n\r\n", Fault::StatusLine),
            ("SSH-2.0-OpenSSH_9.2\r\n", Fault::StatusLine),
        ] {
            let found = read(text).map_err(|error| Fault::of(&error));
            assert_eq!(found, Err(rule), "{text:?}");
        }
        let large = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(MAX_LENGTH));
        let found = parse(large.as_bytes(), false).map_err(|error| Fault::of(&error));
        assert!(matches!(found, Err(Fault::HeaderTooLarge)));
    }
}
