//! `/health`, `/metrics` and the mode: whether the backend lives, has started, and can do its work.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use std::sync::atomic::Ordering;

use crate::http::app::App;
use crate::http::identity::Administrator;
use crate::model::{sessions, users};
use crate::problem::{Problem, Result};

/// `GET /health/live`: the process answers.
pub(crate) async fn live() -> Json<serde_json::Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /health/ready`, `/health`, `/health/startup` and `/health/db`: the database answers and the program is not
/// shutting down.
pub(crate) async fn ready(State(app): State<App>) -> Response {
    let started = Instant::now();
    let database = app.database.ping().await;
    let draining = app.draining.load(Ordering::Relaxed);
    let took_ms = started.elapsed().as_secs_f64() * 1e3;
    let checks = json!({"database": {"status": status_text(database.is_ok()), "took_ms": took_ms}});
    let fine = database.is_ok() && !draining;
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mode = app.database.mode().describe();
    (status, Json(json!({"status": status_text(fine), "leaving": draining, "mode": mode, "checks": checks})))
        .into_response()
}

/// `POST /admin/readonly`
pub(crate) async fn read_only(_: Administrator, State(app): State<App>) -> Json<serde_json::Value> {
    app.database.mode().set_by_hand(true);
    Json(json!({"mode": app.database.mode().describe()}))
}

/// `POST /admin/readwrite`
pub(crate) async fn read_write(_: Administrator, State(app): State<App>) -> Json<serde_json::Value> {
    app.database.mode().set_by_hand(false);
    Json(json!({"mode": app.database.mode().describe()}))
}

const fn status_text(fine: bool) -> &'static str {
    if fine { "ok" } else { "failed" }
}

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response> {
    if let Some(token) = &app.secrets.metrics_token {
        let shown =
            headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if !shown.is_some_and(|shown| token.matches(shown)) {
            return Err(Problem::unauthorized("token_missing", "send `Authorization: Bearer METRICS_TOKEN`"));
        }
    }
    let (free, idle) = app.database.pool_status();
    app.metrics.db_pool_idle.set(i64::try_from(idle).unwrap_or(i64::MAX));
    let in_use = app.pool_slots.saturating_sub(free);
    app.metrics.db_pool_in_use.set(i64::try_from(in_use).unwrap_or(i64::MAX));
    if let Ok(users) = app.database.read(users::count).await {
        app.metrics.users.set(users);
    }
    if let Ok(sessions) = app.database.read(sessions::count).await {
        app.metrics.active_sessions.set(sessions);
    }
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((content_type, app.metrics.render()).into_response())
}
