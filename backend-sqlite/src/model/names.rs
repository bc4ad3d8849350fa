//! How names are written, and how many of them one call may carry.

use crate::problem::{Problem, Result};

/// What [`is_name`] takes, for people.
pub(crate) const NAME: &str = "1 to 128 of A-Z a-z 0-9 . _ - @";

/// The most roles, grants or members in one call.
const MOST: usize = 1_000;

/// Whether `name` can be a username, a role, a collection: it stands in paths, headers and lists.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte))
}

pub(crate) fn check_username(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(Problem::unprocessable("invalid_username", format!("a username is {NAME}")))
}

/// Refuses too many of `what` in one call.
pub(crate) fn check_count(count: usize, what: &str) -> Result<()> {
    if count <= MOST {
        return Ok(());
    }
    Err(Problem::unprocessable("too_many", format!("at most {MOST} {what}")))
}

/// Refuses what is no address that mail can be sent to.
pub(crate) fn check_email(email: &str) -> Result<()> {
    if email.len() <= 254 && email.parse::<lettre::Address>().is_ok() {
        return Ok(());
    }
    Err(Problem::unprocessable("invalid_email", "an e-mail address like ann@example.org"))
}
