//! `/v1/groups`: who is in a group, and which roles it gives.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::users::Roles;
use crate::http::app::App;
use crate::http::extract::{Body, Path};
use crate::http::identity::Administrator;
use crate::http::page::names;
use crate::model::groups::{self, Group};
use crate::model::names::{NAME, check_count, is_name};
use crate::problem::{Problem, Result};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Members {
    users: Vec<String>,
}

fn check_name(group: &str) -> Result<()> {
    if is_name(group) {
        return Ok(());
    }
    Err(Problem::unprocessable("invalid_group", format!("a group is {NAME}")))
}

/// `GET /v1/groups`
pub(crate) async fn list(_: Administrator, State(app): State<App>) -> Result<Json<Value>> {
    Ok(names(&app.database.read(groups::list).await?, None))
}

/// `GET /v1/groups/{group}`
pub(crate) async fn show(
    _: Administrator,
    State(app): State<App>,
    Path(group): Path<String>,
) -> Result<Json<Value>> {
    let group = app.database.read(move |transaction| groups::by_name(transaction, &group)).await?;
    group.map(|group: Group| Json(json!(group))).ok_or_else(|| Problem::not_found("group"))
}

/// `PUT /v1/groups/{group}/members`: the whole set; a group that does not exist is made.
pub(crate) async fn set_members(
    _: Administrator,
    State(app): State<App>,
    Path(group): Path<String>,
    Body(body): Body<Members>,
) -> Result<Json<Value>> {
    check_name(&group)?;
    check_count(body.users.len(), "members")?;
    let set = app.database.write(move |transaction| groups::set_members(transaction, &group, &body.users));
    Ok(Json(json!({"revision": set.await?})))
}

/// `PUT /v1/groups/{group}/roles`: the whole set; a group that does not exist is made.
pub(crate) async fn set_roles(
    _: Administrator,
    State(app): State<App>,
    Path(group): Path<String>,
    Body(body): Body<Roles>,
) -> Result<Json<Value>> {
    check_name(&group)?;
    check_count(body.roles.len(), "roles")?;
    let set = app.database.write(move |transaction| groups::set_roles(transaction, &group, &body.roles));
    Ok(Json(json!({"revision": set.await?})))
}

/// `DELETE /v1/groups/{group}`: its members lose what it gave them.
pub(crate) async fn remove(
    _: Administrator,
    State(app): State<App>,
    Path(group): Path<String>,
) -> Result<Json<Value>> {
    let revision = app.database.write(move |transaction| groups::remove(transaction, &group)).await?;
    Ok(Json(json!({"revision": revision})))
}
