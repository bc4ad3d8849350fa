//! What a call of gRPC came to, for breakers, limits and the log: the answer's HTTP status says 200 of failures, too.

use http::HeaderMap;

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

#[cfg(test)]
mod tests {
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
}
