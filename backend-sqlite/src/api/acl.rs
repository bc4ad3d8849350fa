//! Access control lists: a permission on a resource that is allowed or denied to one user, role or group. A denial counts
//! more than whatever else allows.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use rusqlite::params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::app::App;
use crate::http::extract::{Body, PageQuery, Path, Query};
use crate::http::identity::Administrator;
use crate::model::changes::{self, Subject};
use crate::model::grants::Grant;
use crate::model::users;
use crate::problem::{Problem, Result};
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

/// Whether an entry allows or denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Effect {
    Allow,
    Deny,
}

impl Effect {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewEntry {
    principal: String,
    permission: String,
    resource: String,
    effect: Effect,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByResource {
    resource: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// `user:ID`, `role:NAME` or `group:NAME`, of one that is there.
fn find_principal<'p>(transaction: &Transaction<'_>, text: &'p str) -> DbResult<Option<(&'p str, &'p str)>> {
    let Some((kind, name)) = text.split_once(':') else { return Ok(None) };
    let there = match kind {
        "user" => users::by_id(transaction, name)?.is_some(),
        "role" => transaction.row(sql::ROLE_EXISTS, [name], |_| Ok(()))?.is_some(),
        "group" => transaction.row(sql::GROUP_EXISTS, [name], |_| Ok(()))?.is_some(),
        _ => false,
    };
    Ok(there.then_some((kind, name)))
}

/// `POST /v1/acl`: 201; the entry that is there already when it says the same.
pub(crate) async fn add(
    _: Administrator,
    State(app): State<App>,
    Body(new): Body<NewEntry>,
) -> Result<Response> {
    Grant { permission: new.permission.clone(), resource: new.resource.clone() }.check()?;
    let added = app.database.write(move |transaction| {
        let NewEntry { principal, permission, resource, effect } = &new;
        let Some((kind, name)) = find_principal(transaction, principal)? else {
            let detail = "the principal is user:ID, role:NAME or group:NAME of one that is there";
            return Ok(Err(Problem::unprocessable(
                "unknown_principal",
                format!("{detail} (got {principal:?})"),
            )));
        };
        let same = params![kind, name, permission, resource, effect.as_str()];
        let known: Option<String> = transaction.row(sql::SAME_ACL, same, |row| row.get(0))?;
        if let Some(id) = known {
            return Ok(Ok((id, changes::revision(transaction)?)));
        }
        let id = uuid::Uuid::now_v7().to_string();
        transaction.run(sql::ADD_ACL, params![id, kind, name, permission, resource, effect.as_str()])?;
        let revision = changes::note(transaction, Subject::Acl(kind, name, permission, resource))?;
        Ok(Ok((id, revision)))
    });
    let (id, revision) = added.await??;
    Ok((StatusCode::CREATED, Json(json!({"id": id, "revision": revision}))).into_response())
}

/// `GET /v1/acl?resource=&limit=&cursor=`
pub(crate) async fn list(
    _: Administrator,
    State(app): State<App>,
    Query(by): Query<ByResource>,
) -> Result<Json<Value>> {
    let page = PageQuery { limit: by.limit, cursor: by.cursor };
    let (limit, after) = (page.limit()?, page.after()?);
    let listed = app.database.read(move |transaction| {
        let entry = |row: &rusqlite::Row<'_>| {
            let (kind, principal): (String, String) = (row.get(1)?, row.get(2)?);
            Ok(json!({
                "id": row.get::<_, String>(0)?,
                "principal": format!("{kind}:{principal}"),
                "permission": row.get::<_, String>(3)?,
                "resource": row.get::<_, String>(4)?,
                "effect": row.get::<_, String>(5)?,
            }))
        };
        transaction.page(sql::LIST_ACL, params![by.resource, after], entry, limit, |_| false)
    });
    let (items, more) = listed.await?;
    let next = items.last().filter(|_| more).and_then(|item| item["id"].as_str()).map(PageQuery::cursor);
    Ok(Json(match next {
        Some(next) => json!({"items": items, "next": next}),
        None => json!({"items": items}),
    }))
}

/// `DELETE /v1/acl/{id}`
pub(crate) async fn remove(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let removed = app.database.write(move |transaction| {
        let entry: Option<[String; 4]> = transaction
            .row(sql::DROP_ACL, [&id], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
        let Some([kind, name, permission, resource]) = entry else {
            return Ok(Err(Problem::not_found("entry")));
        };
        changes::note(transaction, Subject::Acl(&kind, &name, &permission, &resource)).map(Ok)
    });
    Ok(Json(json!({"revision": removed.await??})))
}
