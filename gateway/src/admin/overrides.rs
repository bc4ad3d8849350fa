//! `/admin/overrides`: live settings on top of the policy file, on all replicas. They survive restarts.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::guard::{PATIENCE, Whole, busy, not_audited, one_at_a_time};
use super::{Admin, RequestId, kept, problem, unfit};
use crate::clock;
use crate::engine::{By, ChangeFault};
use crate::observe::audit::Actor;
use crate::state::overrides::{MOST, Override, flatten};
use crate::state::store::{Change, Topic};

/// The key of the policy that stops changes.
const READ_ONLY: &str = "read_only";

fn listing(admin: &Admin) -> Value {
    let mut all = admin.gateway.replicated_state().holding(Topic::Overrides, clock::wall());
    all.sort_by(|one, other| one.key.cmp(&other.key));
    let item = |change: &Change| json!({"path": change.key, "value": change.value, "since": clock::text(change.changed_at)});
    json!({"items": all.iter().map(item).collect::<Vec<_>>()})
}

pub(super) async fn list(State(admin): State<Admin>) -> Json<Value> {
    Json(listing(&admin))
}

pub(super) async fn change(
    State(admin): State<Admin>,
    RequestId(request_id): RequestId,
    Whole(body): Whole,
) -> Response {
    let Ok(body @ Value::Object(_)) = serde_json::from_slice(&body) else {
        let detail =
            "the body is a JSON object: {\"limits.login.rate\": \"10/min\"}, or nested as in the file";
        return problem(StatusCode::BAD_REQUEST, "malformed_request", detail);
    };
    match flatten(&body) {
        Ok(wanted) => make(&admin, wanted, &request_id).await,
        Err(fault) => unfit(&[fault]),
    }
}

pub(super) async fn remove(
    State(admin): State<Admin>,
    RequestId(request_id): RequestId,
    Path(path): Path<String>,
) -> Response {
    if admin.gateway.replicated_state().find(Topic::Overrides, &path, clock::wall()).is_none() {
        return problem(StatusCode::NOT_FOUND, "not_found", "nothing is overridden at this path");
    }
    make(&admin, vec![(path, None)], &request_id).await
}

/// `POST /admin/readonly`: from now on, requests that would change something are refused on all replicas, until
/// `/admin/readwrite`.
pub(super) async fn read_only(State(admin): State<Admin>, RequestId(request_id): RequestId) -> Response {
    make(&admin, vec![(READ_ONLY.to_owned(), Some(true.into()))], &request_id).await
}

/// `POST /admin/readwrite`
pub(super) async fn read_write(State(admin): State<Admin>, RequestId(request_id): RequestId) -> Response {
    make(&admin, vec![(READ_ONLY.to_owned(), None)], &request_id).await
}

/// Puts overrides in force: all of them, or none if one is refused.
async fn make(admin: &Admin, mut wanted: Vec<(String, Option<Value>)>, request_id: &str) -> Response {
    let Ok(_changing) = tokio::time::timeout(PATIENCE, admin.changing.lock()).await else { return busy() };
    let mut overrides = admin.reloader.overrides();
    // A path that is not overridden needs no removal.
    wanted.retain(|(path, value)| value.is_some() || overrides.iter().any(|(known, _)| known == path));
    if wanted.is_empty() {
        return Json(listing(admin)).into_response();
    }
    overrides.retain(|(path, _)| !wanted.iter().any(|(wanted, _)| wanted == path));
    overrides.extend(wanted.iter().filter_map(|(path, value)| Some((path.clone(), value.clone()?))));
    if overrides.len() > MOST {
        return problem(StatusCode::BAD_REQUEST, "malformed_request", "there are at most 1000 overrides");
    }
    match judge(admin, overrides).await {
        Ok(Ok(())) => {}
        Ok(Err(faults)) => return unfit(&faults),
        Err(response) => return *response,
    }
    let changed_at = clock::wall().as_nanos();
    let change = |(key, value)| Change { topic: Topic::Overrides, key, value, until: None, changed_at };
    let by = By { actor: Actor::Operator, request_id };
    let made = admin.gateway.change(wanted.into_iter().map(change).collect(), by).await;
    if matches!(made, Err(ChangeFault::NotAudited)) {
        return not_audited();
    }
    let (reloader, gateway) = (Arc::clone(&admin.reloader), Arc::clone(&admin.gateway));
    let applied = tokio::task::spawn_blocking(move || reloader.apply_overrides(gateway.live())).await;
    if applied.is_err() {
        return problem(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the work broke off");
    }
    kept(made, Json(listing(admin)).into_response())
}

type Judged = Result<(), Vec<policy::document::Fault>>;

async fn judge(admin: &Admin, overrides: Vec<Override>) -> Result<Judged, Box<Response>> {
    let (reloader, gateway) = (Arc::clone(&admin.reloader), Arc::clone(&admin.gateway));
    one_at_a_time(admin, move || reloader.try_overrides(gateway.live(), &overrides)).await
}
