//! `/admin/revocations`: tokens that are not accepted any more, on all replicas.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::guard::Whole;
use super::term::Term;
use super::{Admin, RequestId, kept, problem};
use crate::clock;
use crate::engine;
use crate::observe::audit::Actor;
use crate::state::revocations::{By, parse_time};
use crate::state::store::{Change, Topic};

/// The longest id or subject, in bytes.
const LONGEST: usize = 1024;

pub(super) async fn list(State(admin): State<Admin>) -> Json<Value> {
    let mut all = admin.gateway.replicated_state().holding(Topic::Revocations, clock::wall());
    all.sort_by_key(|one| std::cmp::Reverse(one.changed_at));
    let item = |one: &Change| {
        let (by, value) = one.key.split_once('/').unwrap_or_default();
        json!({
            "by": by,
            "value": value,
            "until": one.until.map(clock::text),
            "reason": one.value.as_ref().and_then(|value| value.get("reason")),
            // Revocations by the backend have no start time; only their end counts.
            "since": (one.changed_at > 0).then(|| clock::text(one.changed_at)),
        })
    };
    Json(json!({"items": all.iter().map(item).collect::<Vec<_>>()}))
}

fn key(by: &str, value: &str) -> Result<String, Box<Response>> {
    let bad = |detail: &str| Box::new(problem(StatusCode::BAD_REQUEST, "malformed_request", detail));
    let by = By::parse(by).ok_or_else(|| bad("tokens are revoked by jti, sub or iat"))?;
    if value.len() > LONGEST {
        return Err(bad("the value has at most 1024 bytes"));
    }
    if by == By::Iat && parse_time(value).is_none() {
        return Err(bad("iat is a time, RFC 3339 or seconds since the epoch"));
    }
    Ok(by.key(value))
}

pub(super) async fn revoke(
    State(admin): State<Admin>,
    RequestId(request_id): RequestId,
    Path((by, value)): Path<(String, String)>,
    Whole(body): Whole,
) -> Response {
    let change = key(&by, &value).and_then(|key| {
        let Term { until, value } = Term::read(&body)?;
        let changed_at = clock::wall().as_nanos();
        Ok(Change { topic: Topic::Revocations, key, value: Some(value), until, changed_at })
    });
    make(&admin, change, &request_id).await
}

pub(super) async fn restore(
    State(admin): State<Admin>,
    RequestId(request_id): RequestId,
    Path((by, value)): Path<(String, String)>,
) -> Response {
    let now = clock::wall();
    let change = key(&by, &value).and_then(|key| {
        if admin.gateway.replicated_state().find(Topic::Revocations, &key, now).is_none() {
            return Err(Box::new(problem(StatusCode::NOT_FOUND, "not_found", "nothing is revoked by this")));
        }
        let changed_at = now.as_nanos();
        Ok(Change { topic: Topic::Revocations, key, value: None, until: None, changed_at })
    });
    make(&admin, change, &request_id).await
}

async fn make(admin: &Admin, change: Result<Change, Box<Response>>, request_id: &str) -> Response {
    match change {
        Ok(change) => {
            let by = engine::By { actor: Actor::Operator, request_id };
            let made = admin.gateway.change(vec![change], by).await;
            kept(made, StatusCode::NO_CONTENT.into_response())
        }
        Err(response) => *response,
    }
}
