//! `/v1/auth`: register, login, refresh, logout.

use std::sync::Arc;
use std::time::Instant;

use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{Operation, Response as Described};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::users::created;
use crate::http::app::App;
use crate::http::extract::Body;
use crate::http::identity::Caller;
use crate::http::proof::{self, Credentials, Owner, Proven};
use crate::model::access_tokens::NewPair;
use crate::model::logins::{self, NewLogin, Standing};
use crate::model::names::{check_email, check_username};
use crate::model::users::NewUser;
use crate::model::{password_hash, sessions, users};
use crate::problem::{Problem, Result, internal};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Register {
    username: String,
    password: String,
    email: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    username: String,
    password: String,
    totp: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refresh {
    refresh_token: String,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Tokens {
    access_token: String,
    refresh_token: String,
    token_type: &'static str,
    expires_in: u64,
    /// A role of the account needs a second factor, and does not count until there is one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    totp_enrollment_required: bool,
}

/// `POST /v1/auth/register`: an account without any role.
pub(crate) async fn register(State(app): State<App>, Body(new): Body<Register>) -> Result<Response> {
    check_username(&new.username)?;
    new.email.as_deref().map_or(Ok(()), check_email)?;
    let about = vec![new.username.clone(), new.email.clone().unwrap_or_default()];
    let password_hash = password_hash::accept(app.rules.password, new.password, about).await?;
    let user = NewUser {
        username: new.username.clone(),
        email: new.email,
        email_verified: false,
        password_hash,
        roles: Vec::new(),
    };
    let added = app.database.write(move |transaction| users::add(transaction, &user)).await?;
    app.metrics.user_operations.with_label_values(&["register"]).inc();
    created(added, &new.username)
}

/// Tokens, and the cookie that the device is known by from now on.
pub(crate) struct LoggedIn {
    tokens: Json<Tokens>,
    device: HeaderValue,
}

impl IntoResponse for LoggedIn {
    fn into_response(self) -> Response {
        ([(header::SET_COOKIE, self.device)], self.tokens).into_response()
    }
}

impl OperationOutput for LoggedIn {
    type Inner = <Json<Tokens> as OperationOutput>::Inner;

    fn operation_response(context: &mut GenContext, operation: &mut Operation) -> Option<Described> {
        <Json<Tokens> as OperationOutput>::operation_response(context, operation)
    }

    fn inferred_responses(
        context: &mut GenContext,
        operation: &mut Operation,
    ) -> Vec<(Option<u16>, Described)> {
        <Json<Tokens> as OperationOutput>::inferred_responses(context, operation)
    }
}

/// `POST /v1/auth/login`
pub(crate) async fn login(
    State(app): State<App>,
    caller: Caller,
    Body(login): Body<Login>,
) -> Result<LoggedIn> {
    let started = Instant::now();
    let Login { username: name, password, totp } = login;
    let credentials = Credentials { name, password: password.clone(), totp, client: caller.client.clone() };
    let proven = proof::prove(&app, credentials).await?;
    app.metrics.auth_duration.with_label_values(&["password"]).observe(started.elapsed().as_secs_f64());
    let count = |result| app.metrics.auth_requests.with_label_values(&["password", result]).inc();
    let Owner { user, device_is_known } = match proven {
        Proven::Yes(owner) => owner,
        Proven::No => {
            count("refused");
            return Err(proven.refusal());
        }
        Proven::TotpRequired => {
            count("totp_required");
            return Err(proven.refusal());
        }
    };
    if user.has_expired_password(app.rules.password_expiry) {
        count("password_expired");
        return Err(Problem::forbidden(
            "password_expired",
            "the password is too old: change it with POST /v1/auth/change-password",
        ));
    }
    let better_hash = password_hash::better_hash(password, &user.password_hash).await?;
    let pair = app.signer.new_pair(app.rules.refresh_token).map_err(internal)?;
    let (client, device) = caller.client.with_device(device_is_known).map_err(internal)?;
    let place = client.place(app.login_guard.key());
    let new = NewLogin { user, better_hash, origin: caller.origin(), place, pair: pair.clone() };
    let rules = Arc::clone(&app.rules);
    let begun = app.database.write(move |transaction| logins::begin(transaction, &new, &rules)).await?;
    let Some(standing) = begun else { return Err(Proven::No.refusal()) };
    count("ok");
    Ok(LoggedIn { tokens: tokens(&app, &standing, pair)?, device })
}

/// `POST /v1/auth/refresh`: the token is used up and a new pair is given, in one transaction.
pub(crate) async fn refresh(State(app): State<App>, Body(refresh): Body<Refresh>) -> Result<Json<Tokens>> {
    let pair = app.signer.new_pair(app.rules.refresh_token).map_err(internal)?;
    let (rules, next) = (Arc::clone(&app.rules), pair.clone());
    let refreshed = app.database.write_and_commit_refusal(move |transaction| {
        logins::refresh(transaction, &refresh.refresh_token, &next, &rules)
    });
    let refreshed = refreshed.await?;
    let result = if refreshed.is_ok() { "ok" } else { "refused" };
    app.metrics.auth_requests.with_label_values(&["refresh", result]).inc();
    match refreshed {
        Ok(standing) => tokens(&app, &standing, pair),
        Err(sessions::InvalidToken) => Err(Problem::unauthorized("refresh_token_invalid", "log in again")),
    }
}

/// `POST /v1/auth/logout`: the session ends, its access tokens with it; a second time is no error.
pub(crate) async fn logout(State(app): State<App>, Body(refresh): Body<Refresh>) -> Result<StatusCode> {
    app.database
        .write(move |transaction| sessions::end_by_token(transaction, &refresh.refresh_token))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn tokens(app: &App, standing: &Standing, pair: NewPair) -> Result<Json<Tokens>> {
    let signed = app.signer.sign(&standing.user.id, &standing.roles, &pair, standing.auth_time);
    Ok(Json(Tokens {
        access_token: signed.map_err(internal)?,
        refresh_token: pair.refresh_token,
        token_type: "Bearer",
        expires_in: app.signer.expires_in(),
        totp_enrollment_required: standing.totp_enrollment_required,
    }))
}
