//! How long something holds, and why: the body of a block and of a revocation.

use axum::http::StatusCode;
use axum::response::Response;
use policy::document::units::Span;
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem;
use crate::clock;

/// The longest reason, in bytes.
const MAX_REASON: usize = 256;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Body {
    /// How long; without it, for ever.
    duration: Option<String>,
    reason: Option<String>,
}

/// The end and the reason.
pub(super) struct Term {
    /// The end in nanoseconds since the epoch; `None`: for ever.
    pub(super) until: Option<u64>,
    /// The value that is stored, with the reason.
    pub(super) value: Value,
}

impl Term {
    /// Reads a body, which may be empty.
    pub(super) fn read(body: &[u8]) -> Result<Self, Box<Response>> {
        let bad = |detail: &str| Box::new(problem(StatusCode::BAD_REQUEST, "malformed_request", detail));
        let body = if body.is_empty() { Ok(Body::default()) } else { serde_json::from_slice(body) };
        let Body { duration, reason } = body.map_err(|error| {
            bad(&format!("the body is {{\"duration\",\"reason\"}}, both optional: {error}"))
        })?;
        let duration = duration.as_deref().map(str::parse::<Span>).transpose();
        let duration = duration.map_err(|allowed| bad(&format!("duration: {allowed}")))?;
        if duration.is_some_and(|Span(duration)| duration.is_zero()) {
            return Err(bad("duration: longer than 0s"));
        }
        let reason = reason.unwrap_or_else(|| "by an operator".to_owned());
        if reason.len() > MAX_REASON {
            return Err(bad("a reason has at most 256 bytes"));
        }
        let until = duration.map(|Span(duration)| (clock::wall() + duration).as_nanos());
        Ok(Self { until, value: json!({"reason": reason}) })
    }
}
