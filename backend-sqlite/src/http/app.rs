//! The state that all handlers share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::config::AccountRules;
use crate::config::secrets::Secrets;
use crate::http::assertion::Verifier;
use crate::mail::Mail;
use crate::model::access_tokens::Signer;
use crate::model::login_guard::LoginGuard;
use crate::observe::metrics::Metrics;
use crate::outbox::Outbox;
use crate::storage::Database;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) database: Database,
    pub(crate) signer: Arc<Signer>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) metrics: Metrics,
    pub(crate) leaving: Arc<AtomicBool>,
    pub(crate) accounts: Arc<AccountRules>,
    pub(crate) login_guard: Arc<LoginGuard>,
    pub(crate) mail: Arc<Mail>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) verifier: Arc<Option<Verifier>>,
    pub(crate) pool_places: usize,
}
