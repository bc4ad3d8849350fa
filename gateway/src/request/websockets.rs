//! Every `WebSocket` that is open. What let it in is judged again whenever any of it may have changed: the policy, bans,
//! revocations, roles, permissions, API keys; and when its token ends. It is closed when it would not be let in any more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;
use pingora_http::RequestHeader;
use policy::pipeline::{rejudge, still_holds};
use policy::rules::authenticate::Subject;
use policy::values::refusal::Refusal;
use policy::values::request::{Headers, Request};
use policy::values::time::Timestamp;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::info;

use crate::clock;
use crate::engine::{Gateway, Handle};
use crate::http::fields::Fields;

/// A token's end is looked for at least so often: the wall clock may be set.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// So many are asked about at a time.
const ASKED_AT_A_TIME: usize = 64;

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
    /// Who was let in.
    pub subject: Subject,
}

struct Tunnel {
    handshake: Handshake,
    cut: Arc<Notify>,
    closed: AtomicBool,
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
        let (cut, ends) = (Arc::new(Notify::new()), handshake.subject.ends());
        let tunnel = Tunnel { handshake, cut: Arc::clone(&cut), closed: AtomicBool::new(false) };
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
                let left = ends.since(clock::wall());
                sleep(left.clamp(Duration::from_millis(1), LONGEST_WAIT)).await;
                if clock::wall() >= ends {
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
    fn all(&self) -> Vec<Arc<Tunnel>> {
        self.open.lock().values().map(Arc::clone).collect()
    }

    /// Open ones.
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Judges the open ones again whenever there may be a reason to, forever. What nobody else need be asked about counts at
/// once; who has to be asked may be slow, so those are asked beside it and beside each other.
pub async fn watch(gateway: Arc<Gateway>) {
    let asking = Notify::new();
    let look = async {
        loop {
            tokio::select! {
                () = gateway.tunnels.look.notified() => {}
                () = gateway.permissions.changed.notified() => {}
            }
            for tunnel in gateway.tunnels.all() {
                tunnel.close_if(&gateway, still_let_in(&gateway, &tunnel.handshake));
            }
            asking.notify_one();
        }
    };
    let ask = async {
        loop {
            asking.notified().await;
            let judge_one = async |tunnel: Arc<Tunnel>| {
                tunnel.close_if(&gateway, judge(&gateway, &tunnel.handshake).await);
            };
            stream::iter(gateway.tunnels.all()).for_each_concurrent(ASKED_AT_A_TIME, judge_one).await;
        }
    };
    tokio::join!(look, ask);
}

impl Tunnel {
    /// Closes it when it would not be let in now.
    fn close_if(&self, gateway: &Gateway, judged: Result<(), Refusal>) {
        let (Err(refusal), request_id) = (judged, &self.handshake.request_id) else { return };
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        let (code, stage) = (refusal.code.as_str(), refusal.stage.as_str());
        info!(
            request_id,
            code,
            stage,
            detail = refusal.detail,
            "WebSocket closed: it would not be let in now"
        );
        gateway.metrics.tunnels_closed.with_label_values(&[code]).inc();
        self.cut.notify_one();
    }
}

impl Handshake {
    /// What the specification reads of it.
    fn read<T>(&self, judge: impl FnOnce(&Request<'_>) -> T) -> T {
        let headers = &self.header.headers;
        let fields: Fields<'_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        judge(&self.request(&fields))
    }

    fn request<'h>(&'h self, fields: &'h [(&'h str, &'h [u8])]) -> Request<'h> {
        let (method, headers) = (self.header.method.as_str(), Headers::new(fields));
        Request { peer: self.peer, method, path: &self.path, headers, body: None }
    }
}

/// Whether what nobody else need be asked about still holds.
fn still_let_in(gateway: &Arc<Gateway>, handshake: &Handshake) -> Result<(), Refusal> {
    let world = Handle(Arc::clone(gateway));
    handshake.read(|request| still_holds(&gateway.policy().rules, request, &handshake.subject, &world))
}

/// Judges a handshake by what holds now. Nobody to ask is no reason to close: it was let in when somebody was.
async fn judge(gateway: &Arc<Gateway>, handshake: &Handshake) -> Result<(), Refusal> {
    let policy = gateway.policy();
    let headers = &handshake.header.headers;
    let fields: Fields<'_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let request = handshake.request(&fields);
    let judged = rejudge(&policy.rules, &request, &Handle(Arc::clone(gateway))).await;
    judged.or_else(|refusal| if refusal.status() >= 500 { Ok(()) } else { Err(refusal) })
}
