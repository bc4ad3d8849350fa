//! What a decision may ask the gateway for: its stores, keys, permissions and breakers.

use std::sync::Arc;
use std::time::Duration;

use policy::rules::authenticate::issuer::Issuer;
use policy::rules::authenticate::token::Token;
use policy::rules::authenticate::{Credential, HolderUnavailable, KeyHolder, Proofs, Subject, VerifyFault};
use policy::rules::authorize::{PermissionUnavailable, Permissions, Question, Roles, RolesUnavailable};
use policy::rules::blocks::{AutoBlock, Ban, Bans};
use policy::rules::breaker::{BreakerRule, Breakers, Outcome};
use policy::rules::client::Client;
use policy::rules::concurrency::{ConcurrencyRule, Overloaded, Permits, Priority};
use policy::rules::limits::spend::{Buckets, Store as Which, StoreUnavailable};
use policy::rules::limits::{Charge, Charges, Readings};
use policy::rules::permissions::PermissionRule;
use policy::values::time::{Now, Timestamp};
use policy::world::World;
use serde_json::json;
use tracing::{Instrument as _, info_span, warn};

use crate::clock;
use crate::engine::gateway::{By, Gateway};
use crate::observe::audit::Actor;
use crate::resilience::breakers::BreakerPass;
use crate::resilience::concurrency::Permit;
use crate::state::store::{Change, Store as _, Topic};

/// Bans a client with too many failed logins.
async fn count_failure(gateway: Arc<Gateway>, client: Client, rule: AutoBlock, now: Timestamp) {
    let counted = match &gateway.shared {
        Some(shared) => shared.count_failure(client.network, rule, now).await,
        None => Err(StoreUnavailable),
    };
    let failures = match counted {
        Ok(failures) => failures,
        Err(StoreUnavailable) => {
            gateway.local.count_failure(client.network, rule, now).await.unwrap_or_default()
        }
    };
    if failures.count < rule.failures {
        return;
    }
    gateway.metrics.ip_blocks.with_label_values(&["failed_logins"]).inc();
    let reason = format!("{} failed logins, offence {}", rule.failures, failures.offences.max(1));
    let lasts = rule.duration_of(failures.offences);
    let change = Change {
        topic: Topic::Bans,
        key: client.network.to_string(),
        value: Some(json!({"reason": reason})),
        until: Some((clock::wall() + lasts).as_nanos()),
        changed_at: clock::wall().as_nanos(),
    };
    let by = By { actor: Actor::Policy, request_id: "" };
    if let Err(error) = gateway.change(vec![change], by).await {
        warn!(error = format!("{error:#}"), "a ban cannot be kept for a restart");
    }
    // Only after the ban was made: if this replica dies before, the next failure makes the ban.
    clear_failures(gateway, client).await;
}

async fn clear_failures(gateway: Arc<Gateway>, client: Client) {
    let _ = gateway.local.clear_failures(client.network).await;
    if let Some(shared) = &gateway.shared {
        let _ = shared.clear_failures(client.network).await;
    }
}

/// The handle through which the policy asks. It starts background work, so it owns a reference to the gateway.
#[derive(Clone)]
pub struct Handle(pub Arc<Gateway>);

impl World for Handle {
    fn now(&self) -> Now {
        Now { steady: clock::steady(), wall: clock::wall() }
    }
}

impl Bans for Handle {
    fn banned(&self, client: &Client, now: Timestamp) -> Option<Ban> {
        self.0.bans.find(client, now)
    }

    fn login_failed(&self, client: &Client, rule: AutoBlock, now: Timestamp) {
        tokio::spawn(count_failure(Arc::clone(&self.0), *client, rule, now));
    }

    fn login_succeeded(&self, client: &Client) {
        tokio::spawn(clear_failures(Arc::clone(&self.0), *client));
    }
}

impl Buckets for Handle {
    async fn spend(
        &self,
        store: Which,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Readings, StoreUnavailable> {
        let gateway = &*self.0;
        if store != Which::Fallback {
            for charge in charges {
                gateway.usage.buckets.record(&charge.bucket, now);
            }
        }
        match (store, &gateway.shared) {
            (Which::Shared, Some(shared)) => shared.spend(charges, now).await,
            (Which::Fallback, Some(shared)) => Ok(shared.spend_alone(charges, now)),
            (Which::Shared | Which::Local | Which::Fallback, _) => Ok(gateway.local.spend_now(charges, now)),
        }
    }

    fn refund(&self, store: Which, charges: Charges) {
        let now = clock::steady();
        match (store, &self.0.shared) {
            (Which::Shared, Some(shared)) => shared.refund_now(&charges),
            (Which::Fallback, Some(shared)) => shared.refund_alone(&charges, now),
            (Which::Shared | Which::Local | Which::Fallback, _) => self.0.local.refund_now(&charges, now),
        }
    }
}

impl Proofs for Handle {
    fn recall(&self, token: &str) -> Option<Subject> {
        self.0.verified_tokens.find(token, self.0.keys.generation())
    }

    fn remember(&self, token: &str, subject: &Subject) {
        self.0.verified_tokens.keep(token, subject, self.0.keys.generation());
    }

    fn revoked(&self, credential: &Credential<'_>) -> bool {
        self.0.revocations.revokes(credential, clock::wall())
    }

    async fn key_holder(
        &self,
        rule: &PermissionRule,
        key: &str,
    ) -> Result<Option<Arc<KeyHolder>>, HolderUnavailable> {
        self.0.permissions.key_holder(rule, key).await
    }

    async fn verify(&self, issuer: &Arc<Issuer>, token: &Token<'_>) -> Result<(), VerifyFault> {
        let span = info_span!("authenticate", palisade.stage = "authenticate", palisade.rule = &*issuer.name);
        self.0.keys.verify(issuer, token).instrument(span).await
    }
}

impl Permissions for Handle {
    async fn permitted(
        &self,
        rule: &PermissionRule,
        question: &Question<'_>,
    ) -> Result<bool, PermissionUnavailable> {
        let answer = self.0.permissions.permitted(rule, question).await;
        let result = match answer {
            Ok(true) => "allowed",
            Ok(false) => "denied",
            Err(_) => "unavailable",
        };
        self.0.metrics.permission_checks.with_label_values(&[question.permission, result]).inc();
        answer
    }

    async fn roles(
        &self,
        rule: &PermissionRule,
        user: &str,
        issuer: Option<&str>,
    ) -> Result<Roles, RolesUnavailable> {
        self.0.permissions.roles(rule, user, issuer).await
    }
}

impl Permits for Handle {
    type Permit = Option<Permit>;

    async fn acquire(
        &self,
        upstream: &Arc<str>,
        rule: Option<&ConcurrencyRule>,
        priority: Priority,
    ) -> Result<Option<Permit>, Overloaded> {
        let Some(rule) = rule else { return Ok(None) };
        self.0.concurrency.of(upstream).enter(rule, priority).await.map(Some)
    }
}

impl Breakers for Handle {
    type Pass = BreakerPass;

    fn enter(&self, breaker: Option<&Arc<BreakerRule>>, now: Timestamp) -> Result<BreakerPass, Duration> {
        self.0.breakers.enter(breaker, now)
    }

    fn settle(&self, pass: BreakerPass, outcome: Outcome, now: Timestamp) {
        pass.settle(outcome, now);
    }
}
