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
use protocol::feed::{Change, News};

/// So many changes are remembered, and so many bytes of them; an answer that is older than all of them is not kept.
const REMEMBERED: usize = 4_096;
const REMEMBERED_BYTES: usize = 4 * 1024 * 1024;

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

/// The bytes of a change in memory.
fn bytes(change: &Change) -> usize {
    let heap = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
    size_of::<Change>() + change.name.capacity() + heap(&change.permission) + heap(&change.resource)
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
            recent.bytes += news.changes.iter().map(bytes).sum::<usize>();
            recent.changes.extend(news.changes.iter().cloned());
            while recent.changes.len() > REMEMBERED || recent.bytes > REMEMBERED_BYTES {
                let Some(oldest) = recent.changes.pop_front() else { break };
                recent.bytes = recent.bytes.saturating_sub(bytes(&oldest));
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
    use protocol::feed::Kind;

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
        let bytes: usize = recent.changes.iter().map(bytes).sum();
        assert!(bytes <= REMEMBERED_BYTES && bytes == recent.bytes, "{bytes}");
        let forgotten = recent.forgotten;
        drop(recent);
        assert!(knowledge.voids(asked, forgotten - 1, |_| false));
        assert!(!knowledge.voids(asked, forgotten, |_| false));
    }
}
