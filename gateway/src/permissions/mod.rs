//! Who may do what, which roles a user has, and who holds an API key. The permission service is asked; answers are
//! cached as long as they may be used ([`crate::permissions::decisions`]), and dropped when its change feed says so
//! ([`crate::permissions::feed`]).

use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use ahash::RandomState;
use policy::rules::authenticate::{HolderUnavailable, KeyHolder};
use policy::rules::authorize::{PermissionUnavailable, Question, Roles, RolesUnavailable};
use policy::rules::permissions::PermissionRule;
use policy::values::time::Timestamp;
use protocol::feed::{Change, Kind, News};
use protocol::keys;
use protocol::permissions::{self, QUESTION_PATH, ROLES_PATH};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tracing::{Instrument as _, info, info_span, warn};

use crate::clock;
use crate::identity::assertion::Signer;
use crate::observe::metrics::Metrics;
use crate::permissions::decisions::{Answer, Answers, Reach, parts};
use crate::permissions::feed::Knowledge;
use crate::resilience::backoff::Backoff;
use crate::upstream::Upstreams;

use self::service::{Service, Status};

pub mod decisions;
pub mod feed;
mod service;

/// The pauses after failed rounds: the first one, which then doubles; the longest one; and the longest one for a
/// service that has no such feed.
const FEED_BACKOFF: Backoff = Backoff::from(Duration::from_millis(200));
const FEED_PAUSE: Duration = Duration::from_secs(2);
const NO_FEED_PAUSE: Duration = Duration::from_mins(1);

/// The most cached API keys.
const MOST_KEYS: u32 = 10_000;

/// The client of the permission service, with its caches.
pub struct Permissions {
    decisions: Arc<Answers<Decision>>,
    holders: Arc<Answers<Holder>>,
    roles: Arc<Answers<HeldRoles>>,
    knowledge: Arc<Knowledge>,
    service: Arc<Service>,
    metrics: Metrics,
    /// Woken when a change may concern an open `WebSocket`.
    pub changed: Notify,
}

/// The roles and groups that an answer depends on, one bit each. Two may share a bit: then a change of one drops more
/// answers than necessary, and never fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Grounds(u64);

impl Grounds {
    fn of(roles: &[String], groups: &[String]) -> Self {
        let bits = roles.iter().map(|role| Self::bit(Kind::Role, role));
        Self(
            bits.chain(groups.iter().map(|group| Self::bit(Kind::Group, group)))
                .fold(0, |all, bit| all | bit),
        )
    }

    fn bit(kind: Kind, name: &str) -> u64 {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        1 << (HASHER.hash_one((kind == Kind::Role, name)) % 64)
    }

    fn hold(self, kind: Kind, name: &str) -> bool {
        self.0 & Self::bit(kind, name) != 0
    }
}

/// An answer to a permission question.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    allowed: bool,
    grounds: Grounds,
}

impl Answer for Decision {
    fn is_yes(&self) -> bool {
        self.allowed
    }

    fn touched_by(&self, key: &[u8], change: &Change) -> bool {
        let mut parts = parts(key);
        let (Some(user), Some(permission), Some(resource)) = (parts.next(), parts.next(), parts.next())
        else {
            return true;
        };
        let concerns = match change.kind {
            Kind::User => change.name.as_bytes() == user,
            Kind::Role | Kind::Group => self.grounds.hold(change.kind, &change.name),
            Kind::ApiKey | Kind::Token => false,
            Kind::Unknown => true,
        };
        concerns && change.covers(permission, resource)
    }

    fn heap(&self) -> usize {
        0
    }
}

/// The holder of an API key; `None` if the key is not valid.
#[derive(Clone, Debug)]
pub struct Holder {
    found: Option<Arc<KeyHolder>>,
    grounds: Grounds,
}

impl Answer for Holder {
    fn is_yes(&self) -> bool {
        self.found.is_some()
    }

    fn touched_by(&self, _: &[u8], change: &Change) -> bool {
        match (change.kind, &self.found) {
            (Kind::User | Kind::ApiKey, None) | (Kind::Unknown, _) => true,
            (Kind::User, Some(holder)) => change.name == holder.user,
            (Kind::ApiKey, Some(holder)) => change.name == holder.id,
            // The roles that a group gives matter here; the permissions that a role grants do not.
            (Kind::Group, _) => self.grounds.hold(change.kind, &change.name),
            (Kind::Role | Kind::Token, _) => false,
        }
    }

    fn heap(&self) -> usize {
        let Some(holder) = &self.found else { return 0 };
        let text = |text: &String| size_of::<String>() + text.capacity();
        let roles: usize = holder.roles.iter().map(text).sum();
        let scopes: usize = holder.scopes.iter().map(|(one, other)| text(one) + text(other)).sum();
        size_of::<KeyHolder>() + holder.id.capacity() + holder.user.capacity() + roles + scopes
    }
}

/// The roles of a user; `None` if the service does not know the user.
#[derive(Clone, Debug)]
pub struct HeldRoles {
    roles: Roles,
    /// The groups that give some of the roles.
    grounds: Grounds,
}

impl Answer for HeldRoles {
    fn is_yes(&self) -> bool {
        self.roles.is_some()
    }

    fn touched_by(&self, key: &[u8], change: &Change) -> bool {
        match change.kind {
            Kind::User => parts(key).next().is_none_or(|user| change.name.as_bytes() == user),
            Kind::Group => self.grounds.hold(change.kind, &change.name),
            // The permissions that a role grants do not matter here.
            Kind::Role | Kind::ApiKey | Kind::Token => false,
            Kind::Unknown => true,
        }
    }

    fn heap(&self) -> usize {
        let text = |text: &String| size_of::<String>() + text.capacity();
        self.roles.iter().flat_map(|roles| roles.iter()).map(text).sum()
    }
}

impl Permissions {
    /// Begins with empty caches.
    pub fn new(upstreams: Upstreams, signer: Option<Signer>, metrics: Metrics) -> Self {
        let knowledge = Arc::new(Knowledge::default());
        metrics.permission_feed_age.set(-1.0); // it has never answered
        let replica = uuid::Uuid::now_v7().simple().to_string();
        Self {
            decisions: Answers::new(Arc::clone(&knowledge)),
            holders: Answers::new(Arc::clone(&knowledge)),
            roles: Answers::new(Arc::clone(&knowledge)),
            knowledge,
            service: Arc::new(Service { upstreams, signer, replica }),
            metrics,
            changed: Notify::new(),
        }
    }

    /// Whether the user may do this.
    pub async fn permitted(
        &self,
        rule: &PermissionRule,
        question: &Question<'_>,
    ) -> Result<bool, PermissionUnavailable> {
        let Question { rule: asking, user, issuer, permission, resource } = question;
        let whose = issuer.unwrap_or_default().as_bytes();
        let key = self.decisions.key(
            user.as_bytes(),
            &[user.as_bytes(), permission.as_bytes(), resource.as_bytes(), asking.as_bytes(), whose],
        );
        let now = clock::steady();
        if let Some(decision) = self.decisions.find(&key, rule, now) {
            self.metrics.permission_cache_hits.inc();
            return Ok(decision.allowed);
        }
        self.metrics.permission_cache_misses.inc();
        let span = info_span!(
            "authorize",
            otel.kind = "client",
            palisade.stage = "authorize",
            palisade.rule = *asking,
            palisade.permission = *permission,
        );
        let question = permissions::Question {
            user: (*user).to_owned().into(),
            issuer: issuer.map(|issuer| issuer.to_owned().into()),
            permission: (*permission).to_owned().into(),
            resource: (*resource).to_owned().into(),
        };
        let (service, upstream) = (Arc::clone(&self.service), Arc::clone(&rule.upstream));
        let ask = || {
            let asking = async move {
                let answer: permissions::Decision = service.ask(&upstream, QUESTION_PATH, &question).await?;
                let grounds = Grounds::of(&answer.roles, &answer.groups);
                Some((Decision { allowed: answer.allowed, grounds }, answer.revision))
            };
            asking.instrument(span.clone())
        };
        let answer = self.decisions.ask(&key, rule.capacity, now, ask).await;
        self.metrics.permission_check_duration.observe(clock::steady().since(now).as_secs_f64());
        match answer {
            Some(decision) => Ok(decision.allowed),
            None => Err(PermissionUnavailable {
                last_known: self.decisions.last_known(&key).map(|one| one.allowed),
            }),
        }
    }

    /// The holder of this API key.
    pub async fn key_holder(
        &self,
        rule: &PermissionRule,
        key: &str,
    ) -> Result<Option<Arc<KeyHolder>>, HolderUnavailable> {
        let cached = self.holders.key(key.as_bytes(), &[key.as_bytes()]);
        let now = clock::steady();
        if let Some(holder) = self.holders.find(&cached, rule, now) {
            return Ok(holder.found);
        }
        let span = info_span!("authenticate", otel.kind = "client", palisade.stage = "authenticate");
        let digest = Sha256::digest(key.as_bytes());
        let hex = digest.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        let (service, upstream) = (Arc::clone(&self.service), Arc::clone(&rule.upstream));
        let ask = || {
            let asking = async move {
                let question = keys::WhoseKey { sha256: hex };
                let answer: keys::KeyHolder = service.ask(&upstream, keys::PATH, &question).await?;
                Some((Holder::from(answer.key), answer.revision))
            };
            asking.instrument(span.clone())
        };
        let answer = self.holders.ask(&cached, MOST_KEYS, now, ask).await;
        answer.map(|holder| holder.found).ok_or(HolderUnavailable)
    }

    /// The roles that a user has now.
    pub async fn roles(
        &self,
        rule: &PermissionRule,
        user: &str,
        issuer: Option<&str>,
    ) -> Result<Roles, RolesUnavailable> {
        let whose = issuer.unwrap_or_default().as_bytes();
        let key = self.roles.key(user.as_bytes(), &[user.as_bytes(), whose]);
        let now = clock::steady();
        if let Some(held) = self.roles.find(&key, rule, now) {
            return Ok(held.roles);
        }
        let span = info_span!("authorize", otel.kind = "client", palisade.stage = "authorize");
        let question = permissions::Whose {
            user: user.to_owned().into(),
            issuer: issuer.map(|issuer| issuer.to_owned().into()),
        };
        let (service, upstream) = (Arc::clone(&self.service), Arc::clone(&rule.upstream));
        let ask = || {
            let asking = async move {
                let answer: permissions::HeldRoles = service.ask(&upstream, ROLES_PATH, &question).await?;
                let grounds = Grounds::of(&[], &answer.groups);
                Some((HeldRoles { roles: answer.roles.map(Arc::from), grounds }, answer.revision))
            };
            asking.instrument(span.clone())
        };
        match self.roles.ask(&key, rule.capacity, now, ask).await {
            Some(held) => Ok(held.roles),
            None => Err(RolesUnavailable { last_known: self.roles.last_known(&key).map(|held| held.roles) }),
        }
    }

    /// The state of the caches, for an operator.
    pub fn decisions(&self) -> &Answers<Decision> {
        &self.decisions
    }

    /// The last known change, and how long ago the feed answered.
    pub fn feed(&self) -> (i64, Option<Duration>) {
        (self.knowledge.revision(), self.knowledge.age(clock::steady()))
    }

    /// Drops answers about a user, a resource, a permission, or a combination of these. Returns how many.
    pub fn forget(&self, user: Option<&str>, permission: Option<&str>, resource: Option<&str>) -> usize {
        let same = |wanted: Option<&str>, part: Option<&[u8]>| {
            wanted.is_none_or(|wanted| Some(wanted.as_bytes()) == part)
        };
        self.decisions.invalidate(|key, _| {
            let mut parts = parts(key);
            same(user, parts.next()) && same(permission, parts.next()) && same(resource, parts.next())
        })
    }

    /// Follows the change feed of the policy in force, forever. Revoked tokens in it are put in force by `revoke`
    /// before the next changes are requested, because that request acknowledges them.
    pub async fn follow_changes(
        &self,
        rule: impl Fn() -> Option<PermissionRule>,
        revoke: impl Fn(Vec<Revoked>),
    ) {
        let (mut run, mut asked) = (None, None);
        let mut backoff = FEED_BACKOFF;
        loop {
            let Some(rule) = rule() else {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            };
            if asked.replace(Arc::clone(&rule.upstream)) != Some(Arc::clone(&rule.upstream)) {
                run = None; // another service has its own count of changes
            }
            match self.next_changes(&rule, run.as_deref(), &revoke).await {
                Ok(current) => {
                    run = Some(current);
                    if backoff.succeeded() {
                        info!(upstream = &*rule.upstream, "the change feed is available again");
                    }
                }
                Err(error) => {
                    let has_none = error.downcast_ref::<Status>().is_some_and(|status| status.0 == 404);
                    let most = if has_none { NO_FEED_PAUSE } else { FEED_PAUSE };
                    let error = format!("{error:#}");
                    let (first, wait) = backoff.failed(most, rand::random());
                    if first {
                        warn!(
                            upstream = &*rule.upstream,
                            error,
                            "the change feed is unavailable: answers are trusted for `max_staleness` only"
                        );
                    }
                    tokio::time::sleep(wait).await;
                }
            }
            let (_, age) = self.feed();
            self.metrics.permission_feed_age.set(age.map_or(-1.0, |age| age.as_secs_f64()));
            self.metrics
                .permission_cache_entries
                .set(i64::try_from(self.decisions.len()).unwrap_or(i64::MAX));
        }
    }

    async fn next_changes(
        &self,
        rule: &PermissionRule,
        run: Option<&str>,
        revoke: &impl Fn(Vec<Revoked>),
    ) -> anyhow::Result<String> {
        let asked_at = clock::steady();
        let known = run.map(|run| (run, self.knowledge.revision()));
        let news = self.service.changes(&rule.upstream, known).await?;
        let reset = news.reset;
        // Revocations first: they are few, and the next step searches whole caches.
        revoke_all(&news, revoke);
        self.take_in(&news);
        let mut page = news;
        let run = page.run.clone();
        while reset && page.more {
            let after = page.changes.last().map_or(i64::MAX, |change| change.revision);
            page = self.service.revoked_after(&rule.upstream, after).await?;
            revoke_all(&page, revoke);
        }
        if reset || !page.more {
            self.knowledge.heard(asked_at);
        }
        Ok(run)
    }

    /// Applies changes.
    fn take_in(&self, news: &News) {
        self.knowledge.note(news);
        let dropped = self.decisions.apply(news, |change| match change.kind {
            Kind::User => Reach::Home(change.name.as_bytes()),
            Kind::Role | Kind::Group | Kind::Unknown => Reach::All,
            Kind::ApiKey | Kind::Token => Reach::Nothing,
        });
        self.holders.apply(news, |change| match change.kind {
            Kind::User | Kind::Group | Kind::ApiKey | Kind::Unknown => Reach::All,
            Kind::Role | Kind::Token => Reach::Nothing,
        });
        self.roles.apply(news, |change| match change.kind {
            Kind::User => Reach::Home(change.name.as_bytes()),
            Kind::Group | Kind::Unknown => Reach::All,
            Kind::Role | Kind::ApiKey | Kind::Token => Reach::Nothing,
        });
        self.metrics.permission_cache_invalidations.inc_by(dropped as u64);
        if news.reset || !news.changes.is_empty() {
            self.changed.notify_one();
        }
    }
}

fn revoke_all(news: &News, revoke: &impl Fn(Vec<Revoked>)) {
    let revoked: Vec<_> = news.changes.iter().filter_map(Revoked::read).collect();
    if !revoked.is_empty() {
        revoke(revoked);
    }
}

/// A token that the backend revoked.
#[derive(Debug)]
pub struct Revoked {
    /// Its id.
    pub jti: String,
    /// When the token expires.
    pub until: Timestamp,
}

impl Revoked {
    fn read(change: &Change) -> Option<Self> {
        if change.kind != Kind::Token {
            return None;
        }
        let until = Timestamp::from_secs(change.until?);
        Some(Self { jti: change.name.clone(), until })
    }
}

impl From<Option<keys::Key>> for Holder {
    fn from(key: Option<keys::Key>) -> Self {
        let Some(key) = key else { return Self { found: None, grounds: Grounds::default() } };
        let grounds = Grounds::of(&key.roles, &key.groups);
        let holder = KeyHolder {
            id: key.id,
            user: key.user,
            roles: key.roles,
            scopes: key.scopes.into_iter().map(|scope| (scope.permission, scope.resource)).collect(),
            expires_at: key.expires_at.map(Timestamp::from_secs),
        };
        Self { found: Some(Arc::new(holder)), grounds }
    }
}
