//! Sessions: a login and all that is refreshed from it. Each refresh token is good once; one that is shown a second time
//! was stolen, from the thief or by him, and ends the session. When a session ends, its access tokens are revoked.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rusqlite::params;
use serde_json::{Value, json};

use crate::clock::{now, seconds};
use crate::http::app::App;
use crate::http::extract::Path;
use crate::http::identity::Account;
use crate::model::access_tokens::NewPair;
use crate::model::changes::{self, Subject};
use crate::model::users::{self, User};
use crate::problem::{Problem, Result};
use crate::random::fingerprint;
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

/// The most sessions of one account; a further login ends the one that was used least lately.
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
) -> DbResult<()> {
    let id = uuid::Uuid::now_v7().to_string();
    let Origin { address, user_agent } = origin;
    let values = params![id, user.id, now(), pair.refresh_expires_at, address, user_agent];
    transaction.run(sql::ADD_SESSION, values)?;
    add_pair(transaction, &id, pair)?;
    let too_many: Vec<String> =
        transaction.rows(sql::OLDEST_SESSIONS, params![user.id, MOST], |row| row.get(0))?;
    too_many.iter().try_for_each(|id| end(transaction, id))
}

fn add_pair(transaction: &Transaction<'_>, id: &str, pair: &NewPair) -> DbResult<()> {
    let hash = fingerprint(&pair.refresh_token);
    let values = params![hash, id, pair.refresh_expires_at, pair.jti, pair.revoked_until];
    transaction.run(sql::ADD_REFRESH_TOKEN, values).map(drop)
}

/// Gives a new pair for a refresh token: whose it is, and when its session began. `None` when it is unknown, expired or
/// used up.
pub(crate) fn turn(
    transaction: &Transaction<'_>,
    refresh_token: &str,
    pair: &NewPair,
    may_go_on: impl Fn(&User) -> bool,
) -> DbResult<Option<(User, i64)>> {
    let hash = fingerprint(refresh_token);
    let Some(known) = find(transaction, &hash)? else { return Ok(None) };
    if known.used {
        tracing::warn!(session = known.session, user = known.user, "a refresh token was shown twice");
        end(transaction, &known.session)?;
        return Ok(None);
    }
    let user = users::by_id(transaction, &known.user)?.filter(may_go_on);
    let Some(user) = user.filter(|_| known.expires_at > now()) else { return Ok(None) };
    transaction.run(sql::USE_UP_REFRESH_TOKEN, [&hash])?;
    transaction.run(sql::USE_SESSION, params![known.session, now(), pair.refresh_expires_at])?;
    transaction.run(sql::DROP_OLD_REFRESH_TOKENS, params![known.session, now()])?;
    add_pair(transaction, &known.session, pair)?;
    Ok(Some((user, known.began_at)))
}

struct Known {
    session: String,
    expires_at: i64,
    used: bool,
    user: String,
    began_at: i64,
}

fn find(transaction: &Transaction<'_>, hash: &[u8]) -> DbResult<Option<Known>> {
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
pub(crate) fn end_by_token(transaction: &Transaction<'_>, refresh_token: &str) -> DbResult<()> {
    match find(transaction, &fingerprint(refresh_token))? {
        Some(known) => end(transaction, &known.session),
        None => Ok(()),
    }
}

/// Ends a session and revokes its access tokens.
pub(crate) fn end(transaction: &Transaction<'_>, id: &str) -> DbResult<()> {
    let tokens: Vec<(String, i64)> =
        transaction
            .rows(sql::ACCESS_TOKENS_OF_SESSION, params![id, now()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for (jti, until) in &tokens {
        changes::note(transaction, Subject::Token(jti, *until))?;
    }
    transaction.run(sql::DROP_SESSION, [id]).map(drop)
}

/// Lets no session last longer than `refresh_token` says now: it may have begun under another setting.
pub(crate) fn follow_rule(transaction: &Transaction<'_>, refresh_token: Duration) -> DbResult<()> {
    let latest = now().saturating_add(seconds(refresh_token));
    transaction.run(sql::SHORTEN_SESSIONS, [latest])?;
    transaction.run(sql::SHORTEN_REFRESH_TOKENS, [latest]).map(drop)
}

/// Ends every session of an account.
pub(crate) fn end_all(transaction: &Transaction<'_>, user: &str) -> DbResult<()> {
    let all: Vec<String> = transaction.rows(sql::ALL_SESSIONS_OF_USER, [user], |row| row.get(0))?;
    all.iter().try_for_each(|id| end(transaction, id))
}

/// `GET /v1/auth/sessions`: one's own.
pub(crate) async fn list(Account(user): Account, State(app): State<App>) -> Result<Json<Value>> {
    let items = app.database.read(move |transaction| {
        transaction.rows(sql::SESSIONS_OF_USER, params![user.id, now()], |row| {
            Ok(json!({
                "id": row.get::<_, String>(0)?,
                "created_at": row.get::<_, i64>(1)?,
                "last_used_at": row.get::<_, i64>(2)?,
                "expires_at": row.get::<_, i64>(3)?,
                "address": row.get::<_, String>(4)?,
                "user_agent": row.get::<_, String>(5)?,
            }))
        })
    });
    Ok(Json(json!({"items": items.await?})))
}

/// `DELETE /v1/auth/sessions/{id}`: one of one's own.
pub(crate) async fn remove(
    Account(user): Account,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    app.database
        .write(move |transaction| {
            let owner: Option<String> = transaction.row(sql::SESSION_OWNER, [&id], |row| row.get(0))?;
            if owner.as_ref() != Some(&user.id) {
                return Ok(Err(Problem::not_found("session")));
            }
            end(transaction, &id).map(Ok)
        })
        .await??;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /v1/auth/sessions`: all of one's own, this one included.
pub(crate) async fn remove_all(Account(user): Account, State(app): State<App>) -> Result<StatusCode> {
    app.database.write(move |transaction| end_all(transaction, &user.id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sessions that could be refreshed.
pub(crate) fn count(transaction: &Transaction<'_>) -> DbResult<i64> {
    Ok(transaction.row(sql::COUNT_SESSIONS, [now()], |row| row.get(0))?.unwrap_or_default())
}
