//! What the gateway has heard of changes to who may do what: up to which one, when, and what the last ones were about.
//!
//! The permission service numbers every change and tells it in order. An answer carries the number of the last change
//! that it knows. So an answer that comes late can be compared with the changes that were heard of meanwhile: where one
//! of them touches it, it is not kept.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use policy::values::time::Timestamp;
use serde::Deserialize;

/// So many changes are remembered, and so many bytes of them; an answer that is older than all of them is not kept.
const REMEMBERED: usize = 4_096;
const REMEMBERED_BYTES: usize = 4 * 1024 * 1024;

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// All that an account may do, or one permission of it.
    User,
    /// What a role grants.
    Role,
    /// What comes from being in a group.
    Group,
    /// An API key, by its id.
    ApiKey,
    /// An access token that is revoked, by its `jti`.
    Token,
    /// Something that this program does not know: it may be about anything.
    #[serde(other)]
    Unknown,
}

/// A change to who may do what.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Change {
    /// Its number.
    pub revision: i64,
    /// What it is about.
    pub kind: Kind,
    /// Which one.
    pub name: String,
    /// Only this permission of it; all when `None` or `*`.
    pub permission: Option<String>,
    /// Only this resource, or those with this prefix before a `*`; all when `None`.
    pub resource: Option<String>,
    /// For a revoked token, when it would have expired, in seconds since the epoch.
    pub until: Option<u64>,
}

impl Change {
    /// Its bytes in memory.
    fn bytes(&self) -> usize {
        let heap = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
        size_of::<Self>() + self.name.capacity() + heap(&self.permission) + heap(&self.resource)
    }

    /// Whether the permission on the resource may be what changed.
    pub fn covers(&self, permission: &[u8], resource: &[u8]) -> bool {
        let same = self.permission.as_ref().is_none_or(|one| one == "*" || one.as_bytes() == permission);
        same && self.resource.as_ref().is_none_or(|on| match on.strip_suffix('*') {
            Some(prefix) => resource.starts_with(prefix.as_bytes()),
            None => on.as_bytes() == resource,
        })
    }
}

/// What the permission service tells.
#[derive(Debug, Deserialize)]
pub struct News {
    /// With this everything is known up to here.
    pub revision: i64,
    /// Of which run of the permission service that is a number.
    #[serde(default)]
    pub run: String,
    /// Whatever was known before is worth nothing.
    pub reset: bool,
    /// What happened since; after a reset, the tokens that are revoked.
    pub changes: Vec<Change>,
    /// Whether there are more of them.
    #[serde(default)]
    pub more: bool,
}

/// The moment at which something was asked, in terms of what was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    resets: u64,
    revision: i64,
}

/// What was heard.
#[derive(Default)]
pub struct Knowledge {
    revision: AtomicI64,
    resets: AtomicU64,
    /// When the feed last said that it knows everything, in nanoseconds since the epoch; 0: never.
    heard: AtomicU64,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Changes up to this one are not remembered.
    forgotten: i64,
}

impl Knowledge {
    /// The last change that is known.
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Now.
    pub fn moment(&self) -> Moment {
        Moment { resets: self.resets.load(Ordering::Acquire), revision: self.revision() }
    }

    /// How long ago the feed was heard of; `None`: never.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        let heard = self.heard.load(Ordering::Acquire);
        (heard > 0).then(|| now.since(Timestamp::from_nanos(heard)))
    }

    /// Notes changes. INVARIANT: this comes before what they touch is dropped, see [`Knowledge::voids`].
    pub fn note(&self, news: &News) {
        let mut recent = self.recent.lock();
        if news.reset {
            recent.changes.clear();
            recent.bytes = 0;
            recent.forgotten = news.revision;
            self.resets.fetch_add(1, Ordering::AcqRel);
        } else {
            recent.bytes += news.changes.iter().map(Change::bytes).sum::<usize>();
            recent.changes.extend(news.changes.iter().cloned());
            while recent.changes.len() > REMEMBERED || recent.bytes > REMEMBERED_BYTES {
                let Some(oldest) = recent.changes.pop_front() else { break };
                recent.bytes = recent.bytes.saturating_sub(oldest.bytes());
                recent.forgotten = oldest.revision;
            }
        }
        self.revision.store(news.revision, Ordering::Release);
    }

    /// The feed, asked at `asked_at`, had told everything.
    pub fn heard(&self, asked_at: Timestamp) {
        self.heard.fetch_max(asked_at.as_nanos(), Ordering::AcqRel);
    }

    /// Whether an answer that was asked for at `asked` and computed at `revision` may be outdated by a change that is
    /// known and touches it. Called with the lock held under which the answer is kept: a change that is noted later
    /// finds it there.
    pub fn voids(&self, asked: Moment, revision: i64, touches: impl Fn(&Change) -> bool) -> bool {
        let recent = self.recent.lock();
        asked.resets != self.resets.load(Ordering::Acquire)
            || revision < recent.forgotten
            || recent.changes.iter().rev().take_while(|change| change.revision > revision).any(touches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(revision: i64, name: String) -> News {
        let change =
            Change { revision, kind: Kind::User, name, permission: None, resource: None, until: None };
        News { revision, run: String::new(), reset: false, changes: vec![change], more: false }
    }

    #[test]
    fn changes_have_a_bound_in_bytes_and_what_is_forgotten_voids_whatever_is_older() {
        let knowledge = Knowledge::default();
        let asked = knowledge.moment();
        for revision in 1..=20 {
            knowledge.note(&news(revision, "n".repeat(1_000_000)));
        }
        let recent = knowledge.recent.lock();
        let bytes: usize = recent.changes.iter().map(Change::bytes).sum();
        assert!(bytes <= REMEMBERED_BYTES && bytes == recent.bytes, "{bytes}");
        let forgotten = recent.forgotten;
        drop(recent);
        assert!(knowledge.voids(asked, forgotten - 1, |_| false));
        assert!(!knowledge.voids(asked, forgotten, |_| false));
    }
}
