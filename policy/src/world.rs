//! The few questions that the specification may ask of the outside.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::rules::authenticate::issuer::Issuer;
use crate::rules::authenticate::token::Token;
use crate::rules::authenticate::{Credential, Subject};
use crate::rules::authorize::PermissionRule;
use crate::rules::blocks::{AutoBlock, Ban};
use crate::rules::breaker::{BreakerRule, Outcome};
use crate::rules::client::Client;
use crate::rules::limits::{Charge, Charges, Readings};
use crate::values::time::{Now, Timestamp};

/// Which buckets are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Store {
    /// Those of all replicas together.
    Shared,
    /// This replica's own.
    Local,
    /// This replica's share of the shared ones while the store is away.
    Alone,
}

/// The store is away.
#[derive(Clone, Copy, Debug)]
pub struct StoreAway;

/// Why a signature was not found good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyFault {
    /// It is not the key's.
    Forged,
    /// No such key.
    UnknownKey,
    /// The keys could not be had.
    Away,
}

/// May this user do this to that?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The route that asks.
    pub rule: &'a str,
    /// The subject.
    pub user: &'a str,
    /// Whose word that is, where there are several issuers: the token's `iss`.
    pub issuer: Option<&'a str>,
    /// What it wants to do.
    pub permission: &'a str,
    /// To what.
    pub resource: &'a str,
}

/// A permission question that nobody answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct PermissionAway {
    /// The last answer that was known, however old.
    pub last_known: Option<bool>,
}

/// The roles that somebody has now; `None`: nobody whom the permission service knows, so that the token's word counts.
pub type Roles = Option<Arc<[String]>>;

/// A question for somebody's roles that nobody answered.
#[derive(Clone, Debug, Default)]
pub struct RolesAway {
    /// The last answer that was known, however old.
    pub last_known: Option<Roles>,
}

/// Whose an API key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHolder {
    /// The key's own id.
    pub id: String,
    /// Its owner.
    pub user: String,
    /// The owner's roles.
    pub roles: Vec<String>,
    /// Permissions and resources that the key is limited to; a resource may end in `*`. None: no limit.
    pub scopes: Vec<(String, String)>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// Nobody can say whose an API key is.
#[derive(Clone, Copy, Debug)]
pub struct HolderAway;

/// What the specification may ask. An implementation never waits without a bound.
pub trait World: Sync {
    /// Proof that the breaker lets a request through; dropped unused, it frees its place.
    type Pass: Send;

    /// The time. A request has one: it is asked once.
    fn now(&self) -> Now;

    /// The ban that this client is under, if any, by the wall clock.
    fn banned(&self, client: &Client, now: Timestamp) -> Option<Ban>;

    /// Takes one token from every bucket, or none from any when one that enforces is empty. One reading for each
    /// charge, in order.
    fn spend(
        &self,
        store: Store,
        charges: &[Charge],
        now: Timestamp,
    ) -> impl Future<Output = Result<Readings, StoreAway>> + Send;

    /// Gives back what was taken. It may happen later, and is lost when the store is away.
    fn refund(&self, store: Store, charges: Charges);

    /// The subject of a token that was found good before, if it is remembered.
    fn recall(&self, token: &str) -> Option<Subject>;

    /// Remembers that a token was found good.
    fn remember(&self, token: &str, subject: &Subject);

    /// Whether this was revoked.
    fn revoked(&self, credential: &Credential<'_>) -> bool;

    /// Whose API key this is; nobody's, when it is unknown, has ended, or its owner is not active.
    fn key_holder(
        &self,
        rule: &PermissionRule,
        key: &str,
    ) -> impl Future<Output = Result<Option<Arc<KeyHolder>>, HolderAway>> + Send;

    /// Whether the issuer's key made this signature.
    fn verify(
        &self,
        issuer: &Arc<Issuer>,
        token: &Token<'_>,
    ) -> impl Future<Output = Result<(), VerifyFault>> + Send;

    /// Whether the user may.
    fn permitted(
        &self,
        rule: &PermissionRule,
        question: &Question<'_>,
    ) -> impl Future<Output = Result<bool, PermissionAway>> + Send;

    /// The roles that the user, of that issuer where there are several, has now.
    fn roles(
        &self,
        rule: &PermissionRule,
        user: &str,
        issuer: Option<&str>,
    ) -> impl Future<Output = Result<Roles, RolesAway>> + Send;

    /// Asks the breaker, if there is one; refused with the time after which to try again.
    fn enter(&self, breaker: Option<&Arc<BreakerRule>>, now: Timestamp) -> Result<Self::Pass, Duration>;

    /// Tells the breaker how the request ended.
    fn settle(&self, pass: Self::Pass, outcome: Outcome, now: Timestamp);

    /// Counts a failed login of this client, which may ban it.
    fn login_failed(&self, client: &Client, rule: AutoBlock, now: Timestamp);

    /// Forgets the failed logins of this client.
    fn login_succeeded(&self, client: &Client);
}
