//! May this user do this to that? The one question that the gateway asks, and an administrator may.
//!
//! An account that is not active may do nothing. A denial in an access control list counts more than whatever allows: an
//! entry, or a grant of a role. Roles are the account's own and those of its groups; one that needs a second factor
//! counts only for an account that has it, but what is denied to it is denied either way.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use rusqlite::params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Instant;

use crate::http::app::App;
use crate::http::extract::{Body, Path};
use crate::http::identity::{Administrator, Gateway};
use crate::model::access_tokens;
use crate::model::changes;
use crate::model::users::{self, User};
use crate::problem::{Problem, Result};
use crate::storage::sql;
use crate::storage::{self, Transaction};

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    user: String,
    /// Whose word the user's id is, where the gateway takes several: the token's `iss`.
    issuer: Option<String>,
    permission: String,
    resource: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Questions {
    One(Question),
    Batch { checks: Vec<Question> },
}

/// An answer, why, and as of which change.
#[derive(Serialize)]
pub(crate) struct Answer {
    allowed: bool,
    reason: String,
    revision: i64,
}

/// An answer for the gateway: also what it rests on, so that a change of a role or a group finds it.
#[derive(Serialize)]
pub(crate) struct TracedAnswer {
    #[serde(flatten)]
    answer: Answer,
    roles: Vec<String>,
    groups: Vec<String>,
}

/// The most questions in one call.
const MOST: usize = 100;

/// `POST /v1/permissions/check`, for administrators.
pub(crate) async fn check(
    _: Administrator,
    State(app): State<App>,
    Body(questions): Body<Questions>,
) -> Result<Response> {
    let (questions, batch) = match questions {
        Questions::One(question) => (vec![question], false),
        Questions::Batch { checks } => (checks, true),
    };
    if questions.is_empty() || questions.len() > MOST {
        return Err(Problem::bad_request(format!("from 1 to {MOST} checks in one call")));
    }
    let mut answers: Vec<Answer> =
        answers(&app, questions).await?.into_iter().map(|traced| traced.answer).collect();
    if batch {
        return Ok(Json(json!({"results": answers})).into_response());
    }
    let answer = answers.pop().ok_or_else(|| Problem::bad_request("no question"))?;
    Ok(Json(answer).into_response())
}

/// `POST /internal/permissions`, for the gateway.
pub(crate) async fn answer(
    _: Gateway,
    State(app): State<App>,
    Body(question): Body<Question>,
) -> Result<Json<TracedAnswer>> {
    let answer = answers(&app, vec![question]).await?.pop();
    answer.map(Json).ok_or_else(|| Problem::bad_request("no question"))
}

async fn answers(app: &App, questions: Vec<Question>) -> Result<Vec<TracedAnswer>> {
    let started = Instant::now();
    let settings = std::sync::Arc::clone(&app.accounts);
    let answers = app.database.read(move |transaction| {
        questions
            .iter()
            .map(|one| judge(transaction, one, &settings.require_totp_for))
            .collect::<storage::Result<Vec<_>>>()
    });
    let answers = answers.await?;
    for traced in &answers {
        // The permission itself is a client's word here and would make a label without a bound.
        let result = if traced.answer.allowed { "allowed" } else { "denied" };
        app.metrics.permission_checks.with_label_values(&["any", result]).inc();
    }
    app.metrics.permission_check_duration.observe(started.elapsed().as_secs_f64());
    Ok(answers)
}

fn judge(
    transaction: &Transaction<'_>,
    question: &Question,
    second_factor: &[String],
) -> storage::Result<TracedAnswer> {
    // INVARIANT: the revision is read before anything else. A change in between makes the answer newer than it says,
    // never older.
    let revision = changes::revision(transaction)?;
    let user = account_of(transaction, &question.user, question.issuer.as_deref())?;
    let Some(user) = user.filter(|user| user.active) else {
        let answer = Answer { allowed: false, reason: "no active account".to_owned(), revision };
        return Ok(TracedAnswer { answer, roles: Vec::new(), groups: Vec::new() });
    };
    let all = all_roles(transaction, &user.id)?;
    let counting = counting_roles(&all, &user, second_factor);
    let groups = groups(transaction, &user.id)?;
    let (allowed, reason) = decide(transaction, question, (&counting, &all), &groups)?;
    Ok(TracedAnswer { answer: Answer { allowed, reason, revision }, roles: all, groups })
}

/// The account that is meant: another issuer's subject is nobody here, whatever its id.
fn account_of(
    transaction: &Transaction<'_>,
    id: &str,
    issuer: Option<&str>,
) -> storage::Result<Option<User>> {
    if issuer.is_some_and(|issuer| issuer != access_tokens::ISSUER) {
        return Ok(None);
    }
    users::by_id(transaction, id)
}

/// Whose roles the gateway asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    user: String,
    issuer: Option<String>,
}

/// The roles that count for an account now; none when it is no account of ours.
#[derive(Serialize)]
pub(crate) struct HeldRoles {
    revision: i64,
    roles: Option<Vec<String>>,
    groups: Vec<String>,
}

/// `POST /internal/roles`, for the gateway. An account that is not active has none.
pub(crate) async fn roles(
    _: Gateway,
    State(app): State<App>,
    Body(asked): Body<Asked>,
) -> Result<Json<HeldRoles>> {
    let settings = std::sync::Arc::clone(&app.accounts);
    let held = app.database.read(move |transaction| {
        let revision = changes::revision(transaction)?; // first, as in `judge`
        let Some(user) = account_of(transaction, &asked.user, asked.issuer.as_deref())? else {
            return Ok(HeldRoles { revision, roles: None, groups: Vec::new() });
        };
        let groups = groups(transaction, &user.id)?;
        let all = if user.active { all_roles(transaction, &user.id)? } else { Vec::new() };
        let roles = counting_roles(&all, &user, &settings.require_totp_for);
        Ok(HeldRoles { revision, roles: Some(roles), groups })
    });
    Ok(Json(held.await?))
}

fn decide(
    transaction: &Transaction<'_>,
    question: &Question,
    (counting, all): (&[String], &[String]),
    groups: &[String],
) -> storage::Result<(bool, String)> {
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

/// The roles of an account, its own and those of its groups.
pub(crate) fn all_roles(transaction: &Transaction<'_>, user: &str) -> storage::Result<Vec<String>> {
    transaction.rows(sql::EFFECTIVE_ROLES, [user], |row| row.get(0))
}

/// Those of `roles` that count: without a second factor, those that need none.
pub(crate) fn counting_roles(roles: &[String], user: &User, second_factor: &[String]) -> Vec<String> {
    let counts = |role: &&String| user.totp_secret.is_some() || !second_factor.contains(role);
    roles.iter().filter(counts).cloned().collect()
}

/// The groups of an account.
pub(crate) fn groups(transaction: &Transaction<'_>, user: &str) -> storage::Result<Vec<String>> {
    transaction.rows(sql::GROUPS_OF_USER, [user], |row| row.get(0))
}

/// `GET /v1/users/{id}/permissions`: all that an account may do, and what is denied to it.
pub(crate) async fn effective(
    _: Administrator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    let settings = std::sync::Arc::clone(&app.accounts);
    let listed = app.database.read(move |transaction| {
        let revision = changes::revision(transaction)?;
        let Some(user) = users::by_id(transaction, &id)? else { return Ok(None) };
        let roles = counting_roles(&all_roles(transaction, &id)?, &user, &settings.require_totp_for);
        let groups = groups(transaction, &id)?;
        let mut permissions = Vec::new();
        for role in &roles {
            permissions.extend(transaction.rows(sql::GRANTS_OF_ROLE, [role], |row| {
                let (permission, resource): (String, String) = (row.get(0)?, row.get(1)?);
                let via = format!("role:{role}");
                Ok(json!({"permission": permission, "resource": resource, "effect": "allow", "via": via}))
            })?);
        }
        let principals = params![id, json!(roles).to_string(), json!(groups).to_string()];
        permissions.extend(transaction.rows(sql::ACL_OF_PRINCIPALS, principals, |row| {
            let (kind, principal): (String, String) = (row.get(0)?, row.get(1)?);
            Ok(json!({
                "permission": row.get::<_, String>(2)?,
                "resource": row.get::<_, String>(3)?,
                "effect": row.get::<_, String>(4)?,
                "via": format!("{kind}:{principal}"),
            }))
        })?);
        Ok(Some(json!({
            "active": user.active,
            "roles": roles,
            "groups": groups,
            "permissions": permissions,
            "revision": revision,
        })))
    });
    listed.await?.map(Json).ok_or_else(|| Problem::not_found("user"))
}
