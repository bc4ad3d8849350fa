//! `/v1/users`: accounts, for administrators.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::app::App;
use crate::http::extract::{Body, Path, Query};
use crate::http::identity::Administrator;
use crate::http::page::{PageQuery, page};
use crate::model::names::{check_count, check_email, check_username};
use crate::model::users::{Added, NewUser};
use crate::model::{administration, password_hash, permissions, roles, users};
use crate::problem::{Failure, Problem, Result};
use crate::storage::Transaction;

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

/// The response to a new account.
pub(crate) fn created(added: Added, username: &str) -> Result<Response> {
    match added {
        Added::Id(id) => {
            Ok((StatusCode::CREATED, Json(json!({"id": id, "username": username}))).into_response())
        }
        Added::Taken => Err(Problem::conflict("username_taken", "this username is taken")),
        Added::UnknownRole(role) => Err(roles::unknown_role(&role)),
    }
}

/// `POST /v1/users`
pub(crate) async fn create(
    _: Administrator,
    State(app): State<App>,
    Body(new): Body<Create>,
) -> Result<Response> {
    check_username(&new.username)?;
    check_count(new.roles.len(), "roles")?;
    new.email.as_deref().map_or(Ok(()), check_email)?;
    let about = vec![new.username.clone(), new.email.clone().unwrap_or_default()];
    let password_hash = password_hash::accept(app.rules.password, new.password, about).await?;
    let user = NewUser {
        username: new.username.clone(),
        email: new.email,
        email_verified: true,
        password_hash,
        roles: new.roles,
    };
    let added = app.database.write(move |transaction| users::add(transaction, &user)).await?;
    app.metrics.user_operations.with_label_values(&["create"]).inc();
    created(added, &new.username)
}

/// `GET /v1/users?username=&limit=&cursor=`
pub(crate) async fn list(
    _: Administrator,
    State(app): State<App>,
    Query(by): Query<ByName>,
) -> Result<Json<Value>> {
    let query = PageQuery { limit: by.limit, cursor: by.cursor };
    let (limit, after) = (query.limit()?, query.after()?);
    let listed = app.database.read(move |transaction| match &by.username {
        Some(name) => administration::by_name(transaction, name).map(|users| (users, false)),
        None => administration::page(transaction, &after, limit),
    });
    let (users, more) = listed.await?;
    let next = users.last().filter(|_| more).map(|user| PageQuery::cursor(&user.username));
    Ok(page(&users, next))
}

/// `GET /v1/users/{id}`
pub(crate) async fn show(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let user = app.database.read(move |transaction| administration::show(transaction, &id)).await?;
    user.map(|user| Json(json!(user))).ok_or_else(|| Problem::not_found("user"))
}

/// `GET /v1/users/{id}/permissions`: all that an account may do, and what is denied to it.
pub(crate) async fn permissions(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let rules = std::sync::Arc::clone(&app.rules);
    let listed = app
        .database
        .read(move |transaction| permissions::effective(transaction, &id, &rules.require_totp_for));
    let effective = listed.await?.ok_or_else(|| Problem::not_found("user"))?;
    Ok(Json(json!(effective)))
}

/// Changes an account, and answers with the number of the change.
async fn change(
    app: &App,
    operation: &str,
    work: impl Fn(&Transaction<'_>) -> std::result::Result<i64, Failure> + Send + 'static,
) -> Result<Json<Value>> {
    let revision = app.database.write(work).await?;
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
    check_count(body.roles.len(), "roles")?;
    change(&app, "set_roles", move |transaction| administration::set_roles(transaction, &id, &body.roles))
        .await
}

/// `POST /v1/users/{id}/deactivate`
pub(crate) async fn deactivate(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    change(&app, "deactivate", move |transaction| administration::deactivate(transaction, &id)).await
}

/// `POST /v1/users/{id}/activate`
pub(crate) async fn activate(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    change(&app, "activate", move |transaction| administration::activate(transaction, &id)).await
}

/// `DELETE /v1/users/{id}/totp`
pub(crate) async fn remove_totp(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    change(&app, "totp_remove", move |transaction| administration::remove_second_factor(transaction, &id))
        .await
}

/// `POST /v1/users/{id}/unlock`: forgets its failed logins, in the database and in memory.
pub(crate) async fn unlock(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let guard = std::sync::Arc::clone(&app.login_guard);
    change(&app, "unlock", move |transaction| {
        let (username, revision) = administration::unlock(transaction, &id)?;
        guard.forget(guard.key().name(&username));
        Ok(revision)
    })
    .await
}
