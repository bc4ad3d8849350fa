//! The admin plane: health, metrics, and what operators may see and change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use policy::document::Fault;
use serde_json::{Value, json};
use service::listener::{self, BodyDeadline, Counters, Limits};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::clock;
use crate::config::secrets::Secret;
use crate::engine::{ChangeFault, Gateway};
use crate::live_policy::reload::Reloader;
use crate::observe::audit::{Actor, Entry};
use crate::state::directory::StateDir;
use crate::upstream::Upstreams;

use guard::{MAX_BODY, Whole, not_audited, one_at_a_time};

mod blocks;
mod guard;
mod overrides;
mod permissions;
mod revocations;
mod term;
mod usage;

/// The bounds of the connections of the admin plane.
const LIMITS: Limits = Limits {
    bound: "the admin plane's",
    max_connections: 16_384,
    header_timeout: Duration::from_secs(10),
    request_timeout: Duration::from_secs(30),
    idle_timeout: Duration::from_secs(75),
};

/// The state that the handlers share.
#[derive(Clone)]
pub struct Admin {
    /// Makes the decisions.
    pub gateway: Arc<Gateway>,
    /// Changes the policy.
    pub reloader: Arc<Reloader>,
    /// The state directory.
    pub state: Arc<StateDir>,
    /// The upstreams, for health checks.
    pub upstreams: Upstreams,
    /// Guards `/admin`. Without it the admin plane listens on loopback only.
    pub admin_token: Option<Secret>,
    /// Guards `/metrics` and `/health/detailed`, if it is set.
    pub metrics_token: Option<Secret>,
    /// True from SIGTERM on.
    pub draining: Arc<AtomicBool>,
    /// Held while overrides are judged and put in force.
    pub changing: Arc<tokio::sync::Mutex<()>>,
    /// A permit for work that takes long.
    pub judging: Arc<Semaphore>,
}

impl Admin {
    /// Permits for work that takes long: one.
    pub fn judging() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(1))
    }
}

/// Listens on `address`. Any address except loopback needs a token.
pub async fn bind(address: &str, has_token: bool) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("admin.listen: cannot listen on `{address}`"))?;
    if !has_token && !listener.local_addr()?.ip().is_loopback() {
        anyhow::bail!("ADMIN_TOKEN is missing: admin.listen `{address}` is not loopback");
    }
    Ok(listener)
}

/// Serves until `stop`.
pub async fn serve(admin: Admin, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let metrics = &admin.gateway.metrics;
    let counters = Counters {
        open: metrics.admin_connections.clone(),
        refused: metrics.admin_connections_refused.clone(),
        timed_out: metrics.admin_connections_timed_out.clone(),
    };
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    listener::serve(listener, router(admin), LIMITS, counters, stopped).await;
}

fn router(admin: Admin) -> Router {
    let open = Router::new()
        .route("/health", get(ready))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/health/startup", get(live));
    let watched = Router::new()
        .route("/health/detailed", get(detailed))
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(admin.clone(), with_metrics_token));
    let guarded = Router::new()
        .route("/admin/ip-blocks", get(blocks::list))
        .route("/admin/ip-blocks/{*network}", axum::routing::put(blocks::block).delete(blocks::unblock))
        .route("/admin/limits", get(usage::limits))
        .route("/admin/limits/{name}/{*key}", axum::routing::delete(usage::refill))
        .route("/admin/overrides", get(overrides::list).patch(overrides::change))
        .route("/admin/overrides/{path}", axum::routing::delete(overrides::remove))
        .route("/admin/permissions", get(permissions::statistics).delete(permissions::forget))
        .route("/admin/revocations", get(revocations::list))
        .route(
            "/admin/revocations/{by}/{*value}",
            axum::routing::put(revocations::revoke).delete(revocations::restore),
        )
        .route("/admin/readonly", post(overrides::read_only))
        .route("/admin/readwrite", post(overrides::read_write))
        .route("/admin/top", get(usage::top))
        .route("/admin/breakers", get(breakers))
        .route("/admin/breakers/{name}/reset", post(reset_breaker))
        .route("/admin/policy", get(show_policy))
        .route("/admin/policy/reload", post(reload))
        .route("/admin/policy/check", post(check))
        .route_layer(middleware::from_fn(body_in_time))
        .route_layer(middleware::from_fn_with_state(admin.clone(), with_admin_token)); // runs first
    open.merge(watched)
        .merge(guarded)
        .fallback(async || problem(StatusCode::NOT_FOUND, "not_found", "there is no such address"))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(admin.clone(), guard::loopback_alone))
        .with_state(admin)
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Response {
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "code": code,
        "detail": detail,
        "request_id": crate::http::problem::new_request_id(),
    });
    let mut response = (status, Json(body)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// The id of a request to the admin plane: the client's, or a new one.
struct RequestId(String);

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let sent = parts.headers.get("x-request-id").map(HeaderValue::as_bytes);
        Ok(Self(crate::http::problem::request_id(sent)))
    }
}

/// `answer` if the change was made and stored; otherwise a problem.
fn kept(made: Result<(), ChangeFault>, answer: Response) -> Response {
    let error = match made {
        Ok(()) => return answer,
        Err(ChangeFault::NotAudited) => return not_audited(),
        Err(ChangeFault::NotKept(error)) => error,
    };
    // The system's error only: it names no file and no secret.
    let detail = format!(
        "it is in force here, but the state directory cannot be written ({error}): it is tried again, and until that \
         works a restart may lose it"
    );
    problem(StatusCode::INTERNAL_SERVER_ERROR, "not_kept", &detail)
}

fn shows(headers: &HeaderMap, token: &Secret) -> bool {
    let shown =
        headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    shown.is_some_and(|shown| token.matches(shown))
}

fn wants_token(name: &str) -> Response {
    let detail = format!("send `Authorization: Bearer {name}`");
    let mut response = problem(StatusCode::UNAUTHORIZED, "token_missing", &detail);
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"palisade\""));
    response
}

async fn with_admin_token(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    match &admin.admin_token {
        Some(token) if !shows(request.headers(), token) => wants_token("ADMIN_TOKEN"),
        // Without a token this is for users of this machine, not for pages that are open in their browsers.
        None if request.headers().contains_key(header::ORIGIN) => {
            let detail = "a browser asks for another page: set ADMIN_TOKEN to allow it";
            problem(StatusCode::FORBIDDEN, "cross_origin", detail)
        }
        _ => next.run(request).await,
    }
}

/// Reads the body before the handler runs, so that no handler waits for a client.
async fn body_in_time(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let deadline = parts.extensions.get().copied();
    let whole = axum::body::to_bytes(body, MAX_BODY);
    let whole = match deadline {
        Some(BodyDeadline(deadline)) => tokio::time::timeout_at(deadline, whole).await,
        None => Ok(whole.await),
    };
    match whole {
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, bytes.into())).await,
        Ok(Err(_)) => {
            problem(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", &format!("at most {MAX_BODY} bytes"))
        }
        Err(_) => problem(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body did not come in time"),
    }
}

async fn with_metrics_token(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    match &admin.metrics_token {
        Some(token) if !shows(request.headers(), token) => wants_token("METRICS_TOKEN"),
        _ => next.run(request).await,
    }
}

async fn live() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Ready until the gateway drains. It stays ready when an upstream is unavailable, because an answer with 502 or 503 is
/// better than no answer.
async fn ready(State(admin): State<Admin>) -> Response {
    if admin.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "leaving"}))).into_response();
    }
    Json(json!({"status": "ok", "policy": admin.gateway.policy().sha256})).into_response()
}

async fn detailed(State(admin): State<Admin>) -> Response {
    let upstreams = admin.upstreams.health().await;
    let checks: Vec<_> = upstreams
        .into_iter()
        .map(|(name, health, took)| {
            json!({
                "check": format!("upstream {name}"),
                "status": if health.is_ok() { "ok" } else { "failed" },
                "detail": health.err(),
                "took_ms": took.as_secs_f64() * 1e3,
            })
        })
        .collect();
    let redis = admin.gateway.shared_store_is_up().map(|up| if up { "ok" } else { "away" });
    let draining = admin.draining.load(Ordering::Relaxed);
    let body = json!({
        "status": if draining { "leaving" } else { "ok" },
        "checks": checks,
        "addresses": admin.upstreams.describe(),
        "redis": redis,
        "policy": policy_state(&admin),
        "state": state_of(&admin),
        "version": env!("CARGO_PKG_VERSION"),
    });
    let status = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(body)).into_response()
}

/// Whether a restart would go back to older state.
fn state_of(admin: &Admin) -> Value {
    let faults = admin.state.faults();
    json!({"status": if faults.is_empty() { "ok" } else { "failed" }, "faults": faults})
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let gateway = &admin.gateway;
    let now = clock::steady();
    for rule in &gateway.policy().rules.breakers {
        let (state, error_rate) = gateway.breakers.state(rule, now);
        gateway.metrics.breaker_state.with_label_values(&[&*rule.name]).set(state.number());
        gateway.metrics.breaker_error_rate.with_label_values(&[&*rule.name]).set(error_rate);
    }
    let evictions = gateway.permissions.decisions().statistics.evictions.load(Ordering::Relaxed);
    let counted = gateway.metrics.permission_cache_evictions.get();
    gateway.metrics.permission_cache_evictions.inc_by(evictions.saturating_sub(counted));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], gateway.metrics.render()).into_response()
}

async fn breakers(State(admin): State<Admin>) -> Json<Value> {
    let now = clock::steady();
    let policy = admin.gateway.policy();
    let items = policy.rules.breakers.iter().map(|rule| {
        let (state, error_rate) = admin.gateway.breakers.state(rule, now);
        json!({"name": &*rule.name, "state": state.as_str(), "error_rate": error_rate})
    });
    Json(json!({"items": items.collect::<Vec<_>>()}))
}

async fn reset_breaker(
    State(admin): State<Admin>,
    RequestId(request_id): RequestId,
    Path(name): Path<String>,
) -> Response {
    let policy = admin.gateway.policy();
    if !policy.rules.breakers.iter().any(|rule| *rule.name == *name) {
        return problem(StatusCode::NOT_FOUND, "not_found", "no breaker has this name");
    }
    let rule = policy.rules.breakers.iter().find(|rule| *rule.name == *name);
    let before = rule.map(|rule| admin.gateway.breakers.state(rule, clock::steady()).0.as_str());
    let line = admin.gateway.audit.reserve(&Entry {
        action: "reset_breaker",
        target: &name,
        actor: Actor::Operator,
        before: before.into(),
        after: "closed".into(),
        request_id: &request_id,
    });
    let Ok(line) = line else { return not_audited() };
    admin.gateway.breakers.reset(&name);
    line.write();
    StatusCode::NO_CONTENT.into_response()
}

fn policy_state(admin: &Admin) -> Value {
    let policy = admin.gateway.policy();
    json!({
        "sha256": policy.sha256,
        "version": policy::VERSION,
        "file": policy.file,
        "loaded_at": humantime::format_rfc3339_millis(policy.loaded_at).to_string(),
        "last_refusal": admin.reloader.last_refusal(),
        "trial": admin.reloader.canary.describe(),
    })
}

async fn show_policy(State(admin): State<Admin>) -> Json<Value> {
    Json(policy_state(&admin))
}

async fn reload(State(admin): State<Admin>) -> Response {
    if !admin.gateway.audit.has_room() {
        return not_audited();
    }
    let (reloader, gateway) = (Arc::clone(&admin.reloader), Arc::clone(&admin.gateway));
    match one_at_a_time(&admin, move || reloader.reload(gateway.live())).await {
        Ok(Ok(())) => Json(policy_state(&admin)).into_response(),
        Ok(Err(faults)) => unfit(&faults),
        Err(response) => *response,
    }
}

async fn check(State(admin): State<Admin>, Whole(body): Whole) -> Response {
    let Ok(text) = String::from_utf8(body.into()) else {
        return problem(StatusCode::BAD_REQUEST, "malformed_request", "a policy is UTF-8");
    };
    let (reloader, gateway) = (Arc::clone(&admin.reloader), Arc::clone(&admin.gateway));
    match one_at_a_time(&admin, move || reloader.judge_foreign(gateway.live(), &text)).await {
        Ok(Ok(loaded)) => Json(json!({"sha256": loaded.sha256, "faults": []})).into_response(),
        Ok(Err(faults)) => unfit(&faults),
        Err(response) => *response,
    }
}

/// The problem for a policy, or overrides, with faults.
fn unfit(faults: &[Fault]) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({"faults": faults}))).into_response()
}
