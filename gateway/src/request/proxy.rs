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
    /// Makes the decisions.
    pub gateway: Arc<Gateway>,
    /// The upstreams to which requests are sent.
    pub upstreams: Upstreams,
    /// The pool of connections to them.
    pub pool: Pool,
    /// Signs the assertions that the permission service trusts.
    pub signer: Option<Signer>,
    /// The access log.
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
