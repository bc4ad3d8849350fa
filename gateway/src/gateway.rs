//! The gateway as the specification sees it: a [`World`] of stores, keys, permissions and breakers.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use policy::authenticate::Issuer;
use policy::authorize::PermissionRule;
use policy::blocks::{AutoBlock, Ban};
use policy::breaker::{BreakerRule, Outcome};
use policy::client::Client;
use policy::limits::{Charge, Charges};
use policy::time::Timestamp;
use policy::token::Token;
use policy::world::{PermissionAway, Question, Store as Which, StoreAway, VerifyFault, World};
use tokio::sync::mpsc;
use tracing::{Instrument as _, info, info_span};

use crate::bans::BanList;
use crate::breakers::{BreakerPass, Breakers};
use crate::clock;
use crate::keys::Keys;
use crate::observe::metrics::Metrics;
use crate::permissions::Permissions;
use crate::reload::Loaded;
use crate::store::local::LocalStore;
use crate::store::redis::RedisStore;
use crate::store::{BanChange, Readings, Store as _};

/// Everything that decisions need, shared by all connections.
pub struct Gateway {
    policy: ArcSwap<Loaded>,
    /// This replica's own buckets.
    local: LocalStore,
    /// The buckets of all replicas, when they share any.
    shared: Option<Arc<RedisStore>>,
    /// What this replica does on its own while the shared store is away.
    alone: LocalStore,
    /// Bans in force.
    pub bans: BanList,
    keys: Arc<Keys>,
    permissions: Arc<Permissions>,
    /// The breakers of this replica.
    pub breakers: Breakers,
    /// What can be counted.
    pub metrics: Metrics,
}

impl Gateway {
    /// A gateway that judges by `policy`.
    pub fn new(
        policy: Arc<Loaded>,
        shared: Option<Arc<RedisStore>>,
        keys: Arc<Keys>,
        permissions: Arc<Permissions>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            policy: ArcSwap::new(policy),
            local: LocalStore::default(),
            shared,
            alone: LocalStore::default(),
            bans: BanList::default(),
            keys,
            permissions,
            breakers: Breakers::new(metrics.clone()),
            metrics,
        })
    }

    /// The policy in force. A request takes it once.
    pub fn policy(&self) -> Arc<Loaded> {
        self.policy.load_full()
    }

    /// Puts another policy in force, in one step. Requests in flight finish under theirs.
    pub fn put_in_force(&self, policy: Arc<Loaded>) {
        self.policy.store(policy);
    }

    /// Whether the shared store answers; `None` when nothing is shared.
    pub fn shared_store_is_up(&self) -> Option<bool> {
        self.shared.as_ref().map(|store| store.is_up())
    }

    /// Makes, changes or lifts a ban, here at once and on the other replicas as soon as they hear of it.
    pub async fn change_ban(&self, change: BanChange) {
        let now = clock::now();
        let kind = if change.lifted { "unblock" } else { "block" };
        info!(target: "audit", action = kind, network = %change.network, reason = change.reason, until = change.until);
        self.bans.apply(change.clone(), now);
        self.metrics.ip_blocks_active.set(i64::try_from(self.bans.active(now)).unwrap_or(i64::MAX));
        if let Some(shared) = &self.shared {
            // Away: it is put there when Redis is back.
            let _ = shared.publish_ban(&change).await;
        }
    }

    /// Takes in what other replicas change, forever. After a cut both sides are merged, the newest change wins, and a
    /// store that came back empty is given what is known here.
    pub async fn follow_bans(&self, mut news: mpsc::Receiver<Option<BanChange>>) {
        while let Some(change) = news.recv().await {
            let now = clock::now();
            match change {
                Some(change) => {
                    self.bans.apply(change, now);
                }
                None => self.merge_bans().await,
            }
            self.metrics.ip_blocks_active.set(i64::try_from(self.bans.active(now)).unwrap_or(i64::MAX));
        }
    }

    async fn merge_bans(&self) {
        let Some(shared) = &self.shared else { return };
        let Ok(theirs) = shared.bans().await else { return };
        let now = clock::now();
        for change in &theirs {
            self.bans.apply(change.clone(), now);
        }
        let known = |change: &BanChange| {
            theirs
                .iter()
                .any(|other| other.network == change.network && other.changed_at >= change.changed_at)
        };
        for change in self.bans.changes(now).iter().filter(|change| !known(change)) {
            if shared.publish_ban(change).await.is_err() {
                return; // cut again: the next merge goes on
            }
        }
    }

    /// Drops what says nothing any more, now and then, forever.
    pub async fn sweep(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(30)).await;
            let now = clock::now();
            let window = self.policy().rules.blocks.auto.map_or(Duration::ZERO, |auto| auto.window);
            self.local.sweep(now, window);
            self.alone.sweep(now, window);
            self.metrics.ip_blocks_active.set(i64::try_from(self.bans.active(now)).unwrap_or(i64::MAX));
        }
    }

    async fn spend_shared(
        &self,
        shared: &RedisStore,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Readings, StoreAway> {
        let span =
            info_span!("redis", otel.name = "EVALSHA spend", otel.kind = "client", db.system.name = "redis");
        let readings = shared.spend(charges, now).instrument(span).await?;
        // The level last known is where this replica starts from when it is alone.
        for (charge, reading) in charges.iter().zip(&readings) {
            self.alone.note(&charge.bucket, reading.arrival, now);
        }
        Ok(readings)
    }

    fn replicas(&self) -> u32 {
        self.shared.as_ref().map_or(1, |shared| shared.replicas())
    }
}

/// Bans a client whose failed logins are too many.
async fn count_failure(gateway: Arc<Gateway>, client: Client, rule: AutoBlock, now: Timestamp) {
    let counted = match &gateway.shared {
        Some(shared) => shared.count_failure(client.network, rule, now).await,
        None => Err(StoreAway),
    };
    let count = match counted {
        Ok(count) => Ok(count),
        Err(StoreAway) => gateway.local.count_failure(client.network, rule, now).await,
    };
    if count.unwrap_or(0) < rule.failures {
        return;
    }
    gateway.metrics.ip_blocks.with_label_values(&["failed_logins"]).inc();
    let change = BanChange {
        network: client.network,
        until: Some((now + rule.duration).as_nanos()),
        lifted: false,
        reason: format!("{} failed logins", rule.failures),
        changed_at: clock::now().as_nanos(),
    };
    gateway.change_ban(change).await;
    clear_failures(gateway, client).await;
}

async fn clear_failures(gateway: Arc<Gateway>, client: Client) {
    let _ = gateway.local.clear_failures(client.network).await;
    if let Some(shared) = &gateway.shared {
        let _ = shared.clear_failures(client.network).await;
    }
}

/// A handle by which the specification asks; it starts background work of its own, so it holds the gateway by count.
#[derive(Clone)]
pub struct Handle(pub Arc<Gateway>);

impl World for Handle {
    type Pass = BreakerPass;

    fn now(&self) -> Timestamp {
        clock::now()
    }

    fn banned(&self, client: &Client, now: Timestamp) -> Option<Ban> {
        self.0.bans.find(client, now)
    }

    async fn spend(&self, store: Which, charges: &[Charge], now: Timestamp) -> Result<Readings, StoreAway> {
        let gateway = &*self.0;
        match (store, &gateway.shared) {
            (Which::Shared, Some(shared)) => gateway.spend_shared(shared, charges, now).await,
            (Which::Shared | Which::Local, _) => Ok(gateway.local.spend_shared(charges, now, 1)),
            (Which::Alone, _) => Ok(gateway.alone.spend_shared(charges, now, gateway.replicas())),
        }
    }

    fn refund(&self, store: Which, charges: Charges) {
        let gateway = Arc::clone(&self.0);
        tokio::spawn(async move {
            let now = clock::now();
            let _ = match (store, &gateway.shared) {
                (Which::Shared, Some(shared)) => shared.refund(charges, now).await,
                (Which::Shared | Which::Local, _) => gateway.local.refund(charges, now).await,
                (Which::Alone, _) => gateway.alone.refund(charges, now).await,
            };
        });
    }

    async fn verify(&self, issuer: &Arc<Issuer>, token: &Token<'_>) -> Result<(), VerifyFault> {
        let span = info_span!("authenticate", palisade.stage = "authenticate", palisade.rule = &*issuer.name);
        self.0.keys.verify(issuer, token).instrument(span).await
    }

    async fn permitted(
        &self,
        rule: &PermissionRule,
        question: &Question<'_>,
    ) -> Result<bool, PermissionAway> {
        let span = info_span!(
            "authorize",
            otel.kind = "client",
            palisade.stage = "authorize",
            palisade.rule = question.rule,
            palisade.permission = question.permission,
        );
        let answer = self.0.permissions.permitted(rule, question).instrument(span).await;
        let result = match answer {
            Ok(true) => "allowed",
            Ok(false) => "denied",
            Err(_) => "unavailable",
        };
        self.0.metrics.permission_checks.with_label_values(&[question.permission, result]).inc();
        answer
    }

    fn enter(&self, breaker: Option<&Arc<BreakerRule>>, now: Timestamp) -> Result<BreakerPass, Duration> {
        self.0.breakers.enter(breaker, now)
    }

    fn settle(&self, pass: BreakerPass, outcome: Outcome, now: Timestamp) {
        pass.settle(outcome, now);
    }

    fn login_failed(&self, client: &Client, rule: AutoBlock, now: Timestamp) {
        tokio::spawn(count_failure(Arc::clone(&self.0), *client, rule, now));
    }

    fn login_succeeded(&self, client: &Client) {
        tokio::spawn(clear_failures(Arc::clone(&self.0), *client));
    }
}
