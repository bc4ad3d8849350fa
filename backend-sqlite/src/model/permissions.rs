//! May this user do this to that? The one question that the gateway asks, and an administrator may.
//!
//! An account that is not active may do nothing. A denial in an access control list counts more than whatever allows:
//! an entry, or a grant of a role. Roles are the account's own and those of its groups; one that needs a second factor
//! counts only for an account that has it, but what is denied to it is denied either way.

use std::borrow::Cow;

use protocol::permissions::{Decision, HeldRoles};
use rusqlite::params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::users::{self, User};
use super::{access_tokens, changes, groups};
use crate::storage::{Result, Transaction, sql};

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    pub(crate) user: String,
    /// Who issued the user's id, where the gateway takes several issuers: the token's `iss`.
    pub(crate) issuer: Option<String>,
    pub(crate) permission: String,
    pub(crate) resource: String,
}

impl From<protocol::permissions::Question<'_>> for Question {
    fn from(asked: protocol::permissions::Question<'_>) -> Self {
        Self {
            user: asked.user.into_owned(),
            issuer: asked.issuer.map(Cow::into_owned),
            permission: asked.permission.into_owned(),
            resource: asked.resource.into_owned(),
        }
    }
}

/// An answer for an administrator.
#[derive(Serialize)]
pub(crate) struct Answer {
    allowed: bool,
    reason: String,
    revision: i64,
}

impl From<Decision> for Answer {
    fn from(Decision { allowed, reason, revision, .. }: Decision) -> Self {
        Self { allowed, reason, revision }
    }
}

/// Answers a question. `second_factor` are the roles that count only for accounts with a second factor.
pub(crate) fn judge(
    transaction: &Transaction<'_>,
    question: &Question,
    second_factor: &[String],
) -> Result<Decision> {
    // INVARIANT: the revision is read before anything else. A change in between makes the answer newer than it says,
    // never older.
    let revision = changes::revision(transaction)?;
    let user = account_of(transaction, &question.user, question.issuer.as_deref())?;
    let Some(user) = user.filter(|user| user.active) else {
        let reason = "no active account".to_owned();
        return Ok(Decision { allowed: false, reason, revision, roles: Vec::new(), groups: Vec::new() });
    };
    let all = all_roles(transaction, &user.id)?;
    let counting = counting_roles(&all, &user, second_factor);
    let groups = groups::of_user(transaction, &user.id)?;
    let (allowed, reason) = decide(transaction, question, (&counting, &all), &groups)?;
    Ok(Decision { allowed, reason, revision, roles: all, groups })
}

/// The account that is meant: another issuer's subject has no account here, whatever its id.
fn account_of(transaction: &Transaction<'_>, id: &str, issuer: Option<&str>) -> Result<Option<User>> {
    if issuer.is_some_and(|issuer| issuer != access_tokens::ISSUER) {
        return Ok(None);
    }
    users::by_id(transaction, id)
}

fn decide(
    transaction: &Transaction<'_>,
    question: &Question,
    (counting, all): (&[String], &[String]),
    groups: &[String],
) -> Result<(bool, String)> {
    let [roles, all, groups] = [counting, all, groups].map(|names| json!(names).to_string());
    let Question { user, permission, resource, .. } = question;
    let entry: Option<(String, String, String, String)> = transaction.row(
        sql::DECIDING_ACL,
        params![user, roles, groups, permission, resource, all],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
    )?;
    if let Some((kind, principal, on, effect)) = entry {
        let verb = if effect == "deny" { "denied" } else { "allowed" };
        return Ok((effect != "deny", format!("{verb} to {kind} {principal} on {on}")));
    }
    let grant: Option<(String, String)> =
        transaction.row(sql::DECIDING_GRANT, params![roles, permission, resource], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    Ok(match grant {
        Some((role, on)) => (true, format!("role {role} grants it on {on}")),
        None => (false, "no grant".to_owned()),
    })
}

/// The roles of the subject `id`. An account that is not active has none.
pub(crate) fn held_roles(
    transaction: &Transaction<'_>,
    id: &str,
    issuer: Option<&str>,
    second_factor: &[String],
) -> Result<HeldRoles> {
    let revision = changes::revision(transaction)?; // first, as in `judge`
    let Some(user) = account_of(transaction, id, issuer)? else {
        return Ok(HeldRoles { revision, roles: None, groups: Vec::new() });
    };
    let groups = groups::of_user(transaction, &user.id)?;
    let all = if user.active { all_roles(transaction, &user.id)? } else { Vec::new() };
    let roles = counting_roles(&all, &user, second_factor);
    Ok(HeldRoles { revision, roles: Some(roles), groups })
}

/// The roles of an account, its own and those of its groups.
pub(crate) fn all_roles(transaction: &Transaction<'_>, user: &str) -> Result<Vec<String>> {
    transaction.rows(sql::EFFECTIVE_ROLES, [user], |row| row.get(0))
}

/// Those of `roles` that count: without a second factor, those that need none.
pub(crate) fn counting_roles(roles: &[String], user: &User, second_factor: &[String]) -> Vec<String> {
    let counts = |role: &&String| user.totp_secret.is_some() || !second_factor.contains(role);
    roles.iter().filter(counts).cloned().collect()
}

/// Whether a role counts for the account `id` now; `None` where there is no such account.
pub(crate) fn holds_role(
    transaction: &Transaction<'_>,
    id: &str,
    role: &str,
    second_factor: &[String],
) -> Result<Option<bool>> {
    let Some(user) = users::by_id(transaction, id)? else { return Ok(None) };
    let counting = counting_roles(&all_roles(transaction, id)?, &user, second_factor);
    Ok(Some(user.active && counting.iter().any(|held| held == role)))
}

/// All that an account may do, and what is denied to it.
#[derive(Serialize)]
pub(crate) struct Effective {
    active: bool,
    roles: Vec<String>,
    groups: Vec<String>,
    permissions: Vec<HeldPermission>,
    revision: i64,
}

#[derive(Serialize)]
struct HeldPermission {
    permission: String,
    resource: String,
    effect: String,
    /// `role:NAME`, `user:ID` or `group:NAME`: through whom the account has it.
    via: String,
}

/// What the account `id` may do; `None` where there is no such account.
pub(crate) fn effective(
    transaction: &Transaction<'_>,
    id: &str,
    second_factor: &[String],
) -> Result<Option<Effective>> {
    let revision = changes::revision(transaction)?; // first, as in `judge`
    let Some(user) = users::by_id(transaction, id)? else { return Ok(None) };
    let roles = counting_roles(&all_roles(transaction, id)?, &user, second_factor);
    let groups = groups::of_user(transaction, id)?;
    let mut permissions = Vec::new();
    for role in &roles {
        permissions.extend(transaction.rows(sql::GRANTS_OF_ROLE, [role], |row| {
            let (effect, via) = ("allow".to_owned(), format!("role:{role}"));
            Ok(HeldPermission { permission: row.get(0)?, resource: row.get(1)?, effect, via })
        })?);
    }
    let principals = params![id, json!(roles).to_string(), json!(groups).to_string()];
    permissions.extend(transaction.rows(sql::ACL_OF_PRINCIPALS, principals, |row| {
        let (kind, principal): (String, String) = (row.get(0)?, row.get(1)?);
        Ok(HeldPermission {
            permission: row.get(2)?,
            resource: row.get(3)?,
            effect: row.get(4)?,
            via: format!("{kind}:{principal}"),
        })
    })?);
    Ok(Some(Effective { active: user.active, roles, groups, permissions, revision }))
}
