//! The audit log: one JSON line for each change that somebody or something made, with what was before and after. A
//! stream of its own, `[log] audit`.
//!
//! A change that an operator asks for is made only when there is room for its line; what the gateway does by its policy
//! (a ban, a reload) is done whether or not there is, because a full disk must not let an attacker in. A line that is
//! dropped is counted, and the general log says how many were.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;
use service::lines::{Full, Lines, PlaceFault, Reserved};
use service::log::Log;

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
    pub fn open(place: &str) -> Result<Self, PlaceFault> {
        Lines::open(Log::Audit, place).map(Self)
    }

    /// Writes an entry of what is done in any case; it is counted where it is dropped.
    pub fn write(&self, entry: &Entry<'_>) {
        self.0.write(&line(entry));
    }

    /// Keeps room for an entry. What it tells of is done only then, and the entry written after it.
    pub fn reserve(&self, entry: &Entry<'_>) -> Result<Reserved, Full> {
        self.0.reserve(line(entry))
    }

    /// Counts an entry that found no room.
    pub fn note_dropped(&self) {
        self.0.note_dropped();
    }

    /// Whether an entry would find room: for what is told in another place than it is asked for.
    pub fn has_room(&self) -> bool {
        const ENOUGH: usize = 4_096;
        self.0.reserve(vec![b'\n'; ENOUGH]).is_ok()
    }
}

fn line(entry: &Entry<'_>) -> Vec<u8> {
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let mut bytes = serde_json::to_vec(&Line { log: "audit", time, entry }).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
