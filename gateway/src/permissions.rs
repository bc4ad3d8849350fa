//! Permission questions: asked of the backend, answered from memory while an answer may be believed.
//!
//! An answer holds the revision that it was computed at. The change feed says up to which revision everything is known
//! and when it said so. An answer is believed while all of this holds:
//!
//! - it is younger than its `ttl` (`negative_ttl` for a no), counted from when it was asked for;
//! - no later revision is known;
//! - the feed was heard of within `max_staleness`, or the answer itself is younger than that.
//!
//! INVARIANT: an answer older than a known change is never used, and never kept: [`Cache::keep`] refuses it. Where the
//! policy says `on_failure = "stale"`, one that is merely too old stands in for one that cannot be had.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::bail;
use arc_swap::ArcSwapOption;
use http::Request;
use parking_lot::Mutex;
use policy::authorize::PermissionRule;
use policy::world::{PermissionAway, Question};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use tracing::warn;

use crate::observe::metrics::Metrics;
use crate::upstreams::Upstreams;

/// For one question.
const PATIENCE: Duration = Duration::from_secs(2);

/// For one round of the change feed, whose answer waits up to a second for news.
const FEED_PATIENCE: Duration = Duration::from_secs(5);

/// The longest user, permission and resource together that are remembered, in bytes.
const LONGEST_KEY: usize = 1024;

/// So many locks share the answers.
const SHARDS: usize = 64;

/// Who may do what, as far as it is known.
pub struct Permissions {
    cache: Cache,
    upstreams: Upstreams,
    gateway_token: Option<String>,
    metrics: Metrics,
}

/// An answer of the backend.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Answer {
    allowed: bool,
    revision: i64,
}

/// What the question was: the rule that asked, the user, the permission, the resource.
type Key = (Box<str>, Box<str>, Box<str>, Box<str>);

struct Cache {
    shards: Vec<Mutex<HashMap<Key, Entry>>>,
    hasher: RandomState,
    /// The last revision that is known.
    revision: AtomicI64,
    /// When the feed last said that it knows everything.
    heard: ArcSwapOption<Instant>,
    metrics: Metrics,
}

#[derive(Clone, Copy)]
struct Entry {
    answer: Answer,
    asked_at: Instant,
}

impl Permissions {
    /// Nothing is known yet.
    pub fn new(upstreams: Upstreams, gateway_token: Option<String>, metrics: Metrics) -> Self {
        Self { cache: Cache::new(metrics.clone()), upstreams, gateway_token, metrics }
    }

    /// Whether the user may.
    pub async fn permitted(
        &self,
        rule: &PermissionRule,
        question: &Question<'_>,
    ) -> Result<bool, PermissionAway> {
        let key: Key = (
            question.rule.into(),
            question.user.into(),
            question.permission.into(),
            question.resource.into(),
        );
        if let Some(allowed) = self.cache.find(&key, rule) {
            self.metrics.permission_cache_hits.inc();
            return Ok(allowed);
        }
        self.metrics.permission_cache_misses.inc();
        let asked_at = Instant::now();
        let answer = self.ask(rule, question).await;
        self.metrics.permission_check_duration.observe(asked_at.elapsed().as_secs_f64());
        match answer {
            Ok(answer) => {
                self.cache.keep(key, Entry { answer, asked_at }, rule);
                Ok(answer.allowed)
            }
            Err(error) => {
                warn!(error = format!("{error:#}"), "a permission question was not answered");
                Err(PermissionAway { last_known: self.cache.last_known(&key) })
            }
        }
    }

    async fn ask(&self, rule: &PermissionRule, question: &Question<'_>) -> anyhow::Result<Answer> {
        let body =
            json!({"user": question.user, "permission": question.permission, "resource": question.resource});
        let request =
            self.signed(Request::builder().method("POST")).header("content-type", "application/json");
        let fetch = self.upstreams.fetch(&rule.upstream)?;
        let answer =
            fetch.send(request, "/internal/permissions", body.to_string().into_bytes(), PATIENCE).await?;
        if answer.status() != http::StatusCode::OK {
            bail!("the backend answered with status {}", answer.status().as_u16());
        }
        Ok(serde_json::from_slice(answer.body())?)
    }

    fn signed(&self, mut request: http::request::Builder) -> http::request::Builder {
        if let Some(token) = &self.gateway_token {
            request = request.header("x-gateway-token", token);
        }
        let span = tracing::Span::current();
        if let Some(parent) = crate::observe::telemetry::traceparent(&span) {
            request = request.header("traceparent", parent);
        }
        request
    }

    /// Follows the change feed of the policy in force, forever.
    pub async fn follow_changes(&self, rule: impl Fn() -> Option<PermissionRule>) {
        let mut failing = false;
        loop {
            let Some(rule) = rule() else {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            };
            match self.next_change(&rule).await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        warn!(error = format!("{error:#}"), "the change feed is away: trust is short");
                    }
                    failing = true;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            self.metrics.permission_feed_age.set(self.cache.feed_age().map_or(-1.0, |age| age.as_secs_f64()));
            self.metrics.permission_cache_entries.set(self.cache.len());
        }
    }

    async fn next_change(&self, rule: &PermissionRule) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Changes {
            revision: i64,
        }
        let known = self.cache.revision.load(Ordering::Acquire);
        let asked_at = Instant::now();
        let request = self.signed(Request::builder().method("GET"));
        let fetch = self.upstreams.fetch(&rule.upstream)?;
        let target = format!("/internal/changes?revision={known}");
        let answer = fetch.send(request, &target, Vec::new(), FEED_PATIENCE).await?;
        if answer.status() != http::StatusCode::OK {
            bail!("the change feed answered with status {}", answer.status().as_u16());
        }
        let changes: Changes = serde_json::from_slice(answer.body())?;
        self.cache.learn(known, changes.revision, asked_at);
        Ok(())
    }
}

impl Cache {
    fn new(metrics: Metrics) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            revision: AtomicI64::new(0),
            heard: ArcSwapOption::empty(),
            metrics,
        }
    }

    fn shard(&self, key: &Key) -> &Mutex<HashMap<Key, Entry>> {
        let number = self.hasher.hash_one(key) % SHARDS as u64;
        &self.shards[usize::try_from(number).unwrap_or(0)]
    }

    fn find(&self, key: &Key, rule: &PermissionRule) -> Option<bool> {
        let entry = *self.shard(key).lock().get(key)?;
        let age = entry.asked_at.elapsed();
        let ttl = if entry.answer.allowed { rule.ttl } else { rule.negative_ttl };
        let current = entry.answer.revision >= self.revision.load(Ordering::Acquire);
        let feed_is_fresh = self.feed_age().is_some_and(|age| age <= rule.max_staleness);
        (age < ttl && current && (feed_is_fresh || age <= rule.max_staleness)).then_some(entry.answer.allowed)
    }

    /// The last answer, however old, unless a later change is known: nothing that was taken back is given again.
    fn last_known(&self, key: &Key) -> Option<bool> {
        let current = self.revision.load(Ordering::Acquire);
        let entry = self.shard(key).lock().get(key).copied();
        entry.filter(|entry| entry.answer.revision >= current).map(|entry| entry.answer.allowed)
    }

    fn keep(&self, key: Key, entry: Entry, rule: &PermissionRule) {
        // Later than any answer that is kept so far: they are void now.
        self.learn_revision(entry.answer.revision);
        if entry.answer.revision < self.revision.load(Ordering::Acquire) {
            return;
        }
        if key.1.len() + key.2.len() + key.3.len() > LONGEST_KEY {
            return; // a client's path is in it: memory has a bound in bytes, too
        }
        let most = (usize::try_from(rule.capacity).unwrap_or(usize::MAX) / SHARDS).max(1);
        let mut shard = self.shard(&key).lock();
        if shard.len() >= most && !shard.contains_key(&key) {
            let current = self.revision.load(Ordering::Acquire);
            shard.retain(|_, entry| entry.answer.revision >= current);
            if shard.len() >= most
                && let Some(victim) = shard.keys().next().cloned()
            {
                shard.remove(&victim);
                self.metrics.permission_cache_evictions.inc();
            }
        }
        shard.insert(key, entry);
    }

    /// The feed, asked for what comes after `known`, knew everything up to `revision` at the time at which it was asked.
    fn learn(&self, known: i64, revision: i64, asked_at: Instant) {
        if revision < known {
            // A backend that was restored from a backup counts from an earlier revision than the one that it was asked
            // about. Nothing that is kept is worth anything then. An answer that overtook the feed is no such thing.
            self.revision.store(revision, Ordering::Release);
            self.shards.iter().for_each(|shard| shard.lock().clear());
        }
        self.learn_revision(revision);
        self.heard.store(Some(asked_at.into()));
    }

    fn learn_revision(&self, revision: i64) {
        if self.revision.fetch_max(revision, Ordering::AcqRel) < revision {
            self.metrics.permission_cache_invalidations.inc();
        }
    }

    fn feed_age(&self) -> Option<Duration> {
        self.heard.load().as_ref().map(|heard| heard.elapsed())
    }

    fn len(&self) -> i64 {
        i64::try_from(self.shards.iter().map(|shard| shard.lock().len()).sum::<usize>()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::authorize::OnPermissionFailure;

    fn rule() -> PermissionRule {
        PermissionRule {
            upstream: "backend".into(),
            ttl: Duration::from_mins(5),
            negative_ttl: Duration::from_secs(30),
            capacity: 128,
            max_staleness: Duration::from_secs(5),
            on_failure: OnPermissionFailure::Deny,
        }
    }

    fn key(user: &str) -> Key {
        ("route".into(), user.into(), "read".into(), "notes".into())
    }

    fn cache() -> Cache {
        Cache::new(Metrics::new().unwrap())
    }

    fn entry(allowed: bool, revision: i64) -> Entry {
        Entry { answer: Answer { allowed, revision }, asked_at: Instant::now() }
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_makes_every_older_answer_void() {
        let cache = cache();
        cache.learn(0, 1, Instant::now());
        cache.keep(key("ann"), entry(true, 1), &rule());
        assert_eq!(cache.find(&key("ann"), &rule()), Some(true));
        cache.learn(1, 2, Instant::now());
        assert_eq!(cache.find(&key("ann"), &rule()), None);
        cache.keep(key("ann"), entry(true, 1), &rule());
        assert_eq!(cache.find(&key("ann"), &rule()), None, "an answer from before the change is never kept");
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_feed_trust_is_short() {
        let cache = cache();
        cache.learn(0, 1, Instant::now());
        cache.keep(key("ann"), entry(true, 1), &rule());
        pass(4).await;
        cache.learn(0, 1, Instant::now());
        pass(4).await;
        assert_eq!(cache.find(&key("ann"), &rule()), Some(true), "the feed vouches for it");
        pass(2).await;
        assert_eq!(cache.find(&key("ann"), &rule()), None, "the feed was lost 6 s ago");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_overtakes_the_feed_is_no_restored_backup() {
        let cache = cache();
        cache.learn(0, 7, Instant::now());
        cache.keep(key("ann"), entry(true, 8), &rule());
        cache.learn(7, 7, Instant::now());
        cache.keep(key("bob"), entry(true, 7), &rule());
        assert_eq!(cache.find(&key("bob"), &rule()), None, "older than a change that is known");
        assert_eq!(cache.find(&key("ann"), &rule()), Some(true));
        cache.learn(8, 3, Instant::now());
        assert_eq!(cache.find(&key("ann"), &rule()), None, "the backend was restored");
    }

    #[tokio::test(start_paused = true)]
    async fn a_no_is_believed_for_its_own_time() {
        let cache = cache();
        cache.keep(key("bob"), entry(false, 1), &rule());
        for _ in 0..10 {
            pass(3).await;
            cache.learn(0, 1, Instant::now());
        }
        assert_eq!(cache.find(&key("bob"), &rule()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_has_a_bound() {
        let cache = cache();
        for user in 0..10_000 {
            cache.keep(key(&user.to_string()), entry(true, 1), &rule());
        }
        assert!(cache.len() <= 128, "{}", cache.len());
    }
}
