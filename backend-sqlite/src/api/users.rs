//! Accounts over HTTP, for administrators.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::app::App;
use crate::http::extract::{Body, PageQuery, Path, Query};
use crate::http::identity::Administrator;
use crate::model::changes::{self, Subject};
use crate::model::lockout;
use crate::model::password_hash;
use crate::model::permissions;
use crate::model::sessions;
use crate::model::users::{self, Added, NewUser, User};
use crate::problem::{Problem, Result};
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Create {
    username: String,
    password: String,
    email: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Roles {
    pub(crate) roles: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByName {
    username: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// The most roles, grants or members in one call.
pub(crate) const MOST: usize = 1_000;

/// Whether `name` can be a username, a role, a collection: it stands in paths, headers and lists.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte))
}

pub(crate) const NAME: &str = "1 to 128 of A-Z a-z 0-9 . _ - @";

/// An address that mail can be sent to.
pub(crate) fn check_email(email: Option<String>) -> Result<Option<String>> {
    let Some(email) = email else { return Ok(None) };
    let fine = email.len() <= 254 && email.parse::<lettre::Address>().is_ok();
    if fine {
        return Ok(Some(email));
    }
    Err(Problem::unprocessable("invalid_email", "an e-mail address like ann@example.org"))
}

/// The answer to an account that was to be made.
pub(crate) fn created(added: Added, username: &str) -> Result<Response> {
    match added {
        Added::Id(id) => {
            Ok((StatusCode::CREATED, Json(json!({"id": id, "username": username}))).into_response())
        }
        Added::Taken => Err(Problem::new(StatusCode::CONFLICT, "username_taken", "this username is taken")),
        Added::UnknownRole(role) => Err(unknown_role(&role)),
    }
}

pub(crate) fn unknown_role(role: &str) -> Problem {
    Problem::unprocessable("unknown_role", format!("there is no role `{role}`"))
}

pub(crate) fn too_many(what: &str) -> Problem {
    Problem::unprocessable("too_many", format!("at most {MOST} {what}"))
}

/// `POST /v1/users`
pub(crate) async fn create(
    _: Administrator,
    State(app): State<App>,
    Body(new): Body<Create>,
) -> Result<Response> {
    if !is_name(&new.username) {
        return Err(Problem::unprocessable("invalid_username", format!("a username is {NAME}")));
    }
    if new.roles.len() > MOST {
        return Err(too_many("roles"));
    }
    let email = check_email(new.email)?;
    let about = vec![new.username.clone(), email.clone().unwrap_or_default()];
    let password_hash = password_hash::accept(app.accounts.password, new.password, about).await?;
    let user = NewUser {
        username: new.username.clone(),
        email,
        email_verified: true,
        password_hash,
        roles: new.roles,
    };
    let added = app.database.write(move |transaction| users::add(transaction, &user)).await?;
    app.metrics.user_operations.with_label_values(&["create"]).inc();
    created(added, &new.username)
}

fn view(transaction: &Transaction<'_>, user: &User) -> DbResult<Value> {
    Ok(json!({
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "active": user.active,
        "locked": lockout::is_locked_somewhere(transaction, &user.username)?,
        "totp": user.totp_secret.is_some(),
        "roles": users::roles(transaction, &user.id)?,
        "groups": permissions::groups(transaction, &user.id)?,
    }))
}

/// `GET /v1/users?username=&limit=&cursor=`
pub(crate) async fn list(
    _: Administrator,
    State(app): State<App>,
    Query(by): Query<ByName>,
) -> Result<Json<Value>> {
    let page = PageQuery { limit: by.limit, cursor: by.cursor };
    let (limit, after) = (page.limit()?, page.after()?);
    let listed = app.database.read(move |transaction| {
        let (users, more) = match &by.username {
            Some(name) => (users::by_name(transaction, name)?.into_iter().collect(), false),
            None => users::page(transaction, &after, limit)?,
        };
        let next = users.last().filter(|_| more).map(|user| PageQuery::cursor(&user.username));
        let items = users.iter().map(|user| view(transaction, user)).collect::<DbResult<Vec<_>>>()?;
        Ok((items, next))
    });
    let (items, next) = listed.await?;
    Ok(Json(match next {
        Some(next) => json!({"items": items, "next": next}),
        None => json!({"items": items}),
    }))
}

/// `GET /v1/users/{id}`
pub(crate) async fn show(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let user = app.database.read(move |transaction| {
        users::by_id(transaction, &id)?.map(|user| view(transaction, &user)).transpose()
    });
    user.await?.map(Json).ok_or_else(|| Problem::not_found("user"))
}

/// Changes an account that is there; the number of the change.
async fn change(
    app: &App,
    operation: &str,
    id: String,
    work: impl Fn(&Transaction<'_>, &User) -> DbResult<Result<()>> + Send + 'static,
) -> Result<Json<Value>> {
    let changed = app.database.write(move |transaction| {
        let Some(user) = users::by_id(transaction, &id)? else { return Ok(Err(Problem::not_found("user"))) };
        match work(transaction, &user)? {
            Ok(()) => changes::note(transaction, Subject::User(&user.id)).map(Ok),
            Err(problem) => Ok(Err(problem)),
        }
    });
    let revision = changed.await??;
    app.metrics.user_operations.with_label_values(&[operation]).inc();
    Ok(Json(json!({"revision": revision})))
}

/// `PUT /v1/users/{id}/roles`: the whole set.
pub(crate) async fn set_roles(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
    Body(body): Body<Roles>,
) -> Result<Json<Value>> {
    if body.roles.len() > MOST {
        return Err(too_many("roles"));
    }
    change(&app, "set_roles", id, move |transaction, user| {
        if let Some(unknown) = users::unknown_role(transaction, &body.roles)? {
            return Ok(Err(unknown_role(&unknown)));
        }
        transaction.run(sql::CLEAR_ROLES_OF_USER, [&user.id])?;
        for role in &body.roles {
            transaction.run(sql::ADD_ROLE_TO_USER, [&user.id, role])?;
        }
        Ok(Ok(()))
    })
    .await
}

/// `POST /v1/users/{id}/deactivate`: it may do nothing any more; its sessions end, its tokens are revoked, its API keys
/// are refused.
pub(crate) async fn deactivate(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    change(&app, "deactivate", id, |transaction, user| {
        transaction.run(sql::SET_ACTIVE, rusqlite::params![user.id, false])?;
        transaction.run(sql::CLEAR_RESET_TOKENS, [&user.id])?;
        transaction.run(sql::CLEAR_PLACES, [&user.id])?;
        sessions::end_all(transaction, &user.id).map(Ok)
    })
    .await
}

/// `POST /v1/users/{id}/activate`
pub(crate) async fn activate(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    change(&app, "activate", id, |transaction, user| {
        transaction.run(sql::SET_ACTIVE, rusqlite::params![user.id, true]).map(|_| Ok(()))
    })
    .await
}

/// `DELETE /v1/users/{id}/totp`: takes the second factor off, for an owner who has lost it.
pub(crate) async fn remove_totp(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    change(&app, "totp_remove", id, |transaction, user| {
        transaction.run(sql::DISABLE_TOTP, [&user.id])?;
        transaction.run(sql::CLEAR_RECOVERY_CODES, [&user.id]).map(|_| Ok(()))
    })
    .await
}

/// `POST /v1/users/{id}/unlock`: forgets its failed logins, wherever they came from.
pub(crate) async fn unlock(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let guard = Arc::clone(&app.login_guard);
    change(&app, "unlock", id, move |transaction, user| {
        guard.forget(guard.key().name(&user.username));
        lockout::clear(transaction, &user.username).map(Ok)
    })
    .await
}
