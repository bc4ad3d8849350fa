//! `/admin/ip-blocks`: the bans in force, and making and lifting bans by hand, on all replicas.

use std::net::IpAddr;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use ipnet::IpNet;
use policy::document::network::parse_network;
use serde_json::{Value, json};

use super::guard::Whole;
use super::term::Term;
use super::{Admin, RequestId, kept, problem};
use crate::clock;
use crate::engine::By;
use crate::observe::audit::Actor;
use crate::state::store::{Change, Topic};

pub(super) async fn list(State(admin): State<Admin>) -> Json<Value> {
    let mut bans = admin.gateway.replicated_state().holding(Topic::Bans, clock::wall());
    bans.sort_by_key(|ban| std::cmp::Reverse(ban.changed_at));
    let item = |ban: &Change| {
        json!({
            "network": ban.key,
            "until": ban.until.map(clock::text),
            "reason": ban.value.as_ref().and_then(|value| value.get("reason")),
            "since": clock::text(ban.changed_at),
        })
    };
    Json(json!({"items": bans.iter().map(item).collect::<Vec<_>>()}))
}

pub(super) async fn block(
    State(admin): State<Admin>,
    RequestId(request_id): RequestId,
    Path(network): Path<String>,
    Whole(body): Whole,
) -> Response {
    let Some(network) = network_of(&admin, &network) else {
        let detail = "the address is an IP address or a CIDR like 192.0.2.0/24";
        return problem(StatusCode::BAD_REQUEST, "malformed_request", detail);
    };
    let Term { until, value } = match Term::read(&body) {
        Ok(term) => term,
        Err(response) => return *response,
    };
    let changed_at = clock::wall().as_nanos();
    let change =
        Change { topic: Topic::Bans, key: network.to_string(), value: Some(value), until, changed_at };
    let response = make(&admin, change, &request_id).await;
    if response.status() != StatusCode::SERVICE_UNAVAILABLE {
        admin.gateway.metrics.ip_blocks.with_label_values(&["operator"]).inc();
    }
    response
}

pub(super) async fn unblock(
    State(admin): State<Admin>,
    RequestId(request_id): RequestId,
    Path(network): Path<String>,
) -> Response {
    let Some(network) = network_of(&admin, &network) else {
        let detail = "the address is an IP address or a CIDR like 192.0.2.0/24";
        return problem(StatusCode::BAD_REQUEST, "malformed_request", detail);
    };
    if admin.gateway.replicated_state().find(Topic::Bans, &network.to_string(), clock::wall()).is_none() {
        return problem(StatusCode::NOT_FOUND, "not_found", "this address is not blocked here by itself");
    }
    let change = Change {
        topic: Topic::Bans,
        key: network.to_string(),
        value: None,
        until: None,
        changed_at: clock::wall().as_nanos(),
    };
    make(&admin, change, &request_id).await
}

async fn make(admin: &Admin, change: Change, request_id: &str) -> Response {
    let by = By { actor: Actor::Operator, request_id };
    let made = admin.gateway.change(vec![change], by).await;
    kept(made, StatusCode::NO_CONTENT.into_response())
}

/// The client that an operator means by an address. For IPv6 it is a whole prefix.
fn network_of(admin: &Admin, text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(admin.gateway.policy().rules.client.network(address.to_canonical())),
        Err(_) => parse_network(text),
    }
}
