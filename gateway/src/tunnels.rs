//! Every `WebSocket` that is open. What let it in is judged again whenever any of it may have changed: the policy, bans,
//! revocations, roles, permissions, API keys; and when its token ends. It is closed when it would not be let in any more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pingora_http::RequestHeader;
use policy::pipeline::rejudge;
use policy::refusal::Refusal;
use policy::request::{Headers, Request};
use policy::time::Timestamp;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::info;

use crate::clock;
use crate::exchange::Fields;
use crate::gateway::{Gateway, Handle};

/// A token's end is looked for at least so often: the wall clock may be set.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// The open ones.
#[derive(Default)]
pub struct Tunnels {
    open: Mutex<HashMap<u64, Arc<Tunnel>>>,
    next: AtomicU64,
    /// Woken when they should be judged again.
    pub look: Notify,
}

/// What one was let in by: its handshake, proof and all.
pub struct Handshake {
    /// The address at the other end of the connection.
    pub peer: IpAddr,
    /// The normal path.
    pub path: String,
    /// Its header.
    pub header: RequestHeader,
    /// Its request id.
    pub request_id: String,
    /// When its token ends.
    pub ends: Option<Timestamp>,
}

struct Tunnel {
    handshake: Handshake,
    cut: Arc<Notify>,
}

/// An open one, until this is dropped.
pub struct Open {
    gateway: Arc<Gateway>,
    number: u64,
    /// Woken when it has to be closed.
    pub cut: Arc<Notify>,
    ends: Option<Timestamp>,
}

impl Open {
    /// Notes a WebSocket that was let in.
    pub fn new(gateway: &Arc<Gateway>, handshake: Handshake) -> Self {
        let (cut, ends) = (Arc::new(Notify::new()), handshake.ends);
        let tunnel = Tunnel { handshake, cut: Arc::clone(&cut) };
        let tunnels = &gateway.tunnels;
        let number = tunnels.next.fetch_add(1, Ordering::Relaxed);
        tunnels.open.lock().insert(number, Arc::new(tunnel));
        tunnels.look.notify_one(); // what was taken back while it was let in is found now
        Self { gateway: Arc::clone(gateway), number, cut, ends }
    }

    /// Waits until it has to be closed, and has it judged again when its token ends.
    pub async fn closed(&self) {
        let ended = async {
            let Some(ends) = self.ends else { return std::future::pending().await };
            loop {
                let left = ends.since(clock::now());
                sleep(left.clamp(Duration::from_millis(1), LONGEST_WAIT)).await;
                if clock::now() >= ends {
                    self.gateway.tunnels.look.notify_one();
                    sleep(LONGEST_WAIT).await;
                }
            }
        };
        tokio::select! {
            () = self.cut.notified() => {}
            () = ended => {}
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gateway.tunnels.open.lock().remove(&self.number);
    }
}

impl Tunnels {
    /// Open ones.
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Judges the open ones again whenever there may be a reason to, forever.
pub async fn watch(gateway: Arc<Gateway>) {
    loop {
        tokio::select! {
            () = gateway.tunnels.look.notified() => {}
            () = gateway.permissions.changed.notified() => {}
        }
        let open: Vec<Arc<Tunnel>> = gateway.tunnels.open.lock().values().map(Arc::clone).collect();
        for tunnel in open {
            let Handshake { request_id, .. } = &tunnel.handshake;
            if let Err(refusal) = judge(&gateway, &tunnel.handshake).await {
                let (code, stage) = (refusal.code.as_str(), refusal.stage.as_str());
                info!(
                    request_id,
                    code,
                    stage,
                    detail = refusal.detail,
                    "WebSocket closed: it would not be let in now"
                );
                gateway.metrics.tunnels_closed.with_label_values(&[code]).inc();
                tunnel.cut.notify_one();
            }
        }
    }
}

/// Judges a handshake by what holds now. Nobody to ask is no reason to close: it was let in when somebody was.
async fn judge(gateway: &Arc<Gateway>, handshake: &Handshake) -> Result<(), Refusal> {
    let policy = gateway.policy();
    let headers = &handshake.header.headers;
    let fields: Fields<'_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let request = Request {
        peer: handshake.peer,
        method: handshake.header.method.as_str(),
        path: &handshake.path,
        headers: Headers::new(&fields),
        body: None,
    };
    let judged = rejudge(&policy.rules, &request, &Handle(Arc::clone(gateway))).await;
    judged.or_else(|refusal| if refusal.status() >= 500 { Ok(()) } else { Err(refusal) })
}
