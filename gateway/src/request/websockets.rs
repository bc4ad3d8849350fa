//! Judges every open `WebSocket` again whenever a reason for its admission may have changed: the policy, bans,
//! revocations, roles, permissions, API keys; and when its token ends. It is closed if it would be refused now.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use policy::pipeline::{rejudge, still_holds};
use policy::values::refusal::Refusal;
use policy::values::request::{Headers, Request};
use tokio::sync::Notify;
use tracing::info;

use crate::engine::websockets::{Handshake, WebSocket};
use crate::engine::{Gateway, Handle};
use crate::http::fields::fields_of;

/// The most `WebSocket`s that are judged at the same time.
const ASKED_AT_A_TIME: usize = 64;

/// Judges the open ones again whenever there may be a reason, forever. Checks that need no other service take effect at
/// once. Other services may be slow, so they are asked concurrently with these checks and with each other.
pub async fn watch(gateway: Arc<Gateway>) {
    let asking = Notify::new();
    let look = async {
        loop {
            tokio::select! {
                () = gateway.websockets.judge_again.notified() => {}
                () = gateway.permissions.changed.notified() => {}
            }
            for websocket in gateway.websockets.all() {
                close_if(&websocket, &gateway, still_let_in(&gateway, &websocket.handshake));
            }
            asking.notify_one();
        }
    };
    let ask = async {
        loop {
            asking.notified().await;
            let judge_one = async |websocket: Arc<WebSocket>| {
                close_if(&websocket, &gateway, judge(&gateway, &websocket.handshake).await);
            };
            stream::iter(gateway.websockets.all()).for_each_concurrent(ASKED_AT_A_TIME, judge_one).await;
        }
    };
    tokio::join!(look, ask);
}

/// Closes one if it would be refused now.
fn close_if(websocket: &WebSocket, gateway: &Gateway, judged: Result<(), Refusal>) {
    let (Err(refusal), request_id) = (judged, &websocket.handshake.request_id) else { return };
    if !websocket.close() {
        return;
    }
    let (code, stage) = (refusal.code.as_str(), refusal.stage.as_str());
    info!(request_id, code, stage, detail = refusal.detail, "WebSocket closed: it would not be let in now");
    gateway.metrics.websockets_closed.with_label_values(&[code]).inc();
}

fn request<'h>(handshake: &'h Handshake, fields: &'h [(&'h str, &'h [u8])]) -> Request<'h> {
    let (method, headers) = (handshake.header.method.as_str(), Headers::new(fields));
    Request { peer: handshake.peer, method, path: &handshake.path, headers, body: None }
}

/// Runs the checks that need no other service.
fn still_let_in(gateway: &Arc<Gateway>, handshake: &Handshake) -> Result<(), Refusal> {
    let world = Handle(Arc::clone(gateway));
    let fields = fields_of(&handshake.header);
    let policy = gateway.policy();
    still_holds(&policy.rules, &request(handshake, &fields), &handshake.subject, &world)
}

/// Judges a handshake by the current state. If a service is unavailable, the WebSocket stays open, because it was
/// admitted when the service answered.
async fn judge(gateway: &Arc<Gateway>, handshake: &Handshake) -> Result<(), Refusal> {
    let policy = gateway.policy();
    let fields = fields_of(&handshake.header);
    let judged = rejudge(&policy.rules, &request(handshake, &fields), &Handle(Arc::clone(gateway))).await;
    judged.or_else(|refusal| if refusal.status() >= 500 { Ok(()) } else { Err(refusal) })
}
