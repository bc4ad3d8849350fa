//! The access log: one JSON line a request.

use serde::Serialize;
use service::lines::{Lines, PlaceFault};
use service::log::Log;

/// One request. No token, cookie, query or header value is in it.
#[derive(Default, Serialize)]
pub struct Line<'a> {
    /// RFC 3339, when the request began.
    pub time: String,
    /// As in the answer.
    pub request_id: &'a str,
    /// The client's address.
    pub client: &'a str,
    /// The method; empty where there was no request yet.
    pub method: &'a str,
    /// The normal path; the raw one when it has none.
    pub path: &'a str,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: &'a str,
    /// The route, once it was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    /// The subject, once it was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    /// 0 when the client left before an answer.
    pub status: u16,
    /// Where it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<&'a str>,
    /// By which rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'a str>,
    /// What of a token or an API key did not do: `signature`, `unknown_key`, `claims.aud`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// How a call of gRPC went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Why the upstream's part failed; the client is not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_fault: Option<&'a str>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// From the header to the end of the answer.
    pub duration_ms: f64,
    /// Of that, in the upstream.
    pub upstream_ms: f64,
}

/// Where the lines go.
#[derive(Clone)]
pub struct AccessLog(Lines);

impl AccessLog {
    /// `stdout`, `off` or a file, which is appended to.
    pub fn open(place: &str) -> Result<Self, PlaceFault> {
        Lines::open(Log::Access, place).map(Self)
    }

    /// Logs a request. A line that cannot be written is counted, and never holds up a request.
    pub fn log(&self, line: &Line<'_>) {
        if let Ok(mut bytes) = serde_json::to_vec(line) {
            bytes.push(b'\n');
            self.0.write(&bytes);
        }
    }
}
