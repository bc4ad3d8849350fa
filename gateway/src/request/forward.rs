//! What is sent to the upstream, and what of its answer is passed on. A request is rewritten here and nowhere else.

use http::header::HeaderName;
use http::{HeaderMap, Version};
use pingora_core::{ErrorType, OrErr as _, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use policy::rules::authenticate::KEY_FIELD;
use protocol::assertion::{Assertion, BodyBinding, FIELD};
use service::telemetry;

use crate::http::fields::{content_length, host, is_chunked};
use crate::identity::assertion::{self, Signer};
use crate::request::exchange::Exchange;

/// Hop-by-hop fields (RFC 9110, 7.6.1), without those that frame a message or upgrade.
const HOP_BY_HOP: [&str; 6] =
    ["http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"];

/// Fields that may not be trailers: those that frame a message, say how to read or handle it, or authenticate (RFC
/// 9110, 6.5.1); and those that the gateway writes.
const NO_TRAILERS: [&str; 27] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "expires",
    "host",
    "location",
    "max-forwards",
    "pragma",
    "range",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "set-cookie",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "warning",
    "www-authenticate",
    "x-request-id",
    protocol::READ_ONLY,
];

/// Fields that the gateway relies on: a client cannot remove them by naming them in `Connection`.
const RELIED_ON: [&str; 9] = [
    "authorization",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "te",
    "traceparent",
    "transfer-encoding",
    KEY_FIELD,
];

/// The names in `Connection`, in lower case.
fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = String> + '_ {
    let values = headers.get_all("connection").iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase());
    names.filter(|name| !name.is_empty())
}

/// Removes the fields of a request that concern only the client's connection (RFC 9110, 7.6.1), and every upgrade
/// except a WebSocket handshake.
pub(crate) fn clean_request(request: &mut RequestHeader, handshake: bool) -> Result<()> {
    let (ours, theirs): (Vec<String>, Vec<String>) = named_by_connection(&request.headers)
        .partition(|name| matches!(name.as_str(), "close" | "keep-alive" | "upgrade"));
    for name in theirs {
        if !RELIED_ON.contains(&name.as_str()) && !WRITTEN_HERE.contains(&name.as_str()) {
            request.remove_header(name.as_str());
        }
    }
    let kept: Vec<&str> =
        ours.iter().map(String::as_str).filter(|name| handshake || *name != "upgrade").collect();
    request.remove_header("connection");
    if !kept.is_empty() {
        request.insert_header("connection", kept.join(", "))?;
    }
    if !handshake {
        request.remove_header("upgrade");
    }
    Ok(())
}

/// A request's body, as far as it is known before its header is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outgoing<'b> {
    /// All of it is known; empty for a request without a body.
    Whole(&'b [u8]),
    /// It is sent as it arrives.
    Streamed,
}

/// The header that is sent to the upstream, in HTTP/2 or in HTTP/1.1.
pub(crate) fn outgoing(
    received: &RequestHeader,
    exchange: &Exchange,
    signer: Option<&Signer>,
    http2: bool,
    body: Outgoing<'_>,
) -> Result<Box<RequestHeader>> {
    let mut request = Box::new(received.clone());
    request.set_version(Version::HTTP_11);
    for name in HOP_BY_HOP.into_iter().chain(["connection", "trailer", "transfer-encoding", "upgrade"]) {
        request.remove_header(name);
    }
    rewrite(&mut request, received, exchange, signer, body)?;
    if http2 {
        // gRPC needs it, and HTTP/2 allows no other value (RFC 9113, 8.2.2).
        if received.headers.get_all("te").iter().any(|value| value.as_bytes() == b"trailers") {
            request.insert_header("te", "trailers")?;
        }
        return Ok(request);
    }
    let has_body = !matches!(body, Outgoing::Whole(b""));
    if is_chunked(received) || (has_body && !request.headers.contains_key("content-length")) {
        request.insert_header("transfer-encoding", "chunked")?;
    }
    if exchange.handshake {
        request.insert_header("connection", "upgrade")?;
        request.insert_header("upgrade", "websocket")?;
    }
    Ok(request)
}

/// Rewrites the request for the upstream: the normal path, the identity that the gateway verified, and no identity that
/// the client could have invented.
fn rewrite(
    request: &mut RequestHeader,
    received: &RequestHeader,
    exchange: &Exchange,
    signer: Option<&Signer>,
    body: Outgoing<'_>,
) -> Result<()> {
    request.set_raw_path(exchange.target.as_bytes())?;
    let untrusted: Vec<HeaderName> =
        request.headers.keys().filter(|name| is_ours_to_write(name.as_str(), exchange)).cloned().collect();
    for name in untrusted {
        request.remove_header(&name);
    }
    let Some(admission) = &exchange.admission else { return Ok(()) };
    for (name, value) in admission.subject.headers() {
        request.insert_header(name.to_string(), value)?;
    }
    if admission.subject.key().is_some() {
        // The key is not passed on: the identity fields say what it proves.
        request.remove_header(KEY_FIELD);
        request.remove_header("authorization");
    }
    request.insert_header("x-request-id", &exchange.request_id)?;
    // Only the permission service knows the secret with which this is signed.
    if let Some(signer) = signer.filter(|_| exchange.asks_permission_service()) {
        let address = admission.client.address.to_string();
        let subject = &admission.subject;
        let assertion = Assertion {
            method: request.method.as_str().into(),
            target: exchange.target.as_str().into(),
            request_id: exchange.request_id.as_str().into(),
            own: false,
            sub: subject.id().map(Into::into),
            sub_issuer: subject.issuer().map(Into::into),
            roles: subject.roles().into(),
            address: address.into(),
            body: match body {
                Outgoing::Whole(body) => assertion::bound_to(body),
                Outgoing::Streamed => {
                    BodyBinding { body_length: content_length(received), ..BodyBinding::default() }
                }
            },
        };
        let word = signer.sign(assertion).or_err(ErrorType::InternalError, "signing an assertion")?;
        request.insert_header(FIELD, word)?;
    }
    forwarded(request, received, exchange, admission.client.behind_proxy)?;
    // HTTP/2 has it in another field, and HTTP/1.0 may omit it.
    let host = host(received).unwrap_or_else(|| admission.route.upstream.to_string());
    request.insert_header("host", host)?;
    if let Some(parent) = telemetry::traceparent(&exchange.span) {
        request.insert_header("traceparent", parent)?;
    }
    Ok(())
}

/// Fields that the gateway writes itself under their correct names. Other spellings of them are removed.
const WRITTEN_HERE: [&str; 4] = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id"];

/// Whether only the gateway may write this field: an identity field in any spelling, a proof that a request comes from
/// the gateway, or a field that only a trusted peer may send.
fn is_ours_to_write(name: &str, exchange: &Exchange) -> bool {
    matches!(name, "forwarded" | "expect")
        || WRITTEN_HERE.iter().any(|ours| *ours != name && policy::same_field(ours, name))
        || exchange.rules().is_identity_field(name)
}

/// Whether a proxy uses this field to say for which client it forwards.
fn is_forwarded_field(name: &str) -> bool {
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip" | "true-client-ip")
}

/// Removes the forwarded fields of a balancer's own request: they would name a client that did not send it.
pub(crate) fn ignore_forwarded_fields(request: &mut RequestHeader) {
    let names = request
        .headers
        .keys()
        .filter(|name| is_forwarded_field(&name.as_str().replace(['_', '.', '~'], "-")));
    for name in names.cloned().collect::<Vec<HeaderName>>() {
        request.remove_header(&name);
    }
}

/// `X-Forwarded-For|Proto|Host`: appended to when the peer is trusted, replaced when it is not.
fn forwarded(
    request: &mut RequestHeader,
    received: &RequestHeader,
    exchange: &Exchange,
    behind_proxy: bool,
) -> Result<()> {
    let peer = exchange.peer().to_string();
    let received_values = |name: &str| -> Vec<String> {
        let values = received.headers.get_all(name).iter();
        values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let chain = if behind_proxy { received_values("x-forwarded-for") } else { Vec::new() };
    let chain = chain.into_iter().chain([peer]).collect::<Vec<_>>().join(", ");
    request.insert_header("x-forwarded-for", chain)?;
    let scheme = if exchange.encrypted { "https" } else { "http" };
    for (name, ours) in [("x-forwarded-proto", Some(scheme.to_owned())), ("x-forwarded-host", host(received))]
    {
        let kept = received_values(name).into_iter().next_back().filter(|_| behind_proxy);
        match kept.or(ours) {
            Some(value) => request.insert_header(name, value)?,
            None => {
                request.remove_header(name);
            }
        }
    }
    Ok(())
}

/// Removes the fields of an answer that concern only the connection to the upstream.
pub(crate) fn clean_answer(response: &mut ResponseHeader, upgraded: bool) {
    // The fields that frame the message stay, even if `Connection` names them.
    let named: Vec<String> = named_by_connection(&response.headers)
        .filter(|name| !matches!(name.as_str(), "content-length" | "transfer-encoding" | "upgrade"))
        .collect();
    for name in HOP_BY_HOP.into_iter().map(str::to_owned).chain(named) {
        response.remove_header(name.as_str());
    }
    if upgraded {
        // The bytes after it are not HTTP, so no field frames them (RFC 9110, 8.6; RFC 9112, 6.1).
        response.remove_header("content-length");
        response.remove_header("transfer-encoding");
    } else {
        response.remove_header("upgrade");
    }
    if response.status == http::StatusCode::NO_CONTENT {
        response.remove_header("content-length"); // RFC 9110, 8.6
    }
}

/// Removes the fields that have no meaning in an informational answer.
pub(crate) fn clean_hint(response: &mut ResponseHeader) {
    clean_answer(response, false);
    for name in ["connection", "content-length", "transfer-encoding"] {
        response.remove_header(name);
    }
}

/// Whether an answer can be passed on: it must not change to a protocol that was not asked for.
pub(crate) fn is_sound(response: &ResponseHeader, handshake: bool) -> bool {
    let websocket =
        || response.headers.get("upgrade").is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    response.status != http::StatusCode::SWITCHING_PROTOCOLS || (handshake && websocket())
}

/// Frames an answer for the client. An answer without a length is sent in chunks.
pub(crate) fn frame(response: &mut ResponseHeader, client: &RequestHeader, is_empty: bool) -> Result<()> {
    response.set_version(Version::HTTP_11);
    if client.version == Version::HTTP_10 {
        // An HTTP/1.0 client does not understand chunks: the end of the connection is the end of the body.
        response.remove_header("transfer-encoding");
    }
    let status = response.status.as_u16();
    if status == 204 {
        response.remove_header("transfer-encoding"); // RFC 9112, 6.1
    }
    let has_no_body = client.method == http::Method::HEAD || matches!(status, 101 | 204 | 304);
    let is_framed =
        ["content-length", "transfer-encoding"].iter().any(|name| response.headers.contains_key(*name));
    if client.version == Version::HTTP_2 || has_no_body || is_framed {
        return Ok(());
    }
    match (is_empty, client.version == Version::HTTP_10) {
        (true, _) => response.insert_header("content-length", "0"),
        (false, false) => response.insert_header("transfer-encoding", "chunked"),
        (false, true) => Ok(()),
    }
}

/// Removes the fields that may not be trailers.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    for name in NO_TRAILERS.into_iter().chain(HOP_BY_HOP) {
        trailers.remove(name);
    }
}
