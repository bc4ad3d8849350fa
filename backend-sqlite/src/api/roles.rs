//! Roles and groups: what a role grants, who is in a group, which roles a group gives.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use rusqlite::params;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::users::{MOST, NAME, Roles, is_name, too_many, unknown_role};
use crate::config::ADMIN;
use crate::http::app::App;
use crate::http::extract::{Body, Path};
use crate::http::identity::Administrator;
use crate::model::changes::{self, Subject};
use crate::model::grants::Grant;
use crate::model::users;
use crate::problem::{Problem, Result};
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grants {
    permissions: Vec<Grant>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Members {
    users: Vec<String>,
}

fn names(items: &[String]) -> Json<Value> {
    Json(json!({"items": items.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()}))
}

/// `GET /v1/roles`
pub(crate) async fn list(_: Administrator, State(app): State<App>) -> Result<Json<Value>> {
    let all = app.database.read(|transaction| transaction.rows(sql::LIST_ROLES, [], |row| row.get(0)));
    Ok(names(&all.await?))
}

/// `GET /v1/roles/{role}/permissions`
pub(crate) async fn grants(
    _: Administrator,
    State(app): State<App>,
    Path(role): Path<String>,
) -> Result<Json<Value>> {
    let grants = app.database.read(move |transaction| {
        if transaction.row(sql::ROLE_EXISTS, [&role], |_| Ok(()))?.is_none() {
            return Ok(None);
        }
        let grant = |row: &rusqlite::Row<'_>| Ok(Grant { permission: row.get(0)?, resource: row.get(1)? });
        transaction.rows(sql::GRANTS_OF_ROLE, [&role], grant).map(Some)
    });
    let grants = grants.await?.ok_or_else(|| Problem::not_found("role"))?;
    Ok(Json(json!({"permissions": grants})))
}

/// `PUT /v1/roles/{role}/permissions`: the whole set; the role is made when it is not there.
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
    if body.permissions.len() > MOST {
        return Err(too_many("permissions"));
    }
    body.permissions.iter().try_for_each(Grant::check)?;
    let changed = app.database.write(move |transaction| {
        transaction.run(sql::ADD_ROLE, [&role])?;
        transaction.run(sql::CLEAR_GRANTS, [&role])?;
        for grant in &body.permissions {
            transaction.run(sql::ADD_GRANT, params![role, grant.permission, grant.resource])?;
        }
        changes::note(transaction, Subject::Role(&role))
    });
    Ok(Json(json!({"revision": changed.await?})))
}

/// `GET /v1/groups`
pub(crate) async fn list_groups(_: Administrator, State(app): State<App>) -> Result<Json<Value>> {
    let all = app.database.read(|transaction| transaction.rows(sql::LIST_GROUPS, [], |row| row.get(0)));
    Ok(names(&all.await?))
}

/// `GET /v1/groups/{group}`
pub(crate) async fn show_group(
    _: Administrator,
    State(app): State<App>,
    Path(group): Path<String>,
) -> Result<Json<Value>> {
    let shown = app.database.read(move |transaction| {
        if transaction.row(sql::GROUP_EXISTS, [&group], |_| Ok(()))?.is_none() {
            return Ok(None);
        }
        let roles: Vec<String> = transaction.rows(sql::ROLES_OF_GROUP, [&group], |row| row.get(0))?;
        Ok(Some(json!({"name": group, "users": members(transaction, &group)?, "roles": roles})))
    });
    shown.await?.map(Json).ok_or_else(|| Problem::not_found("group"))
}

fn members(transaction: &Transaction<'_>, group: &str) -> DbResult<BTreeSet<String>> {
    Ok(transaction.rows(sql::MEMBERS_OF_GROUP, [group], |row| row.get(0))?.into_iter().collect())
}

fn check_group(group: &str) -> Result<()> {
    if is_name(group) {
        return Ok(());
    }
    Err(Problem::unprocessable("invalid_group", format!("a group is {NAME}")))
}

/// `PUT /v1/groups/{group}/members`: the whole set; the group is made when it is not there.
pub(crate) async fn set_members(
    _: Administrator,
    State(app): State<App>,
    Path(group): Path<String>,
    Body(body): Body<Members>,
) -> Result<Json<Value>> {
    check_group(&group)?;
    if body.users.len() > MOST {
        return Err(too_many("members"));
    }
    let changed = app.database.write(move |transaction| {
        for id in &body.users {
            if users::by_id(transaction, id)?.is_none() {
                let detail = format!("there is no user `{id}`");
                return Ok(Err(Problem::unprocessable("unknown_user", detail)));
            }
        }
        transaction.run(sql::ADD_GROUP, [&group])?;
        let before = members(transaction, &group)?;
        let after: BTreeSet<String> = body.users.iter().cloned().collect();
        for id in before.difference(&after) {
            transaction.run(sql::DROP_MEMBER, [&group, id])?;
        }
        for id in after.difference(&before) {
            transaction.run(sql::ADD_MEMBER, [&group, id])?;
        }
        for id in before.symmetric_difference(&after) {
            changes::note(transaction, Subject::User(id))?;
        }
        changes::revision(transaction).map(Ok)
    });
    Ok(Json(json!({"revision": changed.await??})))
}

/// `PUT /v1/groups/{group}/roles`: the whole set; the group is made when it is not there.
pub(crate) async fn set_group_roles(
    _: Administrator,
    State(app): State<App>,
    Path(group): Path<String>,
    Body(body): Body<Roles>,
) -> Result<Json<Value>> {
    check_group(&group)?;
    if body.roles.len() > MOST {
        return Err(too_many("roles"));
    }
    let changed = app.database.write(move |transaction| {
        if let Some(unknown) = users::unknown_role(transaction, &body.roles)? {
            return Ok(Err(unknown_role(&unknown)));
        }
        transaction.run(sql::ADD_GROUP, [&group])?;
        transaction.run(sql::CLEAR_ROLES_OF_GROUP, [&group])?;
        for role in &body.roles {
            transaction.run(sql::ADD_ROLE_TO_GROUP, [&group, role])?;
        }
        changes::note(transaction, Subject::Group(&group)).map(Ok)
    });
    Ok(Json(json!({"revision": changed.await??})))
}

/// `DELETE /v1/groups/{group}`: its members lose what it gave them.
pub(crate) async fn remove_group(
    _: Administrator,
    State(app): State<App>,
    Path(group): Path<String>,
) -> Result<Json<Value>> {
    let removed = app.database.write(move |transaction| {
        if transaction.run(sql::DROP_GROUP, [&group])? == 0 {
            return Ok(Err(Problem::not_found("group")));
        }
        transaction.run(sql::DROP_ACL_OF_GROUP, [&group])?; // another group of this name is another group
        changes::note(transaction, Subject::Group(&group)).map(Ok)
    });
    Ok(Json(json!({"revision": removed.await??})))
}
