//! Every `WebSocket` that is open. Each is looked at again when something is revoked or somebody's permissions change, and closed
//! when what let it in does not hold any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use policy::authenticate::Subject;
use policy::routes::Route;
use policy::world::Question;
use tokio::sync::Notify;
use tracing::info;

use crate::clock;
use crate::gateway::Gateway;

/// The open ones.
#[derive(Default)]
pub struct Tunnels {
    open: Mutex<HashMap<u64, Arc<Tunnel>>>,
    next: AtomicU64,
    /// Woken when they should be looked at again.
    pub look: Notify,
}

struct Tunnel {
    route: Arc<Route>,
    subject: Subject,
    /// What the permission was asked on.
    resource: Option<String>,
    request_id: String,
    cut: Arc<Notify>,
}

/// An open one, until this is dropped.
pub struct Open {
    gateway: Arc<Gateway>,
    number: u64,
    /// Woken when it has to be closed.
    pub cut: Arc<Notify>,
}

impl Open {
    /// Notes a WebSocket that was let in.
    pub fn new(
        gateway: &Arc<Gateway>,
        route: &Arc<Route>,
        subject: &Subject,
        path: &str,
        request_id: &str,
    ) -> Self {
        let cut = Arc::new(Notify::new());
        let resource = route.permission.as_ref().map(|needed| needed.resource.fill(&route.pattern, path));
        let tunnel = Tunnel {
            route: Arc::clone(route),
            subject: subject.clone(),
            resource,
            request_id: request_id.to_owned(),
            cut: Arc::clone(&cut),
        };
        let tunnels = &gateway.tunnels;
        let number = tunnels.next.fetch_add(1, Ordering::Relaxed);
        tunnels.open.lock().insert(number, Arc::new(tunnel));
        tunnels.look.notify_one(); // what was taken back while it was let in is found now
        Self { gateway: Arc::clone(gateway), number, cut }
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

/// Looks at the open ones whenever there may be a reason to, forever.
pub async fn watch(gateway: Arc<Gateway>) {
    loop {
        tokio::select! {
            () = gateway.tunnels.look.notified() => {}
            () = gateway.permissions.changed.notified() => {}
        }
        let open: Vec<Arc<Tunnel>> = gateway.tunnels.open.lock().values().map(Arc::clone).collect();
        for tunnel in open {
            if let Some(why) = taken_back(&gateway, &tunnel).await {
                info!(request_id = tunnel.request_id, route = &*tunnel.route.name, why, "WebSocket closed");
                gateway.metrics.tunnels_closed.with_label_values(&[why]).inc();
                tunnel.cut.notify_one();
            }
        }
    }
}

/// Why a WebSocket would not be let in any more.
async fn taken_back(gateway: &Gateway, tunnel: &Tunnel) -> Option<&'static str> {
    let credential = tunnel.subject.credential()?;
    if gateway.revocations.revokes(&credential, clock::now()) {
        return Some("revoked");
    }
    let (needed, resource) = tunnel.route.permission.as_ref().zip(tunnel.resource.as_deref())?;
    let question =
        Question { rule: &tunnel.route.name, user: credential.sub, permission: &needed.permission, resource };
    let rule = gateway.policy().rules.permissions.clone();
    // Nobody to ask is no reason: it was let in when somebody was.
    let allowed = gateway.permissions.permitted(&rule, &question).await.ok()?;
    (!allowed).then_some("permission")
}
