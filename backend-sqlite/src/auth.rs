//! Login, refresh, logout. Wrong, unknown and inactive are one answer and take one time.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::accounts;
use crate::password;
use crate::problem::{Body, Problem, Result};
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
    let outcome = if verified { "ok" } else { "refused" };
    app.metrics.auth_requests.with_label_values(&["password", outcome]).inc();
    if let Some(user) = user.filter(|_| verified) {
        issue(&app, user.id).await
    } else {
        app.metrics.failed_logins.inc();
        Err(Problem::unauthorized("login_failed", "the username or the password is wrong"))
    }
}

/// `POST /v1/auth/refresh`: the token is used up, and a new pair is given.
pub(crate) async fn refresh(State(app): State<App>, Body(refresh): Body<Refresh>) -> Result<Json<Tokens>> {
    let hash = fingerprint(&refresh.refresh_token);
    let taken: Option<(String, i64)> = app
        .database
        .write(move |session| {
            session.row(sql::TAKE_REFRESH_TOKEN, [&hash], |row| Ok((row.get(0)?, row.get(1)?)))
        })
        .await?;
    let user = match taken.filter(|(_, expires_at)| *expires_at > now()) {
        Some((id, _)) => app.database.read(move |session| accounts::by_id(session, &id)).await?,
        None => None,
    };
    let user = user.filter(|user| user.active);
    let outcome = if user.is_some() { "ok" } else { "refused" };
    app.metrics.auth_requests.with_label_values(&["refresh", outcome]).inc();
    match user {
        Some(user) => issue(&app, user.id).await,
        None => Err(Problem::unauthorized("refresh_token_invalid", "log in again")),
    }
}

/// `POST /v1/auth/logout`: the refresh token is worth nothing from now on; a second time is no error.
pub(crate) async fn logout(State(app): State<App>, Body(refresh): Body<Refresh>) -> Result<StatusCode> {
    let hash = fingerprint(&refresh.refresh_token);
    app.database.write(move |session| session.row(sql::TAKE_REFRESH_TOKEN, [&hash], |_| Ok(()))).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn issue(app: &App, user: String) -> Result<Json<Tokens>> {
    let refresh_token = random_token().map_err(internal)?;
    let (hash, expires_at) =
        (fingerprint(&refresh_token), now().saturating_add(seconds(app.refresh_lifetime)));
    let id = user.clone();
    let roles = app
        .database
        .write(move |session| {
            session.run(sql::DROP_OLD_REFRESH_TOKENS, params![id, now()])?;
            session.run(sql::ADD_REFRESH_TOKEN, params![hash, id, expires_at])?;
            accounts::roles(session, &id)
        })
        .await?;
    let access_token = app.signer.sign(&user, &roles).map_err(internal)?;
    Ok(Json(Tokens {
        access_token,
        refresh_token,
        token_type: "Bearer",
        expires_in: app.signer.expires_in(),
    }))
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
