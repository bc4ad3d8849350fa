//! What all connections share: the policy in force, the stores, and the state that replicas agree about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use policy::values::time::Timestamp;
use serde_json::{Value, json};
use service::lines::{Full, Reserved};
use tokio::sync::{Notify, mpsc};
use tracing::warn;

use crate::clock;
use crate::engine::websockets::WebSockets;
use crate::identity::keys::Keys;
use crate::identity::verified_tokens::VerifiedTokens;
use crate::live_policy::in_force::PolicyInForce;
use crate::live_policy::loaded::Loaded;
use crate::observe::audit::{Actor, AuditLog, Entry};
use crate::observe::metrics::Metrics;
use crate::observe::usage::Usage;
use crate::permissions::{Permissions, Revoked};
use crate::resilience::backoff::Backoff;
use crate::resilience::breakers::Breakers;
use crate::resilience::concurrency::ConcurrencyLimits;
use crate::resilience::last_good::LastGood;
use crate::resilience::retry_budget::Budgets;
use crate::state::bans::BanList;
use crate::state::local::LocalStore;
use crate::state::redis::{News, RedisStore};
use crate::state::replicated_state::ReplicatedState;
use crate::state::revocations::{self, Revocations};
use crate::state::store::{Change, Put, Store as _, Topic};
use crate::upstream::fault::FaultLog;

/// Everything that decisions need, shared by all connections.
pub struct Gateway {
    live: Arc<PolicyInForce>,
    /// This replica's own buckets.
    pub(super) local: LocalStore,
    /// The buckets that all replicas share, if they share any.
    pub(super) shared: Option<Arc<RedisStore>>,
    /// What replicas agree about.
    pub(super) replicated_state: Arc<ReplicatedState>,
    /// Bans in force.
    pub bans: BanList,
    /// Revocations in force.
    pub revocations: Revocations,
    pub(super) keys: Arc<Keys>,
    pub(super) verified_tokens: VerifiedTokens,
    /// The client of the permission service.
    pub permissions: Arc<Permissions>,
    /// Held while the replicated state is put in force, so that an older state never replaces a newer one.
    taking_effect: parking_lot::Mutex<()>,
    /// Woken when state should be saved that no request waits for.
    save_soon: Notify,
    /// The breakers of this replica.
    pub breakers: Breakers,
    /// `WebSocket`s that are open.
    pub websockets: Arc<WebSockets>,
    /// Answers that are given again while a breaker is open.
    pub last_good: LastGood,
    /// How many requests each upstream has in flight.
    pub concurrency: ConcurrencyLimits,
    /// How many retries each upstream may receive.
    pub retry_budgets: Budgets,
    /// When faults of upstreams were last logged.
    pub fault_log: FaultLog,
    /// The metrics.
    pub metrics: Metrics,
    /// The audit log: who changed what.
    pub audit: AuditLog,
    /// The busiest clients, users, routes and buckets.
    pub usage: Usage,
}

/// What a gateway is made of.
pub struct Components {
    /// The policy in force.
    pub live: Arc<PolicyInForce>,
    /// The store that replicas share, if they do.
    pub shared: Option<Arc<RedisStore>>,
    /// What replicas agree about.
    pub replicated_state: Arc<ReplicatedState>,
    /// The key sets of issuers.
    pub keys: Arc<Keys>,
    /// Who may do what.
    pub permissions: Arc<Permissions>,
    /// What is counted.
    pub metrics: Metrics,
    /// Who changed what.
    pub audit: AuditLog,
}

impl Gateway {
    /// A gateway that decides by the policy in force.
    pub fn new(components: Components) -> Arc<Self> {
        let Components { live, shared, replicated_state, keys, permissions, metrics, audit } = components;
        let bans = BanList::default();
        bans.replace(&replicated_state.holding(Topic::Bans, clock::wall()));
        let revocations = Revocations::default();
        revocations.replace(&replicated_state.holding(Topic::Revocations, clock::wall()));
        Arc::new(Self {
            websockets: WebSockets::new(Arc::clone(&live.judge_again)),
            live,
            local: LocalStore::default(),
            shared,
            replicated_state,
            bans,
            revocations,
            keys,
            verified_tokens: VerifiedTokens::default(),
            permissions,
            taking_effect: parking_lot::Mutex::default(),
            save_soon: Notify::new(),
            breakers: Breakers::new(metrics.clone()),
            last_good: LastGood::default(),
            concurrency: ConcurrencyLimits::default(),
            retry_budgets: Budgets::default(),
            fault_log: FaultLog::default(),
            metrics,
            audit,
            usage: Usage::default(),
        })
    }

    /// What replicas agree about.
    pub fn replicated_state(&self) -> &ReplicatedState {
        &self.replicated_state
    }

    /// The store that replicas share, if there is one.
    pub fn shared(&self) -> Option<&Arc<RedisStore>> {
        self.shared.as_ref()
    }

    /// This replica's own buckets.
    pub fn local(&self) -> &LocalStore {
        &self.local
    }

    /// The policy in force. A request takes it once.
    pub fn policy(&self) -> Arc<Loaded> {
        self.live.policy()
    }

    /// The holder of the policy in force, through which it is replaced.
    pub fn live(&self) -> &Arc<PolicyInForce> {
        &self.live
    }

    /// Whether the shared store answers; `None` when nothing is shared.
    pub fn shared_store_is_up(&self) -> Option<bool> {
        self.shared.as_ref().map(|store| store.is_up())
    }

    /// Makes changes: here at once, and on the other replicas as soon as they receive them. They are stored before this
    /// returns.
    pub async fn change(self: &Arc<Self>, changes: Vec<Change>, by: By<'_>) -> Result<(), ChangeFault> {
        let now = clock::wall();
        let mut lines = Vec::with_capacity(changes.len());
        for change in &changes {
            match self.audit_change(change, by, now) {
                Ok(line) => lines.push(line),
                Err(Full) if by.actor == Actor::Operator => return Err(ChangeFault::NotAudited),
                // A change that protects the service does not wait for the log.
                Err(Full) => self.audit.note_dropped(),
            }
        }
        let made = self.replicated_state.change(changes, now);
        self.take_effect(&made, now);
        for line in lines {
            line.write();
        }
        // It is in force. A task of its own sends it to the other replicas, even if the caller is cancelled now.
        let gateway = Arc::clone(self);
        let kept = tokio::spawn(async move {
            if let Some(shared) = &gateway.shared {
                for change in made {
                    gateway.share(shared, change, now).await;
                }
            }
            gateway.save().await
        });
        kept.await.map_err(std::io::Error::from).and_then(|kept| kept).map_err(ChangeFault::NotKept)
    }

    /// Saves the replicated state. If that fails, it is tried again until it succeeds.
    async fn save(&self) -> std::io::Result<()> {
        self.replicated_state.save().await.inspect_err(|_| self.save_soon.notify_one())
    }

    /// Sends a change to the other replicas. If Redis holds a newer change that was not received here, the change is
    /// made again with a later time. If Redis is unavailable, the change is sent when it is back.
    async fn share(&self, shared: &RedisStore, mut change: Change, now: Timestamp) {
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            let Ok(Put::Known(at)) = shared.put(&change).await else { return };
            change.changed_at = at.saturating_add(1);
            let news = self.replicated_state.apply([change.clone()], now);
            self.take_effect(&news, now);
        }
        warn!(key = change.key, "a change was overtaken by those of other replicas");
    }

    fn audit_change(&self, change: &Change, by: By<'_>, now: Timestamp) -> Result<Reserved, Full> {
        let before = self.replicated_state.find(change.topic, &change.key, now);
        let action = match (change.topic, &change.value) {
            (Topic::Bans, Some(_)) => "block",
            (Topic::Bans, None) => "unblock",
            (Topic::Overrides, Some(_)) => "override",
            (Topic::Overrides, None) => "remove_override",
            (Topic::Revocations, Some(_)) => "revoke",
            (Topic::Revocations, None) => "unrevoke",
        };
        let state = |change: &Change| match change.until {
            Some(until) => json!({"value": change.value, "until": clock::text(until)}),
            None => json!(change.value),
        };
        self.audit.reserve(&Entry {
            action,
            target: &change.key,
            actor: by.actor,
            before: before.as_ref().map_or(Value::Null, state),
            after: change.value.as_ref().map_or(Value::Null, |_| state(change)),
            request_id: by.request_id,
        })
    }

    /// Puts `news` in force: the ban list is built again, and the policy is judged again with the overrides.
    fn take_effect(&self, news: &[Change], now: Timestamp) {
        let _one_at_a_time = self.taking_effect.lock();
        if news.iter().any(|change| change.topic == Topic::Bans) {
            self.bans.replace(&self.replicated_state.holding(Topic::Bans, now));
            self.metrics.ip_blocks_active.set(i64::try_from(self.bans.len()).unwrap_or(i64::MAX));
            self.live.judge_again.notify_one();
        }
        if news.iter().any(|change| change.topic == Topic::Revocations) {
            self.revocations.replace(&self.replicated_state.holding(Topic::Revocations, now));
            self.live.judge_again.notify_one();
        }
        if news.iter().any(|change| change.topic == Topic::Overrides) {
            self.live.overrides_changed.notify_one();
        }
    }

    /// Puts in force the tokens that the backend revoked. The backend sends them to every gateway itself. They are
    /// saved soon after, because the backend may be unavailable when this gateway starts again.
    pub fn revoke_for_backend(&self, tokens: Vec<Revoked>) {
        let now = clock::wall();
        let change = |token: Revoked| Change {
            topic: Topic::Revocations,
            key: revocations::By::Jti.key(&token.jti),
            value: Some(json!({"reason": "the backend ended its session"})),
            until: Some(token.until.as_nanos()),
            // Equal at every gateway, and older than any change that an operator makes.
            changed_at: 0,
        };
        let one_at_a_time = self.taking_effect.lock();
        let news = self.replicated_state.apply(tokens.into_iter().map(change), now);
        self.revocations.add_tokens(&news);
        drop(one_at_a_time);
        if !news.is_empty() {
            self.live.judge_again.notify_one();
            self.save_soon.notify_one();
        }
    }

    /// Saves state that no request waits for, forever: a moment after it was learnt, so that what follows closely is
    /// saved together with it.
    pub async fn save_what_was_learnt(&self) {
        const MOMENT: Duration = Duration::from_millis(500);
        const LONGEST_PAUSE: Duration = Duration::from_secs(10);
        loop {
            self.save_soon.notified().await;
            tokio::time::sleep(MOMENT).await;
            let mut backoff = Backoff::from(MOMENT);
            while self.replicated_state.save().await.is_err() {
                tokio::time::sleep(backoff.failed(LONGEST_PAUSE, rand::random()).1).await;
            }
        }
    }

    /// Applies the changes of other replicas, forever. After a lost connection both sides are merged and the newest
    /// change wins. A store that came back empty receives what is known here.
    pub async fn follow_changes(&self, mut news: mpsc::Receiver<News>) {
        /// The most changes that are applied together: the ban list is built once for all of them.
        const TOGETHER: usize = 256;
        let mut received = Vec::with_capacity(TOGETHER);
        while news.recv_many(&mut received, TOGETHER).await > 0 {
            let now = clock::wall();
            let missed = received.iter().any(|news| matches!(news, News::Missed));
            let changes = received.drain(..).filter_map(|news| match news {
                News::Changed(change) => Some(change),
                News::Missed => None,
            });
            let mut fresh = self.replicated_state.apply(changes, now);
            if missed {
                fresh.extend(self.merge().await);
            }
            self.take_effect(&fresh, now);
            if !fresh.is_empty() {
                let _ = self.save().await; // a failure is logged and the save is tried again
            }
        }
    }

    /// Applies what the shared store knows, sends it what it does not know, and returns what was new here.
    async fn merge(&self) -> Vec<Change> {
        let (Some(shared), now) = (&self.shared, clock::wall()) else { return Vec::new() };
        let mut fresh = Vec::new();
        for topic in Topic::ALL {
            let Ok(theirs) = shared.all(topic).await else { return fresh };
            fresh.extend(self.replicated_state.apply(theirs.iter().cloned(), now));
            let known: HashMap<&str, u64> =
                theirs.iter().map(|change| (change.key.as_str(), change.changed_at)).collect();
            let unknown = |change: &Change| {
                known.get(change.key.as_str()).is_none_or(|changed_at| *changed_at < change.changed_at)
            };
            for change in self.replicated_state.all(topic, now).iter().filter(|change| unknown(change)) {
                if shared.put(change).await.is_err() {
                    return fresh; // the connection was lost again: the next merge continues
                }
            }
        }
        fresh
    }

    /// Drops what has no effect any more, at intervals, forever.
    pub async fn sweep(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(30)).await;
            let now = clock::steady();
            self.local.sweep(now, self.policy().rules.blocks.auto);
            if let Some(shared) = &self.shared {
                shared.sweep(now);
            }
            let now = clock::wall();
            let one_at_a_time = self.taking_effect.lock();
            self.replicated_state.sweep(now);
            let bans = self.replicated_state.holding(Topic::Bans, now);
            if bans.len() != self.bans.len() {
                self.bans.replace(&bans);
            }
            self.revocations.replace(&self.replicated_state.holding(Topic::Revocations, now));
            drop(one_at_a_time);
            self.metrics.ip_blocks_active.set(i64::try_from(self.bans.len()).unwrap_or(i64::MAX));
        }
    }
}

/// Why a change was not made as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ChangeFault {
    /// Nothing was changed.
    #[error("the audit log cannot take another line")]
    NotAudited,
    /// The change is in force, and is stored as soon as possible.
    #[error(transparent)]
    NotKept(std::io::Error),
}

/// Who changes something, and by which request.
#[derive(Clone, Copy, Debug)]
pub struct By<'r> {
    /// Who changes it.
    pub actor: Actor,
    /// The request that changes it.
    pub request_id: &'r str,
}
