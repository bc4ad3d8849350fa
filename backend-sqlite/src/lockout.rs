//! Lockout: a name at which too many guesses failed is locked for a while, whatever password comes next.
//!
//! Failures are counted by the name that was typed, whether such an account exists or not: what a guess costs and what it
//! is told are the same.

use rusqlite::params;

use crate::config::Lockout;
use crate::db::{Result, Session};
use crate::sql;
use crate::tokens::{now, seconds};

/// Longer names are no account's; what is remembered of them has a bound.
const LONGEST: usize = 128;

fn key(name: &str) -> String {
    name.chars().take(LONGEST).collect()
}

/// Whether the name is locked.
pub(crate) fn is_locked(session: &Session<'_>, name: &str) -> Result<bool> {
    let until: Option<i64> = session.row(sql::LOCKED_UNTIL, [key(name)], |row| row.get(0))?;
    Ok(until.is_some_and(|until| until > now()))
}

/// Counts a failure; whether it locked the name.
pub(crate) fn failed(session: &Session<'_>, name: &str, rule: &Lockout) -> Result<bool> {
    let now = now();
    let window_began = now.saturating_sub(seconds(rule.window));
    let count: u32 = session
        .row(sql::COUNT_FAILURE, params![key(name), now, window_began], |row| row.get(0))?
        .unwrap_or_default();
    if count < rule.failures {
        return Ok(false);
    }
    let until = now.saturating_add(seconds(rule.duration));
    Ok(session.run(sql::LOCK_NAME, params![key(name), until, now])? > 0)
}

/// Forgets the failures, and unlocks the name.
pub(crate) fn clear(session: &Session<'_>, name: &str) -> Result<bool> {
    Ok(session.run(sql::CLEAR_FAILURES, [key(name)])? > 0)
}
