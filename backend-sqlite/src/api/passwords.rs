//! Passwords that are forgotten or too old. A reset is asked for by name or address and answered the same for everybody;
//! what is known is looked up and mailed afterwards. Its token is good once, for half an hour.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::api::auth::accepted;
use crate::clock::now;
use crate::http::app::App;
use crate::http::extract::Body;
use crate::http::identity::Caller;
use crate::http::proof::{self, Attempt, Proven};
use crate::model::password_hash;
use crate::model::users::{self, User};
use crate::outbox;
use crate::problem::{Problem, Result};
use crate::random::fingerprint;
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

/// A token to reset a password is good for so long, in seconds.
pub(crate) const LIFETIME: i64 = 30 * 60;

/// No name and no address is longer, in bytes.
const LONGEST: usize = 320;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Forgot {
    pub(crate) username: Option<String>,
    pub(crate) email: Option<String>,
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
    /// Whether the account's API keys end, too.
    #[serde(default)]
    revoke_api_keys: bool,
}

/// `POST /v1/auth/forgot-password`: 202 for everybody, once the request is kept. Whose account is meant is looked up
/// afterwards, so that the answer takes as long whether there is such an account or not.
pub(crate) async fn forgot(State(app): State<App>, Body(forgot): Body<Forgot>) -> Result<Response> {
    // Both together would be another key to count by, each time.
    let ((Some(named), None) | (None, Some(named))) = (&forgot.username, &forgot.email) else {
        return Err(Problem::bad_request("send `username` or `email`, one of them"));
    };
    if !app.mail.is_sent() {
        let detail = "no mail is sent here: ask an administrator for a new password";
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "mail_not_configured", detail));
    }
    if named.len() <= LONGEST {
        outbox::keep(&app, forgot).await?;
    }
    Ok(accepted())
}

fn invalid() -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "reset_token_invalid",
        "the token is wrong, too old or used up: ask for another",
    )
}

/// `POST /v1/auth/reset-password`: ends every session and API key of the account, and unlocks it.
pub(crate) async fn reset(State(app): State<App>, Body(reset): Body<Reset>) -> Result<StatusCode> {
    let hash = fingerprint(&reset.token);
    let known = hash.clone();
    let user = app.database.read(move |transaction| owner(transaction, &known)).await?.ok_or_else(invalid)?;
    let about = vec![user.username, user.email.unwrap_or_default()];
    let password_hash = password_hash::accept(app.accounts.password, reset.password, about).await?;
    let done = app.database.write(move |transaction| {
        let Some(user) = owner(transaction, &hash)? else { return Ok(Err(invalid())) };
        transaction.row(sql::TAKE_RESET_TOKEN, [&hash], |_| Ok(()))?;
        users::reset_password(transaction, &user, &password_hash)?;
        transaction.run(sql::VERIFY_EMAIL, [&user.id])?; // which is where the token was sent
        Ok(Ok(user.username))
    });
    let guard = &app.login_guard;
    guard.forget(guard.key().name(&done.await??));
    app.metrics.user_operations.with_label_values(&["reset_password"]).inc();
    Ok(StatusCode::NO_CONTENT)
}

fn owner(transaction: &Transaction<'_>, hash: &[u8]) -> DbResult<Option<User>> {
    let found: Option<(String, i64)> =
        transaction.row(sql::RESET_TOKEN, [hash], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let Some((id, _)) = found.filter(|(_, ends)| *ends > now()) else { return Ok(None) };
    Ok(users::by_id(transaction, &id)?.filter(|user| user.active))
}

/// `POST /v1/auth/change-password`: the old password is the proof, so that one that has expired can be changed. It is
/// judged as at a login, lock and second factor included, and a wrong one counts as a failed login.
pub(crate) async fn change(
    State(app): State<App>,
    caller: Caller,
    Body(change): Body<ChangePassword>,
) -> Result<StatusCode> {
    let ChangePassword { username: name, password, new_password, totp, revoke_api_keys } = change;
    let about = vec![name.clone(), password.clone()];
    let judged =
        proof::judge(&app, Attempt { name, password, totp, whereabouts: caller.whereabouts }).await?;
    // Only for whoever has the old password: an estimate takes a core for a while, which is nothing for a stranger to
    // ask for. And before a code of the second factor is used up.
    let mut hash = None;
    if judged.is_right() {
        match password_hash::accept(app.accounts.password, new_password, about).await {
            Ok(accepted) => hash = Some(accepted),
            Err(problem) => {
                judged.withdraw();
                return Err(problem);
            }
        }
    }
    let (user, hash) = match (judged.settle(&app).await?, hash) {
        (Proven::Yes(owner), Some(hash)) => (owner.user, hash),
        (proven, _) => return Err(proven.refusal()),
    };
    let set = app.database.write(move |transaction| {
        let user = proof::unchanged(transaction, Some(&user))?;
        let set = if revoke_api_keys { users::reset_password } else { users::set_password };
        user.map(|user| set(transaction, &user, &hash)).transpose()
    });
    if set.await?.is_none() {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "changed_meanwhile",
            "the account was changed meanwhile",
        ));
    }
    app.metrics.user_operations.with_label_values(&["change_password"]).inc();
    Ok(StatusCode::NO_CONTENT)
}
