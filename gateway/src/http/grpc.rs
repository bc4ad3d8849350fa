//! What a call of gRPC came to, for breakers, limits and the log: the answer's HTTP status says 200 of failures, too.

use std::fmt::Write as _;

use http::HeaderMap;
use policy::values::refusal::Refusal;

/// Whether a message is one of a call of gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get("content-type").map(http::HeaderValue::as_bytes).unwrap_or_default();
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The status of a call: in the trailers, or in the header of an answer that has nothing else.
pub(crate) fn status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The HTTP status that means the same (googleapis, `google/rpc/code.proto`).
pub(crate) fn as_http(status: u16) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500, // UNKNOWN, INTERNAL, DATA_LOSS, and what nobody knows
    }
}

/// What a call that the gateway refuses is answered with: an answer of trailers alone (grpc/doc/PROTOCOL-HTTP2.md), whose
/// HTTP status is 200, for clients read no further in any other; and when to try again (gRFC A6).
pub(crate) fn refusal_fields(refusal: &Refusal) -> impl Iterator<Item = (&'static str, String)> {
    let fields = [
        ("content-type", "application/grpc".to_owned()),
        ("grpc-status", of_refusal(refusal).to_string()),
        ("grpc-message", message(refusal)),
    ];
    let pushback =
        refusal.retry_after_secs().map(|wait| ("grpc-retry-pushback-ms", (wait * 1000).to_string()));
    fields.into_iter().chain(pushback)
}

/// The status of a call that the gateway refuses.
pub(crate) fn of_refusal(refusal: &Refusal) -> u16 {
    match refusal.status() {
        400 => 3,
        401 => 16,
        403 => 7,
        404 | 405 => 12,
        408 | 504 => 4,
        413 | 429 | 431 => 8,
        502 | 503 => 14,
        _ => 13,
    }
}

/// The refusal's code and its sentence, percent-encoded.
fn message(refusal: &Refusal) -> String {
    let text = format!("{}: {}", refusal.code.as_str(), refusal.detail);
    text.bytes().fold(String::new(), |mut message, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => message.push(char::from(byte)),
            _ => {
                let _ = write!(message, "%{byte:02X}");
            }
        }
        message
    })
}

#[cfg(test)]
mod tests {
    use policy::values::refusal::Code;
    use policy::values::stage::Stage;

    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), http::HeaderValue::from_static(value))])
    }

    #[test]
    fn calls_are_known_by_their_content_type() {
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert!(is_grpc(&headers("content-type", kind)), "{kind}");
        }
        assert!(!is_grpc(&headers("content-type", "application/grpc-web")), "its trailers are in the body");
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn what_is_the_services_failure_is_a_5xx() {
        let failures: Vec<u16> = (0..17).filter(|status| as_http(*status) >= 500).collect();
        assert_eq!(failures, [2, 4, 12, 13, 14, 15]);
        assert_eq!(status(&headers("grpc-status", "14")).map(as_http), Some(503));
        assert_eq!(status(&headers("grpc-status", "x")), None);
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_grpc() {
        let refusal = Refusal::new(Stage::Forward, Code::UpstreamTimeout, "50 % of \u{e9}\n");
        assert_eq!(of_refusal(&refusal), 4);
        assert_eq!(message(&refusal), "upstream_timeout: 50 %25 of %C3%A9%0A");
    }
}
