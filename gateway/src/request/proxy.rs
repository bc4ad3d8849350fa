//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::Gateway;
use crate::identity::assertion::Signer;
use crate::observe::access::AccessLog;
use crate::upstream::Upstreams;
use crate::upstream::connection::Pool;

/// The proxy: what all requests share.
pub struct Proxy {
    /// What decides.
    pub gateway: Arc<Gateway>,
    /// Where requests go.
    pub upstreams: Upstreams,
    /// The connections on which they go there.
    pub pool: Pool,
    /// What the backend believes us for.
    pub signer: Option<Signer>,
    /// What is written of each request.
    pub access: AccessLog,
    /// True from SIGTERM on: an answered client should come back on another connection, to another replica.
    pub draining: Arc<AtomicBool>,
    /// Whether the profile is production.
    pub production: bool,
}

impl Proxy {
    /// Whether clients should come back on another connection.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
