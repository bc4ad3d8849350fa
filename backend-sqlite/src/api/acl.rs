//! `/v1/acl`: entries of access control lists.

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
use crate::model::acl::{self, NewEntry};
use crate::model::grants::Grant;
use crate::problem::Result;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByResource {
    resource: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// `POST /v1/acl`: 201; the entry that exists already when it says the same.
pub(crate) async fn add(
    _: Administrator,
    State(app): State<App>,
    Body(new): Body<NewEntry>,
) -> Result<Response> {
    Grant { permission: new.permission.clone(), resource: new.resource.clone() }.check()?;
    let (id, revision) = app.database.write(move |transaction| acl::add(transaction, &new)).await?;
    Ok((StatusCode::CREATED, Json(json!({"id": id, "revision": revision}))).into_response())
}

/// `GET /v1/acl?resource=&limit=&cursor=`
pub(crate) async fn list(
    _: Administrator,
    State(app): State<App>,
    Query(by): Query<ByResource>,
) -> Result<Json<Value>> {
    let query = PageQuery { limit: by.limit, cursor: by.cursor };
    let (limit, after) = (query.limit()?, query.after()?);
    let listed =
        app.database.read(move |transaction| acl::page(transaction, by.resource.as_deref(), &after, limit));
    let (entries, more) = listed.await?;
    let next = entries.last().filter(|_| more).map(|entry| PageQuery::cursor(&entry.id));
    Ok(page(&entries, next))
}

/// `DELETE /v1/acl/{id}`
pub(crate) async fn remove(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let revision = app.database.write(move |transaction| acl::remove(transaction, &id)).await?;
    Ok(Json(json!({"revision": revision})))
}
