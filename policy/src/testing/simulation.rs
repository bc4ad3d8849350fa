//! A simulated world, made of plain values. The policy's own tests, `gateway explain` and the property tests of this
//! crate run in it. Its clock moves only with [`Simulation::advance`], and it answers every question at once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use crate::rules::authenticate::issuer::Issuer;
use crate::rules::authenticate::token::Token;
use crate::rules::authenticate::{
    Credential, HolderUnavailable, KEY_PREFIX, KeyHolder, Proofs, Subject, VerifyFault,
};
use crate::rules::authorize::{PermissionUnavailable, Permissions, Question, Roles, RolesUnavailable};
use crate::rules::blocks::{AutoBlock, Ban, Bans};
use crate::rules::breaker::{Breaker, BreakerRule, Breakers, Outcome, Pass};
use crate::rules::client::Client;
use crate::rules::concurrency::{ConcurrencyRule, Overloaded, Permits, Priority};
use crate::rules::limits::bucket::Bucket;
use crate::rules::limits::spend::{Buckets, Store, StoreUnavailable};
use crate::rules::limits::{Charge, Charges, Readings, spend_all};
use crate::rules::permissions::PermissionRule;
use crate::values::time::{Now, Timestamp};
use crate::world::World;

/// A simulated world.
#[derive(Debug, Default)]
pub struct Simulation {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    now: Timestamp,
    /// How far the wall clock is behind `now`.
    wall_behind: Duration,
    buckets: HashMap<(Store, Bucket), Timestamp>,
    store_unavailable: bool,
    permissions_unavailable: bool,
    roles: HashMap<String, Arc<[String]>>,
    bans: HashMap<IpNet, Timestamp>,
    failures: HashMap<IpNet, u32>,
    granted: HashSet<(String, String)>,
    keys: HashMap<String, Arc<KeyHolder>>,
    revoked: HashSet<String>,
    breakers: HashMap<Arc<str>, Breaker>,
    asked: Vec<String>,
}

/// The signature that the simulated world accepts, base64url.
pub const SIGNATURE: &str = "c2ltdWxhdGVk";

impl Simulation {
    /// A world at `now` in which nothing has happened yet.
    pub fn at(now: Timestamp) -> Self {
        Self { state: Mutex::new(State { now, ..State::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state();
        state.now = state.now + by;
    }

    /// Sets the wall clock back by `by`. The steady clock does not change.
    pub fn set_wall_clock_back(&self, by: Duration) {
        let mut state = self.state();
        state.wall_behind = state.wall_behind.saturating_add(by);
    }

    /// Grants the user a permission on every resource.
    pub fn grant(&self, user: &str, permission: &str) {
        self.state().granted.insert((user.to_owned(), permission.to_owned()));
    }

    /// Makes `user` known to the permission service, with these current roles.
    pub fn set_roles(&self, user: &str, roles: &[String]) {
        self.state().roles.insert(user.to_owned(), roles.into());
    }

    /// Gives `user` an API key and returns it.
    pub fn give_key(&self, user: &str, roles: &[String], scopes: &[(&str, &str)]) -> String {
        let mut state = self.state();
        let id = format!("{}", state.keys.len());
        let key = format!("{KEY_PREFIX}{id}");
        let scopes = scopes.iter().map(|(one, on)| ((*one).to_owned(), (*on).to_owned())).collect();
        let holder = KeyHolder { id, user: user.to_owned(), roles: roles.to_vec(), scopes, expires_at: None };
        state.keys.insert(key.clone(), Arc::new(holder));
        key
    }

    /// Revokes every proof of `subject`.
    pub fn revoke(&self, subject: &str) {
        self.state().revoked.insert(subject.to_owned());
    }

    /// Makes the shared store unavailable, or available again.
    pub fn set_store_unavailable(&self, unavailable: bool) {
        self.state().store_unavailable = unavailable;
    }

    /// Makes the permission service unavailable, or available again.
    pub fn set_permissions_unavailable(&self, unavailable: bool) {
        self.state().permissions_unavailable = unavailable;
    }

    /// The questions that this world was asked since the last call, one word for each.
    pub fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().asked)
    }

    /// The buckets that are not full, with their stored times, to compare two states.
    pub fn buckets(&self) -> HashMap<(Store, Bucket), Timestamp> {
        let state = self.state();
        let now = state.now;
        state.buckets.iter().filter(|(_, at)| **at > now).map(|(key, at)| (key.clone(), *at)).collect()
    }
}

impl World for Simulation {
    fn now(&self) -> Now {
        let state = self.state();
        Now { steady: state.now, wall: state.now - state.wall_behind }
    }
}

impl Bans for Simulation {
    fn banned(&self, client: &Client, now: Timestamp) -> Option<Ban> {
        let until = *self.state().bans.get(&client.network)?;
        Some(Ban { until: Some(until) }).filter(|ban| ban.holds(now))
    }

    fn login_failed(&self, client: &Client, rule: AutoBlock, now: Timestamp) {
        let mut state = self.state();
        let now = now - state.wall_behind;
        let failures = state.failures.entry(client.network).or_default();
        *failures += 1;
        if *failures >= rule.failures {
            state.failures.remove(&client.network);
            state.bans.insert(client.network, now + rule.duration);
        }
    }

    fn login_succeeded(&self, client: &Client) {
        self.state().failures.remove(&client.network);
    }
}

impl Buckets for Simulation {
    async fn spend(
        &self,
        store: Store,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Readings, StoreUnavailable> {
        let mut state = self.state();
        state.asked.push("spend".to_owned());
        if store == Store::Shared && state.store_unavailable {
            return Err(StoreUnavailable);
        }
        let mut kept = Vec::new();
        let key = |charge: &Charge| (store, charge.bucket.clone());
        let readings = spend_all(
            charges,
            now,
            |at| state.buckets.get(&key(&charges[at])).copied().unwrap_or_default(),
            |at, arrival| kept.push((key(&charges[at]), arrival)),
        );
        state.buckets.extend(kept);
        Ok(readings)
    }

    fn refund(&self, store: Store, charges: Charges) {
        let mut state = self.state();
        let now = state.now;
        for charge in charges {
            if let Some(arrival) = state.buckets.get_mut(&(store, charge.bucket)) {
                *arrival = charge.rule.gcra.refund(*arrival, now);
            }
        }
    }
}

impl Proofs for Simulation {
    fn recall(&self, _: &str) -> Option<Subject> {
        None
    }

    fn remember(&self, _: &str, _: &Subject) {}

    fn revoked(&self, credential: &Credential<'_>) -> bool {
        self.state().revoked.contains(credential.sub)
    }

    async fn key_holder(
        &self,
        _: &PermissionRule,
        key: &str,
    ) -> Result<Option<Arc<KeyHolder>>, HolderUnavailable> {
        let mut state = self.state();
        state.asked.push("key_holder".to_owned());
        if state.permissions_unavailable { Err(HolderUnavailable) } else { Ok(state.keys.get(key).cloned()) }
    }

    async fn verify(&self, _: &Arc<Issuer>, token: &Token<'_>) -> Result<(), VerifyFault> {
        self.state().asked.push("verify".to_owned());
        if token.signature == SIGNATURE { Ok(()) } else { Err(VerifyFault::Forged) }
    }
}

impl Permissions for Simulation {
    async fn permitted(
        &self,
        _: &PermissionRule,
        question: &Question<'_>,
    ) -> Result<bool, PermissionUnavailable> {
        let mut state = self.state();
        state.asked.push("permitted".to_owned());
        if state.permissions_unavailable {
            return Err(PermissionUnavailable::default());
        }
        Ok(state.granted.contains(&(question.user.to_owned(), question.permission.to_owned())))
    }

    async fn roles(
        &self,
        _: &PermissionRule,
        user: &str,
        _: Option<&str>,
    ) -> Result<Roles, RolesUnavailable> {
        let mut state = self.state();
        state.asked.push("roles".to_owned());
        if state.permissions_unavailable {
            return Err(RolesUnavailable::default());
        }
        Ok(state.roles.get(user).cloned())
    }
}

impl Permits for Simulation {
    type Permit = ();

    async fn acquire(
        &self,
        _: &Arc<str>,
        _: Option<&ConcurrencyRule>,
        _: Priority,
    ) -> Result<(), Overloaded> {
        Ok(())
    }
}

impl Breakers for Simulation {
    type Pass = Option<(Arc<BreakerRule>, Pass)>;

    fn enter(&self, rule: Option<&Arc<BreakerRule>>, now: Timestamp) -> Result<Self::Pass, Duration> {
        let mut state = self.state();
        state.asked.push("enter".to_owned());
        let Some(rule) = rule else { return Ok(None) };
        let breaker = state.breakers.entry(Arc::clone(&rule.name)).or_default();
        breaker.enter(rule, now).map(|pass| Some((Arc::clone(rule), pass)))
    }

    fn settle(&self, pass: Self::Pass, outcome: Outcome, now: Timestamp) {
        let Some((rule, pass)) = pass else { return };
        if let Some(breaker) = self.state().breakers.get_mut(&rule.name) {
            breaker.settle(&rule, pass, outcome, now);
        }
    }
}
