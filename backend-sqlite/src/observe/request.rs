//! What can be seen of a request: its id, its span, its metrics, its log line.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use service::telemetry;
use tracing::{Instrument as _, debug, info, info_span};

use super::metrics::Metrics;

tokio::task_local! {
    static REQUEST_ID: String;
}

/// The id of the request that this task answers.
pub(crate) fn current_request_id() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// The client's id where it is well-formed, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    let fine = |id: &&str| {
        (1..=128).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    sent.filter(fine).map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

/// Gives each request an id and a span that continues the caller's trace, and counts it.
pub(crate) async fn observe(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    // Unmatched paths share one label: a label from a client has no bound.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let span = info_span!(
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = %method,
        http.route = route,
        http.response.status_code = tracing::field::Empty,
        request_id = id,
    );
    telemetry::continue_trace(&span, request.headers());
    let started = Instant::now();
    let mut response = REQUEST_ID.scope(id.clone(), next.run(request).instrument(span.clone())).await;
    let status = response.status();
    span.record("http.response.status_code", i64::from(status.as_u16()));
    let took = started.elapsed();
    let known_method = if matches!(method.as_str(), "GET" | "HEAD" | "PUT" | "POST" | "DELETE") {
        method.as_str()
    } else {
        "other"
    };
    metrics.requests.with_label_values(&[route.as_str(), known_method, status.as_str()]).inc();
    metrics.request_duration.with_label_values(&[route.as_str()]).observe(took.as_secs_f64());
    let (status_code, took_us) = (status.as_u16(), u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    span.in_scope(|| {
        // The change feed asks once a second, forever.
        if route == protocol::feed::PATH {
            debug!(status = status_code, took_us, "answered");
        } else {
            info!(status = status_code, took_us, "answered");
        }
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}
