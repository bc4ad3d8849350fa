//! Sessions: a login and all that is refreshed from it. Each refresh token is valid once; one that is used a second
//! time was stolen, and ends the session. When a session ends, its access tokens are revoked.

use std::time::Duration;

use rusqlite::params;
use serde::Serialize;

use super::access_tokens::NewPair;
use super::changes::{self, Subject};
use super::users::{self, User};
use crate::clock::{now, seconds};
use crate::problem::{Failure, Problem};
use crate::random::fingerprint;
use crate::storage::{Result, Transaction, sql};

/// The most sessions of one account; a further login ends the least recently used one.
const MOST: i64 = 100;

/// Where a login came from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) address: String,
    pub(crate) user_agent: String,
}

/// Begins a session of `user` with a pair of tokens.
pub(crate) fn begin(
    transaction: &Transaction<'_>,
    user: &User,
    origin: &Origin,
    pair: &NewPair,
) -> Result<()> {
    let id = uuid::Uuid::now_v7().to_string();
    let Origin { address, user_agent } = origin;
    let values = params![id, user.id, now(), pair.refresh_expires_at, address, user_agent];
    transaction.run(sql::ADD_SESSION, values)?;
    add_pair(transaction, &id, pair)?;
    let too_many: Vec<String> =
        transaction.rows(sql::OLDEST_SESSIONS, params![user.id, MOST], |row| row.get(0))?;
    too_many.iter().try_for_each(|id| end(transaction, id))
}

fn add_pair(transaction: &Transaction<'_>, id: &str, pair: &NewPair) -> Result<()> {
    let hash = fingerprint(&pair.refresh_token);
    let values = params![hash, id, pair.refresh_expires_at, pair.jti, pair.revoked_until];
    transaction.run(sql::ADD_REFRESH_TOKEN, values).map(drop)
}

/// A refresh token that is unknown, expired or used up.
pub(crate) struct InvalidToken;

/// Uses up a refresh token for a new pair: whose it is, and when its session began. The refusal has to be committed: a
/// token that is used a second time ends the session.
pub(crate) fn refresh(
    transaction: &Transaction<'_>,
    refresh_token: &str,
    pair: &NewPair,
    may_continue: impl Fn(&User) -> bool,
) -> Result<std::result::Result<(User, i64), InvalidToken>> {
    let hash = fingerprint(refresh_token);
    let Some(known) = find(transaction, &hash)? else { return Ok(Err(InvalidToken)) };
    if known.used {
        tracing::warn!(session = known.session, user = known.user, "a refresh token was shown twice");
        end(transaction, &known.session)?;
        return Ok(Err(InvalidToken));
    }
    let user = users::by_id(transaction, &known.user)?.filter(may_continue);
    let Some(user) = user.filter(|_| known.expires_at > now()) else { return Ok(Err(InvalidToken)) };
    transaction.run(sql::USE_UP_REFRESH_TOKEN, [&hash])?;
    transaction.run(sql::USE_SESSION, params![known.session, now(), pair.refresh_expires_at])?;
    transaction.run(sql::DROP_OLD_REFRESH_TOKENS, params![known.session, now()])?;
    add_pair(transaction, &known.session, pair)?;
    Ok(Ok((user, known.began_at)))
}

struct Known {
    session: String,
    expires_at: i64,
    used: bool,
    user: String,
    began_at: i64,
}

fn find(transaction: &Transaction<'_>, hash: &[u8]) -> Result<Option<Known>> {
    transaction.row(sql::REFRESH_TOKEN, [hash], |row| {
        Ok(Known {
            session: row.get(0)?,
            expires_at: row.get(1)?,
            used: row.get(2)?,
            user: row.get(3)?,
            began_at: row.get(4)?,
        })
    })
}

/// Ends the session of a refresh token, if there is one.
pub(crate) fn end_by_token(transaction: &Transaction<'_>, refresh_token: &str) -> Result<()> {
    match find(transaction, &fingerprint(refresh_token))? {
        Some(known) => end(transaction, &known.session),
        None => Ok(()),
    }
}

/// Ends a session and revokes its access tokens.
pub(crate) fn end(transaction: &Transaction<'_>, id: &str) -> Result<()> {
    let tokens: Vec<(String, i64)> =
        transaction
            .rows(sql::ACCESS_TOKENS_OF_SESSION, params![id, now()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for (jti, until) in &tokens {
        changes::note(transaction, Subject::Token(jti, *until))?;
    }
    transaction.run(sql::DROP_SESSION, [id]).map(drop)
}

/// Lets no session last longer than `refresh_token` says now: it may have begun under another setting.
pub(crate) fn apply_rule(transaction: &Transaction<'_>, refresh_token: Duration) -> Result<()> {
    let latest = now().saturating_add(seconds(refresh_token));
    transaction.run(sql::SHORTEN_SESSIONS, [latest])?;
    transaction.run(sql::SHORTEN_REFRESH_TOKENS, [latest]).map(drop)
}

/// Ends every session of an account.
pub(crate) fn end_all(transaction: &Transaction<'_>, user: &str) -> Result<()> {
    let all: Vec<String> = transaction.rows(sql::ALL_SESSIONS_OF_USER, [user], |row| row.get(0))?;
    all.iter().try_for_each(|id| end(transaction, id))
}

/// A session as its owner is shown it.
#[derive(Serialize)]
pub(crate) struct Listed {
    id: String,
    created_at: i64,
    last_used_at: i64,
    expires_at: i64,
    address: String,
    user_agent: String,
}

pub(crate) fn list(transaction: &Transaction<'_>, user: &str) -> Result<Vec<Listed>> {
    transaction.rows(sql::SESSIONS_OF_USER, params![user, now()], |row| {
        Ok(Listed {
            id: row.get(0)?,
            created_at: row.get(1)?,
            last_used_at: row.get(2)?,
            expires_at: row.get(3)?,
            address: row.get(4)?,
            user_agent: row.get(5)?,
        })
    })
}

/// Ends a session of an account.
pub(crate) fn end_own(transaction: &Transaction<'_>, id: &str, user: &str) -> Result<(), Failure> {
    let owner: Option<String> = transaction.row(sql::SESSION_OWNER, [id], |row| row.get(0))?;
    if owner.as_deref() != Some(user) {
        return Err(Problem::not_found("session").into());
    }
    Ok(end(transaction, id)?)
}

/// Drops the sessions that ended before `before`.
pub(crate) fn sweep(transaction: &Transaction<'_>, before: i64) -> Result<()> {
    transaction.run(sql::DROP_OLD_SESSIONS, [before]).map(drop)
}

/// Sessions that could be refreshed.
pub(crate) fn count(transaction: &Transaction<'_>) -> Result<i64> {
    Ok(transaction.row(sql::COUNT_SESSIONS, [now()], |row| row.get(0))?.unwrap_or_default())
}
