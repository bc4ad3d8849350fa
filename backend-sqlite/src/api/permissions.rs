//! Questions about permissions and roles: an administrator's, and the gateway's own.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use protocol::permissions::{Decision, HeldRoles, Whose};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::http::app::App;
use crate::http::extract::Body;
use crate::http::identity::{Administrator, Gateway};
use crate::model::permissions::{self, Answer, Question};
use crate::problem::{Problem, Result};

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Questions {
    One(Question),
    Batch { checks: Vec<Question> },
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
    let mut answers: Vec<Answer> = answers(&app, questions).await?.into_iter().map(Answer::from).collect();
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
    Body(question): Body<protocol::permissions::Question<'static>>,
) -> Result<Json<Decision>> {
    let answer = answers(&app, vec![question.into()]).await?.pop();
    answer.map(Json).ok_or_else(|| Problem::bad_request("no question"))
}

async fn answers(app: &App, questions: Vec<Question>) -> Result<Vec<Decision>> {
    let started = Instant::now();
    let rules = Arc::clone(&app.rules);
    let answers = app.database.read(move |transaction| {
        questions.iter().map(|one| permissions::judge(transaction, one, &rules.require_totp_for)).collect()
    });
    let answers: Vec<Decision> = answers.await?;
    for answer in &answers {
        // The permission itself comes from a client and would make a label without a bound.
        let result = if answer.allowed { "allowed" } else { "denied" };
        app.metrics.permission_checks.with_label_values(&["any", result]).inc();
    }
    app.metrics.permission_check_duration.observe(started.elapsed().as_secs_f64());
    Ok(answers)
}

/// `POST /internal/roles`, for the gateway.
pub(crate) async fn roles(
    _: Gateway,
    State(app): State<App>,
    Body(of): Body<Whose<'static>>,
) -> Result<Json<HeldRoles>> {
    let rules = Arc::clone(&app.rules);
    let held = app.database.read(move |transaction| {
        permissions::held_roles(transaction, &of.user, of.issuer.as_deref(), &rules.require_totp_for)
    });
    Ok(Json(held.await?))
}
