//! Passwords that are forgotten: requests that wait for a mail, and the tokens that the mails carry. A token is valid
//! once, for half an hour.

use rusqlite::params;

use super::credentials;
use super::users::{self, User};
use crate::clock::now;
use crate::problem::{Failure, Problem};
use crate::random::fingerprint;
use crate::storage::{Result, Transaction, sql};

/// How long a token is valid, in seconds.
const LIFETIME_SECONDS: i64 = 30 * 60;

/// Requests that wait at most; a further one is refused until there is room.
const MOST_WAITING: i64 = 10_000;

/// An account is sent one mail at most so often, in seconds.
const MIN_INTERVAL_SECONDS: i64 = 60;

/// Stores a request until its mail is sent. It is the same work for everybody, whether there is such an account or not.
pub(crate) fn request(
    transaction: &Transaction<'_>,
    username: Option<&str>,
    email: Option<&str>,
) -> Result<(), Failure> {
    let waiting: i64 = transaction.row(sql::COUNT_RESET_REQUESTS, [], |row| row.get(0))?.unwrap_or_default();
    if waiting >= MOST_WAITING {
        let detail = "too many mails are waiting to be sent: try again";
        return Err(Problem::too_many("mail_busy", detail, 60).into());
    }
    transaction.run(sql::ADD_RESET_REQUEST, params![username, email, now()])?;
    Ok(())
}

/// The active account that a token is valid for.
pub(crate) fn owner(transaction: &Transaction<'_>, hash: &[u8]) -> Result<Option<User>> {
    let found: Option<(String, i64)> =
        transaction.row(sql::RESET_TOKEN, [hash], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let Some((id, _)) = found.filter(|(_, ends)| *ends > now()) else { return Ok(None) };
    Ok(users::by_id(transaction, &id)?.filter(|user| user.active))
}

/// Uses up a token to set a password. It ends every session and API key of the account, and unlocks it; returns its
/// name.
pub(crate) fn redeem(
    transaction: &Transaction<'_>,
    hash: &[u8],
    password_hash: &str,
) -> Result<String, Failure> {
    let user = owner(transaction, hash)?.ok_or_else(invalid_token)?;
    transaction.row(sql::TAKE_RESET_TOKEN, [hash], |_| Ok(()))?;
    credentials::reset_password(transaction, &user, password_hash)?;
    transaction.run(sql::VERIFY_EMAIL, [&user.id])?; // which is where the token was sent
    Ok(user.username)
}

pub(crate) fn invalid_token() -> Problem {
    Problem::unprocessable("reset_token_invalid", "the token is wrong, too old or used up: ask for another")
}

/// A mail that is due.
pub(crate) struct Due {
    pub(crate) request: i64,
    pub(crate) user: String,
    pub(crate) tries: i64,
    pub(crate) asked_at: i64,
}

/// As many as `at_most` mails that are due. One whose next try is later than `longest_pause` from now is due, too: the
/// clock was ahead when it was set.
pub(crate) fn due(transaction: &Transaction<'_>, longest_pause: i64, at_most: i64) -> Result<Vec<Due>> {
    transaction.rows(sql::DUE_RESET_MAILS, params![now(), now() + longest_pause, at_most], |row| {
        Ok(Due { request: row.get(0)?, user: row.get(1)?, tries: row.get(2)?, asked_at: row.get(3)? })
    })
}

/// The number of mails that wait, and when the next one is due.
pub(crate) fn waiting(transaction: &Transaction<'_>) -> Result<(i64, i64)> {
    let both = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?));
    let (waiting, next) = transaction.row(sql::WAITING_RESET_MAILS, [], both)?.unwrap_or_default();
    Ok((waiting, next.unwrap_or(i64::MAX)))
}

/// A request as it was made: its number, the name or the address, and when.
type Asked = (i64, Option<String>, Option<String>, i64);

fn next_unresolved(transaction: &Transaction<'_>) -> Result<Option<Asked>> {
    let asked = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    transaction.row(sql::UNRESOLVED_RESET_REQUEST, [], asked)
}

/// Whether there are requests whose accounts are still to be found.
pub(crate) fn is_unresolved(transaction: &Transaction<'_>) -> Result<bool> {
    next_unresolved(transaction).map(|next| next.is_some())
}

/// Finds whose accounts are meant. An account that has a mail waiting, or was sent one just now, gets no other.
pub(crate) fn find_accounts(transaction: &Transaction<'_>) -> Result<()> {
    transaction.run(sql::DROP_SENT_RESET_REQUESTS, [now() - MIN_INTERVAL_SECONDS, now()])?;
    while let Some((request, username, email, asked_at)) = next_unresolved(transaction)? {
        let users = match (username, email) {
            (Some(name), _) => users::by_name(transaction, &name)?.into_iter().collect(),
            (None, Some(email)) => users::by_email(transaction, &email)?,
            (None, None) => Vec::new(),
        };
        for user in users.iter().filter(|user| user.active && user.email.is_some()) {
            transaction.run(sql::ADD_RESET_MAIL, params![user.id, asked_at])?;
        }
        drop_request(transaction, request)?;
    }
    Ok(())
}

/// Makes `token` valid, and the next try due after `pause` seconds: whatever happens while the mail is sent, it is not
/// lost. `None` where there is nobody to send it to any more.
pub(crate) fn begin(
    transaction: &Transaction<'_>,
    due: &Due,
    token: &str,
    pause: i64,
) -> Result<Option<User>> {
    let user = users::by_id(transaction, &due.user)?.filter(|user| user.active && user.email.is_some());
    if user.is_none() {
        drop_request(transaction, due.request)?;
        return Ok(None);
    }
    if transaction.run(sql::BEGIN_RESET_MAIL, params![due.request, now() + pause, due.tries])? == 0 {
        return Ok(None); // it was sent or tried meanwhile, or is not wanted any more
    }
    // The newest request counts; of one that is tried again, the server may have taken an earlier mail after all.
    let ended = if due.tries == 0 { i64::MAX } else { now() };
    transaction.run(sql::DROP_RESET_TOKENS, params![due.user, ended])?;
    transaction.run(sql::ADD_RESET_TOKEN, params![fingerprint(token), due.user, now() + LIFETIME_SECONDS])?;
    Ok(user)
}

pub(crate) fn mark_sent(transaction: &Transaction<'_>, request: i64) -> Result<()> {
    transaction.run(sql::RESET_MAIL_SENT, params![request, now()]).map(drop)
}

pub(crate) fn drop_request(transaction: &Transaction<'_>, request: i64) -> Result<()> {
    transaction.run(sql::DROP_RESET_REQUEST, [request]).map(drop)
}
