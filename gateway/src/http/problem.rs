//! The answers that the gateway itself makes, in one place: problem+json (RFC 9457) for HTTP/1 and HTTP/2 alike, and
//! the fields that every answer carries.

use std::fmt::Write as _;

use pingora_core::Result;
use pingora_http::ResponseHeader;
use policy::rules::response_headers::{Channel, Edit, ResponseHeaders};
use policy::values::quota::Quota;
use policy::values::refusal::{Code, Refusal};
use serde::Serialize;

/// The body of a refusal.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: &'a str,
    request_id: &'a str,
    stage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

/// On the last good answer, given again while the breaker is open (RFC 7234, 5.5.1).
pub const STALE: &str = "110 palisade \"response is stale\"";

/// On an answer to somebody whose permission could not be asked for anew: `on_failure = "stale"` (RFC 7234, 5.5.7).
pub const PERMISSION_LAST_KNOWN: &str = "199 palisade \"the permission is the last known one\"";

/// A new request id: `UUIDv7`.
pub fn new_request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// The client's request id where it is 1 to 128 characters of `A-Za-z0-9._-`, else a new one.
pub fn request_id(sent: Option<&[u8]>) -> String {
    let fine = |id: &&[u8]| {
        (1..=128).contains(&id.len())
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
    };
    sent.filter(fine).and_then(|id| std::str::from_utf8(id).ok()).map_or_else(new_request_id, str::to_owned)
}

/// The body of a refusal, as JSON.
pub fn body(refusal: &Refusal, request_id: &str) -> Vec<u8> {
    let problem = Problem {
        r#type: "about:blank",
        title: refusal.code.title(),
        status: refusal.status(),
        code: refusal.code.as_str(),
        detail: &refusal.detail,
        request_id,
        stage: refusal.stage.as_str(),
        rule: refusal.rule.as_deref(),
        retry_after: refusal.retry_after_secs(),
    };
    serde_json::to_vec(&problem).unwrap_or_default()
}

/// Fields of a refusal that are its own, whatever the policy says of answers.
const OURS: [&str; 2] = ["cache-control", "content-type"];

/// The fields of a refusal, apart from those that frame the message.
pub fn fields(
    refusal: &Refusal,
    request_id: &str,
    every_answer: &ResponseHeaders,
    channel: Channel,
) -> Vec<(String, String)> {
    // A refusal is about this request now, and is nobody else's answer later (RFC 9111, 5.2.2.5).
    let mut fields = vec![
        ("content-type".to_owned(), "application/problem+json".to_owned()),
        ("cache-control".to_owned(), "no-store".to_owned()),
    ];
    if let Some(seconds) = refusal.retry_after_secs() {
        fields.push(("retry-after".to_owned(), seconds.to_string()));
    }
    if !refusal.allow.is_empty() {
        fields.push(("allow".to_owned(), refusal.allow.join(", ")));
    }
    if refusal.status() == 401 {
        let error = match refusal.code {
            Code::TokenMissing | Code::ApiKeyInvalid => "",
            _ => ", error=\"invalid_token\"",
        };
        fields.push(("www-authenticate".to_owned(), format!("Bearer realm=\"palisade\"{error}")));
    }
    fields.extend(rate_limit(&refusal.quotas));
    fields.push(("x-request-id".to_owned(), request_id.to_owned()));
    for (name, edit) in every_answer.edits(channel).filter(|(name, _)| !OURS.contains(name)) {
        if let Edit::Fill(value) | Edit::Replace(value) = edit {
            fields.push((name.to_owned(), value.clone()));
        }
    }
    fields
}

/// `RateLimit` and `RateLimit-Policy`, draft-ietf-httpapi-ratelimit-headers; none without limits.
pub fn rate_limit(quotas: &[Quota]) -> impl Iterator<Item = (String, String)> + '_ {
    let join = |field: fn(&Quota) -> String| quotas.iter().map(field).collect::<Vec<_>>().join(", ");
    let pair = [
        ("ratelimit-policy".to_owned(), join(Quota::policy_field)),
        ("ratelimit".to_owned(), join(Quota::field)),
    ];
    pair.into_iter().filter(|_| !quotas.is_empty())
}

/// What every answer of a service carries: a field that it sent itself is its own, unless the policy says otherwise.
pub fn complete(
    header: &mut ResponseHeader,
    request_id: &str,
    every_answer: &ResponseHeaders,
    channel: Channel,
) -> Result<()> {
    header.insert_header("x-request-id", request_id)?;
    for (name, edit) in every_answer.edits(channel) {
        match edit {
            Edit::Fill(_) if header.headers.contains_key(name) => {}
            Edit::Fill(value) | Edit::Replace(value) => header.insert_header(name.to_owned(), value)?,
            Edit::Remove => drop(header.remove_header(name)),
        }
    }
    Ok(())
}

/// Where there is no session yet: the whole answer as HTTP/1.1, after which the connection closes.
pub fn as_http1(
    refusal: &Refusal,
    request_id: &str,
    every_answer: &ResponseHeaders,
    channel: Channel,
) -> Vec<u8> {
    let body = body(refusal, request_id);
    let mut head = format!("HTTP/1.1 {} {}\r\n", refusal.status(), refusal.code.title());
    for (name, value) in fields(refusal, request_id, every_answer, channel) {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = write!(head, "content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}
