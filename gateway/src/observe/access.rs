//! The access log: one JSON line a request.

use serde::Serialize;
use service::lines::{Lines, PlaceFault};
use service::log::Log;

/// One request. No token, cookie, query or header value is in it.
#[derive(Default, Serialize)]
pub struct Line<'a> {
    /// RFC 3339, when the request began.
    pub time: String,
    /// The id that the answer shows, too.
    pub request_id: &'a str,
    /// The client's address.
    pub client: &'a str,
    /// The method; empty where there was no request yet.
    pub method: &'a str,
    /// The normal path; the raw path when it has no normal one.
    pub path: &'a str,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: &'a str,
    /// The route, once it was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    /// The subject, once it was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    /// 0 when the client closed before an answer.
    pub status: u16,
    /// The stage that refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<&'a str>,
    /// The rule that refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'a str>,
    /// What was wrong with the token or the API key: `signature`, `unknown_key`, `claims.aud`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// The status of a gRPC call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Why the upstream failed. The client does not see this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_fault: Option<&'a str>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// From the header to the end of the answer.
    pub duration_ms: f64,
    /// The part of it that was spent in the upstream.
    pub upstream_ms: f64,
}

/// Where the lines are written.
#[derive(Clone)]
pub struct AccessLog(Lines);

impl AccessLog {
    /// Writes to `stdout`, to nothing (`off`), or to the end of a file.
    pub fn open(place: &str) -> Result<Self, PlaceFault> {
        Lines::open(Log::Access, place).map(Self)
    }

    /// Logs a request. A line that cannot be written is counted; it never delays a request.
    pub fn log(&self, line: &Line<'_>) {
        if let Ok(mut bytes) = serde_json::to_vec(line) {
            bytes.push(b'\n');
            self.0.write(&bytes);
        }
    }
}
