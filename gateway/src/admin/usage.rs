//! `/admin/limits` and `/admin/top`: the busiest clients, users and buckets, and refilling a bucket by hand.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use policy::rules::limits::bucket::Bucket;
use policy::rules::limits::{LimitRule, Mode, Scope};
use serde::Deserialize;
use serde_json::{Value, json};

use super::guard::not_audited;
use super::{Admin, RequestId, problem};
use crate::clock;
use crate::collections::top_k::{COUNTERS, Count, LONGEST_WINDOW};
use crate::observe::audit::{Actor, Entry};
use crate::state::store::Store as _;

/// The most keys listed for each limit.
const BUSIEST: usize = 10;

/// The window of a listing.
const WINDOW: Duration = Duration::from_mins(1);

pub(super) async fn limits(State(admin): State<Admin>) -> Json<Value> {
    let gateway = &admin.gateway;
    let policy = gateway.policy();
    let busiest = gateway.usage.buckets.top(WINDOW, COUNTERS, clock::steady());
    let item = |rule: &LimitRule| {
        let own = |(bucket, count): &(Bucket, Count)| {
            let ours = bucket.limit() == rule.name.as_bytes();
            ours.then(|| json!({"key": bucket.key(), "requests": count.count, "error": count.error}))
        };
        json!({
            "name": &*rule.name,
            "rate": rule.rate.to_string(),
            "burst": rule.gcra.burst(),
            "scope": if rule.scope == Scope::Shared { "shared" } else { "local" },
            "mode": if rule.mode == Mode::Enforce { "enforce" } else { "shadow" },
            "exceeded": gateway.metrics.rate_limit_exceeded.with_label_values(&[&*rule.name]).get(),
            "busiest": busiest.iter().filter_map(own).take(BUSIEST).collect::<Vec<_>>(),
        })
    };
    let items: Vec<_> = policy.rules.limits_by_name().into_values().map(item).collect();
    Json(json!({
        "window": humantime::format_duration(WINDOW).to_string(),
        "buckets": gateway.local().len() + gateway.shared().map_or(0, |shared| shared.buckets()),
        "items": items,
    }))
}

/// Makes one bucket full, on all replicas.
pub(super) async fn refill(
    State(admin): State<Admin>,
    RequestId(request_id): RequestId,
    Path((name, key)): Path<(String, String)>,
) -> Response {
    let policy = admin.gateway.policy();
    let Some(rule) = policy.rules.limits.iter().find(|rule| *rule.name == *name) else {
        return problem(StatusCode::NOT_FOUND, "not_found", "no limit has this name");
    };
    let Some(bucket) = rule.bucket_of(&key, &policy.rules.client) else {
        let detail = "the key holds the value of each part of the limit's key, with commas between";
        return problem(StatusCode::BAD_REQUEST, "malformed_request", detail);
    };
    let line = admin.gateway.audit.reserve(&Entry {
        action: "refill",
        target: &format!("{name} {key}"),
        actor: Actor::Operator,
        before: Value::Null,
        after: "full".into(),
        request_id: &request_id,
    });
    let Ok(line) = line else { return not_audited() };
    let was_used_here = admin.gateway.local().refill(&bucket).await.unwrap_or_default();
    let shared = admin.gateway.shared().filter(|_| rule.scope == Scope::Shared);
    let was_used = match shared {
        None => was_used_here,
        Some(shared) => {
            let Ok(was_used) = shared.refill(&bucket).await else {
                let detail = "Redis is unavailable: the bucket is full here, but not for the other replicas";
                return problem(StatusCode::SERVICE_UNAVAILABLE, "store_away", detail);
            };
            was_used || was_used_here
        }
    };
    if !was_used {
        return problem(StatusCode::NOT_FOUND, "not_found", "this bucket is full");
    }
    line.write();
    StatusCode::NO_CONTENT.into_response()
}

#[derive(Deserialize)]
pub(super) struct TopQuery {
    by: Option<String>,
    window: Option<String>,
}

pub(super) async fn top(State(admin): State<Admin>, Query(query): Query<TopQuery>) -> Response {
    let bad = |detail: &str| problem(StatusCode::BAD_REQUEST, "malformed_request", detail);
    let window = query.window.as_deref().unwrap_or("60s");
    let Some(window) = humantime::parse_duration(window).ok().filter(|window| *window <= LONGEST_WINDOW)
    else {
        return bad("window is a duration like \"60s\", at most \"5m\"");
    };
    let by = query.by.as_deref().unwrap_or("ip");
    let Some(sketch) = admin.gateway.usage.by(by) else {
        return bad("by is ip, user, api_key or route");
    };
    let item = |(key, Count { count, error }): (String, Count)| json!({"key": key, "requests": count, "error": error});
    let items: Vec<_> = sketch.top(window, BUSIEST * 2, clock::steady()).into_iter().map(item).collect();
    let window = humantime::format_duration(window).to_string();
    Json(json!({"by": by, "window": window, "items": items})).into_response()
}
