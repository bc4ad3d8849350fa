//! Access control lists: a permission on a resource that is allowed or denied to one user, role or group. A denial
//! counts more than whatever else allows.

use rusqlite::params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::changes::{self, Subject};
use super::{groups, roles, users};
use crate::problem::{Failure, Problem};
use crate::storage::{Result, Transaction, sql};

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
    pub(crate) principal: String,
    pub(crate) permission: String,
    pub(crate) resource: String,
    pub(crate) effect: Effect,
}

#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) id: String,
    principal: String,
    permission: String,
    resource: String,
    effect: String,
}

/// `user:ID`, `role:NAME` or `group:NAME`, of one that exists.
fn find_principal<'p>(transaction: &Transaction<'_>, text: &'p str) -> Result<Option<(&'p str, &'p str)>> {
    let Some((kind, name)) = text.split_once(':') else { return Ok(None) };
    let exists = match kind {
        "user" => users::by_id(transaction, name)?.is_some(),
        "role" => roles::exists(transaction, name)?,
        "group" => groups::exists(transaction, name)?,
        _ => false,
    };
    Ok(exists.then_some((kind, name)))
}

/// Adds an entry, unless there is one that says the same; returns its id and the number of the change.
pub(crate) fn add(transaction: &Transaction<'_>, new: &NewEntry) -> Result<(String, i64), Failure> {
    let NewEntry { principal, permission, resource, effect } = new;
    let Some((kind, name)) = find_principal(transaction, principal)? else {
        let detail = "the principal is user:ID, role:NAME or group:NAME of one that is there";
        let detail = format!("{detail} (got {principal:?})");
        return Err(Problem::unprocessable("unknown_principal", detail).into());
    };
    let same = params![kind, name, permission, resource, effect.as_str()];
    let known: Option<String> = transaction.row(sql::SAME_ACL, same, |row| row.get(0))?;
    if let Some(id) = known {
        return Ok((id, changes::revision(transaction)?));
    }
    let id = uuid::Uuid::now_v7().to_string();
    transaction.run(sql::ADD_ACL, params![id, kind, name, permission, resource, effect.as_str()])?;
    let revision = changes::note(transaction, Subject::Acl(kind, name, permission, resource))?;
    Ok((id, revision))
}

/// Entries after the one with the id `after`, of one resource or of all; and whether there are more.
pub(crate) fn page(
    transaction: &Transaction<'_>,
    resource: Option<&str>,
    after: &str,
    limit: usize,
) -> Result<(Vec<Entry>, bool)> {
    let entry = |row: &rusqlite::Row<'_>| {
        let (kind, principal): (String, String) = (row.get(1)?, row.get(2)?);
        Ok(Entry {
            id: row.get(0)?,
            principal: format!("{kind}:{principal}"),
            permission: row.get(3)?,
            resource: row.get(4)?,
            effect: row.get(5)?,
        })
    };
    transaction.page(sql::LIST_ACL, params![resource, after], entry, limit, |_| false)
}

/// Deletes an entry, and returns the number of the change.
pub(crate) fn remove(transaction: &Transaction<'_>, id: &str) -> Result<i64, Failure> {
    let entry: Option<[String; 4]> = transaction
        .row(sql::DROP_ACL, [id], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
    let Some([kind, name, permission, resource]) = entry else {
        return Err(Problem::not_found("entry").into());
    };
    Ok(changes::note(transaction, Subject::Acl(&kind, &name, &permission, &resource))?)
}
