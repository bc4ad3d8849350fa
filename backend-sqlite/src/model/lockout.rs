//! Failed logins as they are stored: by name and place, and in a row from places that the account does not know.
//!
//! A place at which too many guesses at a name failed is locked out of that name for a while, whatever password comes
//! next; other places are not. Failures are counted by the name that was typed, whether such an account exists or not:
//! the cost of a guess and the response to it are the same.

use rusqlite::params;

use super::places::{Hash, HashKey, KNOWN_FOR_SECONDS, MAX_PLACES, Place};
use crate::clock::{now, seconds};
use crate::config::Lockout;
use crate::storage::{Result, Transaction, sql};

/// A name, and the place from which somebody tries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) name: Hash,
    /// The network or the device that counts, see [`known`].
    pub(crate) place: Hash,
    /// Whether the account knows the place.
    pub(crate) known: bool,
}

/// The outcome of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Whether it locked the place out.
    pub(crate) locked: bool,
    /// Failures in a row at this name from places that its account does not know.
    pub(crate) in_a_row: u32,
}

/// Which of `place` the account of `name` knows, the device before the network.
pub(crate) fn known(transaction: &Transaction<'_>, name: &str, place: &Place) -> Result<Option<Hash>> {
    let device = place.device.unwrap_or(place.network);
    let since = now().saturating_sub(KNOWN_FOR_SECONDS);
    let known: Vec<Vec<u8>> =
        transaction.rows(sql::KNOWN_PLACES, params![name, place.network, device, since], |row| row.get(0))?;
    let one_of = |hash: &Hash| known.iter().any(|known| known == hash).then_some(*hash);
    Ok(one_of(&device).or_else(|| one_of(&place.network)))
}

/// The account `user` knows these places from now on.
pub(crate) fn remember(transaction: &Transaction<'_>, user: &str, place: &Place) -> Result<()> {
    for hash in [Some(place.network), place.device].into_iter().flatten() {
        transaction.run(sql::REMEMBER_PLACE, params![user, hash, now()])?;
    }
    transaction.run(sql::DROP_LEAST_USED_PLACES, params![user, MAX_PLACES]).map(drop)
}

/// Lets no lock last longer than `rule` says now: it may have been set under another rule, or by a clock that was
/// ahead.
pub(crate) fn apply_rule(transaction: &Transaction<'_>, rule: &Lockout) -> Result<()> {
    transaction.run(sql::SHORTEN_LOCKS, [now().saturating_add(seconds(rule.duration))]).map(drop)
}

/// Whether the place is locked out of the name.
pub(crate) fn is_locked(transaction: &Transaction<'_>, attempt: &Attempt) -> Result<bool> {
    let until: Option<i64> =
        transaction.row(sql::LOCKED_UNTIL, params![attempt.name, attempt.place], |row| row.get(0))?;
    Ok(until.is_some_and(|until| until > now()))
}

/// Whether any place is locked out of the name.
pub(crate) fn is_locked_somewhere(transaction: &Transaction<'_>, name: &str) -> Result<bool> {
    let name = HashKey::load(transaction)?.name(name);
    Ok(transaction.row(sql::LOCKED_SOMEWHERE, params![name, now()], |_| Ok(()))?.is_some())
}

/// Counts a failure.
pub(crate) fn failed(transaction: &Transaction<'_>, attempt: &Attempt, rule: &Lockout) -> Result<Failed> {
    let now = now();
    let in_a_row = if attempt.known {
        0
    } else {
        transaction.row(sql::COUNT_GUESS, params![attempt.name, now], |row| row.get(0))?.unwrap_or_default()
    };
    let window_began = now.saturating_sub(seconds(rule.window));
    let count: u32 = transaction
        .row(sql::COUNT_FAILURE, params![attempt.name, attempt.place, now, window_began], |row| row.get(0))?
        .unwrap_or_default();
    let until = now.saturating_add(seconds(rule.duration));
    let locked = count >= rule.failures
        && transaction.run(sql::LOCK_PLACE, params![attempt.name, attempt.place, until, now])? > 0;
    Ok(Failed { locked, in_a_row })
}

/// Somebody proved to be the owner: nothing is held against the name, nor against the place.
pub(crate) fn succeeded(transaction: &Transaction<'_>, attempt: &Attempt) -> Result<()> {
    transaction.run(sql::CLEAR_FAILURES_OF_PLACE, params![attempt.name, attempt.place])?;
    transaction.run(sql::CLEAR_GUESSES, params![attempt.name]).map(drop)
}

/// Forgets the failures at a name, and lets every place try again.
pub(crate) fn clear(transaction: &Transaction<'_>, name: &str) -> Result<()> {
    let name = HashKey::load(transaction)?.name(name);
    transaction.run(sql::CLEAR_GUESSES, params![name])?;
    transaction.run(sql::CLEAR_FAILURES, params![name]).map(drop)
}

/// The most rows of a kind that are stored of failures, some 10 MiB: anybody can make up names.
const MOST_STORED: i64 = 100_000;

/// Drops what is too old to matter, or too much.
pub(crate) fn sweep(transaction: &Transaction<'_>) -> Result<()> {
    let forgotten = now() - 24 * 3_600;
    transaction.run(sql::DROP_FAILURES_BEYOND, [MOST_STORED])?;
    transaction.run(sql::DROP_GUESSES_BEYOND, [MOST_STORED])?;
    transaction.run(sql::DROP_OLD_FAILURES, [forgotten, now()])?;
    transaction.run(sql::DROP_OLD_GUESSES, [forgotten])?;
    transaction.run(sql::DROP_OLD_PLACES, [now() - KNOWN_FOR_SECONDS]).map(drop)
}
