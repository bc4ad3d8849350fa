//! What fields of a request mean, whoever asks.

use http::Version;
use pingora_http::RequestHeader;
use smallvec::SmallVec;

/// The length that a request announces; it was checked before.
pub(crate) fn content_length(request: &RequestHeader) -> Option<u64> {
    request.headers.get("content-length")?.to_str().ok()?.parse().ok()
}

/// The host that the client asked for: `:authority` goes before `Host` (RFC 9113, 8.3.1).
pub(crate) fn host(received: &RequestHeader) -> Option<String> {
    let field = || received.headers.get("host").and_then(|value| value.to_str().ok()).map(str::to_owned);
    received.uri.authority().map(ToString::to_string).or_else(field)
}

/// Whether a request's body comes in chunks, of HTTP/1.1.
pub(crate) fn is_chunked(request: &RequestHeader) -> bool {
    request.version == Version::HTTP_11 && request.headers.contains_key("transfer-encoding")
}

/// The fields of a header, as the specification reads them.
pub(crate) type Fields<'h> = SmallVec<[(&'h str, &'h [u8]); 32]>;

pub(crate) fn fields_of(header: &RequestHeader) -> Fields<'_> {
    header.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

/// How the client came, where a trusted proxy says so: the last word counts, which that proxy wrote itself.
pub(crate) fn scheme_told(received: &RequestHeader) -> Option<&str> {
    let told = received.headers.get_all("x-forwarded-proto").iter().next_back()?.to_str().ok()?;
    told.rsplit(',').next().map(str::trim)
}
