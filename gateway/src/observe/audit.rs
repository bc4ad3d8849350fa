//! The audit log: one JSON line for each change that somebody or something made, with what was before and after. A
//! stream of its own, `[log] audit`.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;
use tracing::error;

use super::lines::Lines;

/// A change, as it is written.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    /// What was done: `block`, `unblock`, `override`, `reset_breaker`, …
    pub action: &'a str,
    /// To what.
    pub target: &'a str,
    /// Who did it.
    pub actor: Actor,
    /// What was so before.
    pub before: Value,
    /// What is so now.
    pub after: Value,
    /// The request that asked for it, if one did.
    pub request_id: &'a str,
}

/// Who changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Actor {
    /// A person with the admin token.
    Operator,
    /// This gateway, by its policy.
    Policy,
}

/// Where the entries go.
#[derive(Clone)]
pub struct AuditLog(Lines);

#[derive(Serialize)]
struct Line<'a> {
    log: &'static str,
    time: String,
    #[serde(flatten)]
    entry: &'a Entry<'a>,
}

impl AuditLog {
    /// `stdout`, `off` or a file, which is appended to.
    pub fn open(place: &str) -> anyhow::Result<Self> {
        Lines::open("log.audit", place).map(Self)
    }

    /// Writes an entry.
    pub fn write(&self, entry: &Entry<'_>) {
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        if !self.0.write(&Line { log: "audit", time, entry }) {
            error!(?entry, "the audit log cannot be written");
        }
    }
}
