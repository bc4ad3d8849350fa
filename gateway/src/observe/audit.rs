//! The audit log: one JSON line for each change, with the state before and after it. It is a stream of its own, `[log]
//! audit`.
//!
//! A change that an operator asks for is made only when there is room for its line. What the gateway does by its policy
//! (a ban, a reload) is done even without room, because a full disk must not let an attacker in. A dropped line is
//! counted, and the general log says how many were dropped.

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
    /// The state before.
    pub before: Value,
    /// The state now.
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

/// Where the entries are written.
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
    /// Writes to `stdout`, to nothing (`off`), or to the end of a file.
    pub fn open(place: &str) -> Result<Self, PlaceFault> {
        Lines::open(Log::Audit, place).map(Self)
    }

    /// Writes an entry about a change that is made in any case. A dropped entry is counted.
    pub fn write(&self, entry: &Entry<'_>) {
        self.0.write(&line(entry));
    }

    /// Reserves room for an entry. Only then the change is made, and after it the entry is written.
    pub fn reserve(&self, entry: &Entry<'_>) -> Result<Reserved, Full> {
        self.0.reserve(line(entry))
    }

    /// Counts an entry for which there was no room.
    pub fn note_dropped(&self) {
        self.0.note_dropped();
    }

    /// Whether there is room for an entry. For changes whose entry is written elsewhere, later.
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
