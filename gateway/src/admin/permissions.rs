//! `/admin/permissions`: the cached permission answers, and dropping them by hand.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::guard::not_audited;
use super::{Admin, RequestId, problem};
use crate::observe::audit::{Actor, Entry};

pub(super) async fn statistics(State(admin): State<Admin>) -> Json<Value> {
    let permissions = &admin.gateway.permissions;
    let counts = &permissions.decisions().statistics;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (hits, misses) = (count(&counts.hits), count(&counts.misses));
    #[expect(clippy::cast_precision_loss, reason = "a share for people to read")]
    let hit_rate = hits as f64 / (hits + misses).max(1) as f64;
    let (revision, age) = permissions.feed();
    Json(json!({
        "entries": permissions.decisions().len(),
        "capacity": admin.gateway.policy().rules.permissions.capacity,
        "hits": hits,
        "misses": misses,
        "hit_rate": hit_rate,
        "joined": count(&counts.joined),
        "evictions": count(&counts.evictions),
        "invalidations": count(&counts.invalidations),
        "overtaken": count(&counts.overtaken),
        "feed": {"revision": revision, "age_s": age.map(|age| age.as_secs_f64())},
    }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    user: Option<String>,
    resource: Option<String>,
    permission: Option<String>,
}

/// Drops cached answers about a user, a resource, a permission, or a combination of them; without any of these, all
/// answers. They are asked for again when they are needed.
pub(super) async fn forget(
    State(admin): State<Admin>,
    RequestId(request_id): RequestId,
    about: Result<Query<About>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Ok(Query(about)) = about else {
        let detail = "what to forget is named by user, resource and permission, each optional";
        return problem(StatusCode::BAD_REQUEST, "malformed_request", detail);
    };
    let line = admin.gateway.audit.reserve(&Entry {
        action: "forget_permissions",
        target: &format!("{about:?}"),
        actor: Actor::Operator,
        before: Value::Null,
        after: Value::Null,
        request_id: &request_id,
    });
    let Ok(line) = line else { return not_audited() };
    let forgotten = admin.gateway.permissions.forget(
        about.user.as_deref(),
        about.permission.as_deref(),
        about.resource.as_deref(),
    );
    line.write();
    Json(json!({"forgotten": forgotten})).into_response()
}
