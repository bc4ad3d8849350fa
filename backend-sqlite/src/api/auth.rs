//! Register, login, refresh, logout.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rusqlite::params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Instant;

use crate::api::users::{NAME, check_email, created, is_name};
use crate::http::app::App;
use crate::http::extract::Body;
use crate::http::identity::Caller;
use crate::http::proof::{self, Attempt, Owner, Proven};
use crate::model::access_tokens::NewPair;
use crate::model::lockout;
use crate::model::password_hash;
use crate::model::permissions;
use crate::model::sessions;
use crate::model::users::{self, Added, NewUser, User};
use crate::problem::{Problem, Result, internal};
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

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
    if !is_name(&new.username) {
        return Err(Problem::unprocessable("invalid_username", format!("a username is {NAME}")));
    }
    let email = check_email(new.email)?;
    let about = vec![new.username.clone(), email.clone().unwrap_or_default()];
    let password_hash = password_hash::accept(app.accounts.password, new.password, about).await?;
    let user = NewUser {
        username: new.username.clone(),
        email,
        email_verified: false,
        password_hash,
        roles: Vec::new(),
    };
    let added: Added = app.database.write(move |transaction| users::add(transaction, &user)).await?;
    app.metrics.user_operations.with_label_values(&["register"]).inc();
    created(added, &new.username)
}

/// An account with the roles that its tokens carry.
struct Standing {
    user: User,
    roles: Vec<String>,
    totp_enrollment_required: bool,
    auth_time: i64,
}

/// Tokens, and the cookie that the device is known by from now on.
pub(crate) struct LoggedIn {
    pub(crate) tokens: Json<Tokens>,
    pub(crate) device: HeaderValue,
}

impl IntoResponse for LoggedIn {
    fn into_response(self) -> Response {
        ([(header::SET_COOKIE, self.device)], self.tokens).into_response()
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
    let whereabouts = caller.whereabouts.clone();
    let attempt = Attempt { name, password: password.clone(), totp, whereabouts };
    let proven = proof::prove(&app, attempt).await?;
    app.metrics.auth_duration.with_label_values(&["password"]).observe(started.elapsed().as_secs_f64());
    let count = |word| app.metrics.auth_requests.with_label_values(&["password", word]).inc();
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
    if user.has_expired_password(app.accounts.password_expiry) {
        count("password_expired");
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "password_expired",
            "the password is too old: change it with POST /v1/auth/change-password",
        ));
    }
    let better = password_hash::better_hash(password, &user.password_hash).await?;
    let pair = app.signer.new_pair(app.accounts.refresh_token).map_err(internal)?;
    let (whereabouts, device) = caller.whereabouts.with_device(device_is_known).map_err(internal)?;
    let place = app.login_guard.key().place(&whereabouts);
    let (state, origin, next) = (app.clone(), caller.origin(), pair.clone());
    let begin = move |transaction: &Transaction<'_>| {
        let Some(mut user) = proof::unchanged(transaction, Some(&user))? else { return Ok(None) };
        if let Some(better) = &better {
            transaction.run(sql::UPGRADE_PASSWORD, params![user.id, user.password_hash, better])?;
            user.password_hash.clone_from(better);
        }
        sessions::begin(transaction, &user, &origin, &next)?;
        lockout::remember(transaction, &user.id, &place)?;
        standing(transaction, &state, user, next.issued_at).map(Some)
    };
    let Some(standing) = app.database.write(begin).await? else { return Err(Proven::No.refusal()) };
    count("ok");
    Ok(LoggedIn { tokens: tokens(&app, &standing, pair)?, device })
}

fn standing(transaction: &Transaction<'_>, app: &App, user: User, auth_time: i64) -> DbResult<Standing> {
    let all = permissions::all_roles(transaction, &user.id)?;
    let roles = permissions::counting_roles(&all, &user, &app.accounts.require_totp_for);
    Ok(Standing { totp_enrollment_required: roles.len() < all.len(), user, roles, auth_time })
}

/// `POST /v1/auth/refresh`: the token is used up and a new pair is given, in one transaction.
pub(crate) async fn refresh(State(app): State<App>, Body(refresh): Body<Refresh>) -> Result<Json<Tokens>> {
    let pair = app.signer.new_pair(app.accounts.refresh_token).map_err(internal)?;
    let (state, next) = (app.clone(), pair.clone());
    let turned = app.database.write(move |transaction| {
        let may_go_on =
            |user: &User| user.active && !user.has_expired_password(state.accounts.password_expiry);
        let user = sessions::turn(transaction, &refresh.refresh_token, &next, may_go_on)?;
        user.map(|(user, auth_time)| standing(transaction, &state, user, auth_time)).transpose()
    });
    let turned = turned.await?;
    let word = if turned.is_some() { "ok" } else { "refused" };
    app.metrics.auth_requests.with_label_values(&["refresh", word]).inc();
    match turned {
        Some(standing) => tokens(&app, &standing, pair),
        None => Err(Problem::unauthorized("refresh_token_invalid", "log in again")),
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

/// The answer to a body that is fine, where there is nothing to say.
pub(crate) fn accepted() -> Response {
    (StatusCode::ACCEPTED, Json(serde_json::json!({"status": "accepted"}))).into_response()
}
