//! May this user do this to that? The one question that the gateway asks, and an administrator may.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

use crate::db::{self, Session};
use crate::extract::{Body, Query};
use crate::identity::Administrator;
use crate::problem::{Problem, Result};
use crate::serve::App;
use crate::sql;

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    user: String,
    permission: String,
    resource: String,
}

#[derive(Deserialize)]
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

/// The most questions in one call.
const MOST: usize = 100;

/// `POST /v1/permissions/check`, for administrators.
pub(crate) async fn check(_: Administrator, state: State<App>, body: Body<Questions>) -> Result<Response> {
    answer(state, body).await
}

/// `POST /internal/permissions`, for the gateway.
pub(crate) async fn answer(State(app): State<App>, Body(questions): Body<Questions>) -> Result<Response> {
    let (questions, batch) = match questions {
        Questions::One(question) => (vec![question], false),
        Questions::Batch { checks } => (checks, true),
    };
    if questions.len() > MOST {
        return Err(Problem::bad_request(format!("at most {MOST} checks in one call")));
    }
    let started = Instant::now();
    let asked = questions.clone();
    let mut answers = app
        .database
        .read(move |session| asked.iter().map(|one| judge(session, one)).collect::<db::Result<Vec<_>>>())
        .await?;
    for answer in &answers {
        // The permission itself is a client's word here and would make a label without a bound.
        let result = if answer.allowed { "allowed" } else { "denied" };
        app.metrics.permission_checks.with_label_values(&["any", result]).inc();
    }
    app.metrics.permission_check_duration.observe(started.elapsed().as_secs_f64());
    if batch {
        return Ok(Json(json!({"results": answers})).into_response());
    }
    match answers.pop() {
        Some(answer) => Ok(Json(answer).into_response()),
        None => Err(Problem::bad_request("no question")),
    }
}

fn judge(session: &Session<'_>, question: &Question) -> db::Result<Answer> {
    // INVARIANT: the revision is read before the grants. A change between the two makes the answer newer than it
    // says, never older.
    let revision = revision(session)?;
    let grants: Vec<(String, String)> =
        session.rows(sql::GRANTS_OF_USER, [&question.user, &question.permission], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let granting = grants.iter().find(|(_, pattern)| covers(pattern, &question.resource));
    let reason = match granting {
        Some((role, pattern)) => format!("role {role} grants it on {pattern}"),
        None => "no grant".to_owned(),
    };
    Ok(Answer { allowed: granting.is_some(), reason, revision })
}

fn revision(session: &Session<'_>) -> db::Result<i64> {
    Ok(session.row(sql::REVISION, [], |row| row.get(0))?.unwrap_or_default())
}

/// Whether a grant on `pattern`, a name or a prefix that ends in `*`, covers `resource`.
fn covers(pattern: &str, resource: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => resource.starts_with(prefix),
        None => pattern == resource,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Since {
    revision: i64,
}

/// How long `/internal/changes` waits for news before it says that there is none.
const PATIENCE: Duration = Duration::from_secs(1);

/// `GET /internal/changes?revision=N`: answers at once when there has been a change after N, else within a second.
/// Either way the answer says up to which change the caller now knows everything.
pub(crate) async fn changes(State(app): State<App>, Query(since): Query<Since>) -> Result<Json<Value>> {
    let mut news = app.database.changes();
    let mut current = app.database.read(revision).await?;
    if current == since.revision {
        // Woken or not, look again: another program may have made a change.
        let _ = tokio::time::timeout(PATIENCE, news.changed()).await;
        current = app.database.read(revision).await?;
    }
    Ok(Json(json!({"revision": current})))
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_grant_covers_its_name_or_its_prefix() {
        assert!(covers("notes", "notes") && !covers("notes", "notes2"));
        assert!(covers("team-*", "team-a") && covers("*", "anything") && !covers("team-*", "other"));
    }
}
