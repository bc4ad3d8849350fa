//! Accounts and roles over HTTP, for administrators.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use rusqlite::params;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::accounts::{self, Added, User};
use crate::auth::internal;
use crate::db::Result as DbResult;
use crate::extract::{Body, Path, Query};
use crate::identity::Administrator;
use crate::password;
use crate::problem::{Problem, Result};
use crate::serve::App;
use crate::sql;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    username: String,
    password: String,
    #[serde(default)]
    roles: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Roles {
    roles: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grants {
    permissions: Vec<Grant>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grant {
    permission: String,
    resource: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByName {
    username: Option<String>,
}

/// The most roles or grants in one call.
const MOST: usize = 1_000;

/// Whether `name` can be a username, a role, a collection: it stands in paths, headers and lists.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte))
}

pub(crate) const NAME: &str = "1 to 128 of A-Z a-z 0-9 . _ - @";

fn unprocessable(code: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
}

/// `POST /v1/users`
pub(crate) async fn create(
    _: Administrator,
    State(app): State<App>,
    Body(new): Body<NewUser>,
) -> Result<Response> {
    if !is_name(&new.username) {
        return Err(unprocessable("invalid_username", format!("a username is {NAME}")));
    }
    let faults = password::faults(&new.password, app.password_min_length);
    if !faults.is_empty() {
        return Err(unprocessable("weak_password", format!("a password has {}", faults.join(", "))));
    }
    let hash = password::hash_async(new.password).await.map_err(internal)?;
    let (name, roles) = (new.username.clone(), new.roles);
    let added = app.database.write(move |session| accounts::add(session, &name, &hash, &roles)).await?;
    match added {
        Added::Id(id) => {
            app.metrics.user_operations.with_label_values(&["create"]).inc();
            Ok((StatusCode::CREATED, Json(json!({"id": id, "username": new.username}))).into_response())
        }
        Added::Taken => Err(Problem::new(StatusCode::CONFLICT, "username_taken", "this username is taken")),
        Added::UnknownRole(role) => Err(unprocessable("unknown_role", format!("there is no role `{role}`"))),
    }
}

fn view(user: &User, roles: &[String]) -> Value {
    json!({"id": user.id, "username": user.username, "active": user.active, "roles": roles})
}

/// `GET /v1/users?username=`
pub(crate) async fn list(
    _: Administrator,
    State(app): State<App>,
    Query(by): Query<ByName>,
) -> Result<Json<Value>> {
    let users = app
        .database
        .read(move |session| {
            let users = match &by.username {
                Some(name) => accounts::by_name(session, name)?.into_iter().collect(),
                None => accounts::list(session)?,
            };
            users
                .iter()
                .map(|user| Ok(view(user, &accounts::roles(session, &user.id)?)))
                .collect::<DbResult<Vec<_>>>()
        })
        .await?;
    Ok(Json(json!({"items": users})))
}

/// `GET /v1/users/{id}`
pub(crate) async fn show(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let user = app
        .database
        .read(move |session| {
            let Some(user) = accounts::by_id(session, &id)? else { return Ok(None) };
            let roles = accounts::roles(session, &id)?;
            Ok(Some(view(&user, &roles)))
        })
        .await?;
    user.map(Json).ok_or_else(|| Problem::not_found("user"))
}

/// `PUT /v1/users/{id}/roles`: the whole set.
pub(crate) async fn set_roles(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
    Body(body): Body<Roles>,
) -> Result<Json<Value>> {
    if body.roles.len() > MOST {
        return Err(unprocessable("too_many", format!("at most {MOST} roles")));
    }
    let outcome = app
        .database
        .write(move |session| {
            if accounts::by_id(session, &id)?.is_none() {
                return Ok(Err(Problem::not_found("user")));
            }
            if let Some(unknown) = accounts::unknown_role(session, &body.roles)? {
                return Ok(Err(unprocessable("unknown_role", format!("there is no role `{unknown}`"))));
            }
            session.run(sql::CLEAR_ROLES_OF_USER, [&id])?;
            for role in &body.roles {
                session.run(sql::ADD_ROLE_TO_USER, [&id, role])?;
            }
            accounts::changed(session, "user", &id).map(Ok)
        })
        .await??;
    app.metrics.user_operations.with_label_values(&["set_roles"]).inc();
    Ok(Json(json!({"revision": outcome})))
}

/// `PUT /v1/roles/{role}/permissions`: the whole set; the role is made when it is not there.
pub(crate) async fn set_grants(
    _: Administrator,
    State(app): State<App>,
    Path(role): Path<String>,
    Body(body): Body<Grants>,
) -> Result<Json<Value>> {
    if !is_name(&role) || role == "admin" {
        let detail = format!("a role is {NAME}, and `admin` stays as it is");
        return Err(unprocessable("invalid_role", detail));
    }
    if body.permissions.len() > MOST {
        return Err(unprocessable("too_many", format!("at most {MOST} permissions")));
    }
    if let Some(grant) = body.permissions.iter().find(|grant| !grant.is_valid()) {
        let detail = "a permission is a word like records:read or `*`, a resource a name that may end in `*`";
        return Err(unprocessable(
            "invalid_grant",
            format!("{detail} (got {:?} on {:?})", grant.permission, grant.resource),
        ));
    }
    let revision = app
        .database
        .write(move |session| {
            session.run(sql::ADD_ROLE, [&role])?;
            session.run(sql::CLEAR_GRANTS, [&role])?;
            for grant in &body.permissions {
                session.run(sql::ADD_GRANT, params![role, grant.permission, grant.resource])?;
            }
            accounts::changed(session, "role", &role)
        })
        .await?;
    Ok(Json(json!({"revision": revision})))
}

impl Grant {
    fn is_valid(&self) -> bool {
        let word = |text: &str| {
            (1..=128).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte))
        };
        let resource = self.resource.strip_suffix('*').unwrap_or(&self.resource);
        (self.permission == "*" || word(&self.permission))
            && (word(resource) || (resource.is_empty() && self.resource == "*"))
    }
}
