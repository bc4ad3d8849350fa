//! `/v1/auth`: passwords that are forgotten or too old. A reset is asked for by name or address, with the same response
//! for everybody; the account is found and mailed afterwards.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::http::app::App;
use crate::http::extract::Body;
use crate::http::identity::Caller;
use crate::http::proof::{self, Credentials, Proven};
use crate::model::{credentials, password_hash, password_resets};
use crate::problem::{Problem, Result};
use crate::random::fingerprint;

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

/// `POST /v1/auth/forgot-password`: 202 for everybody, once the request is stored. Whose account is meant is looked up
/// afterwards, so that the response takes as long whether there is such an account or not.
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
        let request = app.database.write(move |transaction| {
            password_resets::request(transaction, forgot.username.as_deref(), forgot.email.as_deref())
        });
        request.await?;
        app.reset_requested.notify_one();
    }
    Ok((StatusCode::ACCEPTED, Json(json!({"status": "accepted"}))).into_response())
}

/// `POST /v1/auth/reset-password`: ends every session and API key of the account, and unlocks it.
pub(crate) async fn reset(State(app): State<App>, Body(reset): Body<Reset>) -> Result<StatusCode> {
    let hash = fingerprint(&reset.token);
    let known = hash.clone();
    let user = app.database.read(move |transaction| password_resets::owner(transaction, &known)).await?;
    let user = user.ok_or_else(password_resets::invalid_token)?;
    let about = vec![user.username, user.email.unwrap_or_default()];
    let password_hash = password_hash::accept(app.rules.password, reset.password, about).await?;
    let redeemed =
        app.database.write(move |transaction| password_resets::redeem(transaction, &hash, &password_hash));
    let username = redeemed.await?;
    app.login_guard.forget(app.login_guard.key().name(&username));
    app.metrics.user_operations.with_label_values(&["reset_password"]).inc();
    Ok(StatusCode::NO_CONTENT)
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
    let judged = proof::judge(&app, Credentials { name, password, totp, client: caller.client }).await?;
    // Only for whoever has the old password: an estimate takes a core for a while, which a stranger must not be able to
    // ask for. And before a code of the second factor is used up.
    let mut hash = None;
    if judged.is_right() {
        match password_hash::accept(app.rules.password, new_password, about).await {
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
    let changed = app
        .database
        .write(move |transaction| credentials::change_password(transaction, &user, &hash, revoke_api_keys));
    if !changed.await? {
        return Err(Problem::conflict("changed_meanwhile", "the account was changed meanwhile"));
    }
    app.metrics.user_operations.with_label_values(&["change_password"]).inc();
    Ok(StatusCode::NO_CONTENT)
}
