//! The policy in force: a snapshot that each request takes once, and that is replaced in one step.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::live_policy::loaded::Loaded;
use crate::observe::audit::{Actor, AuditLog, Entry};

/// The policy in force, and notifications when it changes.
pub struct PolicyInForce {
    policy: ArcSwap<Loaded>,
    audit: AuditLog,
    /// Woken when every open `WebSocket` should be judged again.
    pub judge_again: Arc<Notify>,
    /// Woken when overrides changed.
    pub overrides_changed: Notify,
}

impl PolicyInForce {
    /// Begins with `policy`.
    pub fn new(policy: Arc<Loaded>, audit: AuditLog) -> Arc<Self> {
        Arc::new(Self {
            policy: ArcSwap::new(policy),
            audit,
            judge_again: Arc::default(),
            overrides_changed: Notify::new(),
        })
    }

    /// The policy in force. A request takes it once.
    pub fn policy(&self) -> Arc<Loaded> {
        self.policy.load_full()
    }

    /// Puts another policy in force, in one step. Requests in flight finish under theirs.
    pub fn replace(&self, policy: Arc<Loaded>) {
        self.policy.store(policy);
        self.judge_again.notify_one();
    }

    /// Writes to the audit log that one policy replaced another.
    pub(super) fn audit(&self, action: &str, before: &Loaded, after: &Loaded) {
        self.audit.write(&Entry {
            action,
            target: &after.file,
            actor: Actor::Policy,
            before: before.sha256.as_str().into(),
            after: after.sha256.as_str().into(),
            request_id: "",
        });
    }
}
