//! `/v1/roles`: what each role grants.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::ADMIN;
use crate::http::app::App;
use crate::http::extract::{Body, Path};
use crate::http::identity::Administrator;
use crate::http::page::names;
use crate::model::grants::Grant;
use crate::model::names::{NAME, check_count, is_name};
use crate::model::roles;
use crate::problem::{Problem, Result};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grants {
    permissions: Vec<Grant>,
}

/// `GET /v1/roles`
pub(crate) async fn list(_: Administrator, State(app): State<App>) -> Result<Json<Value>> {
    Ok(names(&app.database.read(roles::list).await?, None))
}

/// `GET /v1/roles/{role}/permissions`
pub(crate) async fn grants(
    _: Administrator,
    State(app): State<App>,
    Path(role): Path<String>,
) -> Result<Json<Value>> {
    let grants = app.database.read(move |transaction| roles::grants(transaction, &role)).await?;
    let grants = grants.ok_or_else(|| Problem::not_found("role"))?;
    Ok(Json(json!({"permissions": grants})))
}

/// `PUT /v1/roles/{role}/permissions`: the whole set; a role that does not exist is made.
pub(crate) async fn set_grants(
    _: Administrator,
    State(app): State<App>,
    Path(role): Path<String>,
    Body(body): Body<Grants>,
) -> Result<Json<Value>> {
    if !is_name(&role) || role == ADMIN {
        let detail = format!("a role is {NAME}, and `admin` stays as it is");
        return Err(Problem::unprocessable("invalid_role", detail));
    }
    check_count(body.permissions.len(), "permissions")?;
    body.permissions.iter().try_for_each(Grant::check)?;
    let set = app.database.write(move |transaction| roles::set_grants(transaction, &role, &body.permissions));
    Ok(Json(json!({"revision": set.await?})))
}
