//! The state that all handlers share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::Notify;

use crate::config::AccountRules;
use crate::config::secrets::Secrets;
use crate::http::assertion::Verifier;
use crate::mail::Mail;
use crate::model::access_tokens::Signer;
use crate::model::login_guard::LoginGuard;
use crate::observe::metrics::Metrics;
use crate::storage::Database;

/// What the handlers share; cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) database: Database,
    pub(crate) signer: Arc<Signer>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) metrics: Metrics,
    /// Whether the program is shutting down.
    pub(crate) draining: Arc<AtomicBool>,
    pub(crate) rules: Arc<AccountRules>,
    pub(crate) login_guard: Arc<LoginGuard>,
    pub(crate) mail: Arc<Mail>,
    /// Wakes the outbox: somebody asked for a mail to reset a password.
    pub(crate) reset_requested: Arc<Notify>,
    pub(crate) verifier: Arc<Option<Verifier>>,
    /// Connections that read, at most.
    pub(crate) pool_slots: usize,
}
