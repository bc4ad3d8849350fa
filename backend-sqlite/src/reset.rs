//! Passwords that are forgotten or too old. A reset is asked for by name or address and answered the same for everybody,
//! at once; what is known is looked up and mailed afterwards. Its token is good once, for half an hour.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use rusqlite::params;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::accounts::{self, User};
use crate::auth::{accepted, internal};
use crate::db::{Result as DbResult, Session};
use crate::extract::Body;
use crate::lockout;
use crate::password::{self, Verdict};
use crate::problem::{Problem, Result};
use crate::serve::App;
use crate::sql;
use crate::tokens::{fingerprint, now, random_token};
use crate::totp;

/// A token to reset a password is good for so long, in seconds.
const LIFETIME: i64 = 30 * 60;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Forgot {
    username: Option<String>,
    email: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reset {
    token: String,
    password: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangePassword {
    username: String,
    password: String,
    new_password: String,
    totp: Option<String>,
}

/// `POST /v1/auth/forgot-password`: 202 for everybody.
pub(crate) async fn forgot(State(app): State<App>, Body(forgot): Body<Forgot>) -> Result<Response> {
    if forgot.username.is_none() && forgot.email.is_none() {
        return Err(Problem::bad_request("send `username` or `email`"));
    }
    // After the answer, which therefore takes as long whether there is such an account or not.
    tokio::spawn(async move {
        if let Err(error) = send(&app, forgot).await {
            tracing::error!(error = format!("{error:#}"), "a mail to reset a password was not sent");
        }
    });
    Ok(accepted())
}

async fn send(app: &App, forgot: Forgot) -> anyhow::Result<()> {
    let users = app.database.read(move |session| match (&forgot.username, &forgot.email) {
        (Some(name), _) => Ok(accounts::by_name(session, name)?.into_iter().collect()),
        (None, Some(email)) => accounts::by_email(session, email),
        (None, None) => Ok(Vec::new()),
    });
    for user in users.await?.into_iter().filter(|user| user.active) {
        let Some(email) = user.email.clone() else { continue };
        let token = random_token()?;
        let (hash, id) = (fingerprint(&token), user.id.clone());
        let keep = move |session: &Session<'_>| {
            // The newest one counts.
            session.run(sql::CLEAR_RESET_TOKENS, [&id])?;
            session.run(sql::ADD_RESET_TOKEN, params![hash, id, now() + LIFETIME])
        };
        app.database.write(keep).await?;
        app.mail.send_reset(&email, &user.username, &token).await?;
        app.metrics.user_operations.with_label_values(&["forgot_password"]).inc();
    }
    Ok(())
}

fn invalid() -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "reset_token_invalid",
        "the token is wrong, too old or used up: ask for another",
    )
}

/// `POST /v1/auth/reset-password`: ends every session of the account, and unlocks it.
pub(crate) async fn reset(State(app): State<App>, Body(reset): Body<Reset>) -> Result<StatusCode> {
    let hash = fingerprint(&reset.token);
    let known = hash.clone();
    let user = app.database.read(move |session| owner(session, &known)).await?.ok_or_else(invalid)?;
    app.accounts
        .check_password(&reset.password, &[&user.username, user.email.as_deref().unwrap_or_default()])?;
    let password_hash = password::hash_async(reset.password).await.map_err(internal)?;
    let done = app.database.write(move |session| {
        let Some(user) = owner(session, &hash)? else { return Ok(Err(invalid())) };
        session.row(sql::TAKE_RESET_TOKEN, [&hash], |_| Ok(()))?;
        accounts::set_password(session, &user, &password_hash).map(Ok)
    });
    done.await??;
    app.metrics.user_operations.with_label_values(&["reset_password"]).inc();
    Ok(StatusCode::NO_CONTENT)
}

fn owner(session: &Session<'_>, hash: &[u8]) -> DbResult<Option<User>> {
    let found: Option<(String, i64)> =
        session.row(sql::RESET_TOKEN, [hash], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let Some((id, _)) = found.filter(|(_, ends)| *ends > now()) else { return Ok(None) };
    Ok(accounts::by_id(session, &id)?.filter(|user| user.active))
}

/// `POST /v1/auth/change-password`: the old password is the proof, so that one that has expired can be changed. A wrong
/// one counts as a failed login.
pub(crate) async fn change(State(app): State<App>, Body(change): Body<ChangePassword>) -> Result<StatusCode> {
    let refused = || Problem::unauthorized("login_failed", "the username or the password is wrong");
    let name = change.username.clone();
    let user = app.database.read(move |session| accounts::by_name(session, &name)).await?;
    let user = user.filter(|user| user.active);
    let stored = user.as_ref().map(|user| user.password_hash.clone());
    let right = password::judge(change.password.clone(), stored).await.map_err(internal)? != Verdict::Wrong;
    let mut new_hash = None;
    if let Some(user) = user.as_ref().filter(|_| right) {
        let about = [user.username.as_str(), user.email.as_deref().unwrap_or_default(), &change.password];
        app.accounts.check_password(&change.new_password, &about)?;
        new_hash = Some(password::hash_async(change.new_password).await.map_err(internal)?);
    }
    let (rule, code, name) = (app.accounts.lockout, change.totp, change.username);
    let judged = user.filter(|_| right);
    let done = app.database.write(move |session| {
        let now = judged.as_ref().map(|user| accounts::by_id(session, &user.id)).transpose()?.flatten();
        let same = |now: &User| judged.as_ref().is_some_and(|user| user.password_hash == now.password_hash);
        let user = now.filter(|now| now.active && same(now));
        let (Some(user), Some(hash)) = (user, &new_hash) else {
            lockout::failed(session, &name, &rule)?;
            return Ok(false);
        };
        let second = match (&user.totp_secret, &code) {
            (None, _) => true,
            (Some(_), Some(code)) => totp::use_code(session, &user, code)?,
            (Some(_), None) => false,
        };
        if !second || lockout::is_locked(session, &name)? {
            lockout::failed(session, &name, &rule)?;
            return Ok(false);
        }
        accounts::set_password(session, &user, hash).map(|()| true)
    });
    if !done.await? {
        app.metrics.failed_logins.inc();
        return Err(refused());
    }
    app.metrics.user_operations.with_label_values(&["change_password"]).inc();
    Ok(StatusCode::NO_CONTENT)
}
