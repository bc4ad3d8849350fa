//! Login, refresh, logout. Wrong, unknown and inactive are one answer and take one time.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::accounts::{self, User};
use crate::db::{Result as DbResult, Session};
use crate::extract::Body;
use crate::password;
use crate::problem::{Problem, Result};
use crate::serve::App;
use crate::sql;
use crate::tokens::{fingerprint, now, random_token, seconds};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    username: String,
    password: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refresh {
    refresh_token: String,
}

#[derive(Serialize)]
pub(crate) struct Tokens {
    access_token: String,
    refresh_token: String,
    token_type: &'static str,
    expires_in: u64,
}

/// `POST /v1/auth/login`
pub(crate) async fn login(State(app): State<App>, Body(login): Body<Login>) -> Result<Json<Tokens>> {
    let name = login.username;
    let user = app.database.read(move |session| accounts::by_name(session, &name)).await?;
    let user = user.filter(|user| user.active);
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    let verified = password::verify_async(login.password, hash).await.map_err(internal)?;
    let refresh_token = random_token().map_err(internal)?;
    let session = match user.filter(|_| verified) {
        None => None,
        Some(user) => {
            let (hash, expires_at) = (fingerprint(&refresh_token), refresh_expiry(&app));
            let begin = move |session: &Session<'_>| {
                // A password that was changed while this one was verified begins no session.
                let now = accounts::by_id(session, &user.id)?;
                let unchanged = |now: &User| now.active && now.password_hash == user.password_hash;
                now.filter(unchanged).map(|now| begin_session(session, now, &hash, expires_at)).transpose()
            };
            app.database.write(begin).await?
        }
    };
    let outcome = if session.is_some() { "ok" } else { "refused" };
    app.metrics.auth_requests.with_label_values(&["password", outcome]).inc();
    if let Some((user, roles)) = session {
        tokens(&app, &user, &roles, refresh_token)
    } else {
        app.metrics.failed_logins.inc();
        Err(Problem::unauthorized("login_failed", "the username or the password is wrong"))
    }
}

/// `POST /v1/auth/refresh`: the token is used up and a new pair is given, in one transaction.
pub(crate) async fn refresh(State(app): State<App>, Body(refresh): Body<Refresh>) -> Result<Json<Tokens>> {
    let taken = fingerprint(&refresh.refresh_token);
    let refresh_token = random_token().map_err(internal)?;
    let (hash, expires_at) = (fingerprint(&refresh_token), refresh_expiry(&app));
    let turn = move |session: &Session<'_>| {
        let owner: Option<(String, i64)> =
            session.row(sql::TAKE_REFRESH_TOKEN, [&taken], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let Some((id, _)) = owner.filter(|(_, ends)| *ends > now()) else { return Ok(None) };
        let user = accounts::by_id(session, &id)?.filter(|user| user.active);
        user.map(|user| begin_session(session, user, &hash, expires_at)).transpose()
    };
    let session = app.database.write(turn).await?;
    let outcome = if session.is_some() { "ok" } else { "refused" };
    app.metrics.auth_requests.with_label_values(&["refresh", outcome]).inc();
    match session {
        Some((user, roles)) => tokens(&app, &user, &roles, refresh_token),
        None => Err(Problem::unauthorized("refresh_token_invalid", "log in again")),
    }
}

/// `POST /v1/auth/logout`: the refresh token is worth nothing from now on; a second time is no error.
pub(crate) async fn logout(State(app): State<App>, Body(refresh): Body<Refresh>) -> Result<StatusCode> {
    let hash = fingerprint(&refresh.refresh_token);
    app.database.write(move |session| session.row(sql::TAKE_REFRESH_TOKEN, [&hash], |_| Ok(()))).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn refresh_expiry(app: &App) -> i64 {
    now().saturating_add(seconds(app.refresh_lifetime))
}

/// Keeps a refresh token of `user`; the account with its roles.
fn begin_session(
    session: &Session<'_>,
    user: User,
    hash: &[u8],
    expires_at: i64,
) -> DbResult<(User, Vec<String>)> {
    session.run(sql::DROP_OLD_REFRESH_TOKENS, params![user.id, now()])?;
    session.run(sql::ADD_REFRESH_TOKEN, params![hash, user.id, expires_at])?;
    let roles = accounts::roles(session, &user.id)?;
    Ok((user, roles))
}

fn tokens(app: &App, user: &User, roles: &[String], refresh_token: String) -> Result<Json<Tokens>> {
    let access_token = app.signer.sign(&user.id, roles).map_err(internal)?;
    let expires_in = app.signer.expires_in();
    Ok(Json(Tokens { access_token, refresh_token, token_type: "Bearer", expires_in }))
}

/// An error that says nothing to the client and everything to the log.
#[expect(clippy::needless_pass_by_value, reason = "what `map_err` takes")]
pub(crate) fn internal(error: anyhow::Error) -> Problem {
    tracing::error!(error = format!("{error:#}"), "a request failed");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        "something went wrong here, not with the request",
    )
}
