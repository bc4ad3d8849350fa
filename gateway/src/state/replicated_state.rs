//! What replicas agree about besides counts: bans, revocations, overrides. The newest change of a key wins, in whatever
//! order changes arrive. So replicas that were cut off from each other agree when they are connected again.
//!
//! All of it is stored in the state directory, too: an acknowledged change survives a restart, with Redis or without.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use policy::values::time::Timestamp;
use tracing::{error, warn};

use crate::state::directory::StateDir;
use crate::state::store::{Change, Topic};

/// The file in the state directory.
const FILE: &str = "changes.json";

/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 30;

/// The most changes of one topic. Beyond it some are dropped, which is logged.
const MOST: usize = 500_000;

/// The changes that still matter.
pub struct ReplicatedState {
    changes: Mutex<HashMap<(Topic, String), Change>>,
    state: Arc<StateDir>,
    /// Held while writing, so that an older state never replaces a newer one.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl ReplicatedState {
    /// Reads the replicated state from the state directory; empty where there is none yet. A damaged file is set aside:
    /// the gateway starts without it, and Redis and the other replicas give back what they know.
    pub fn open(state: Arc<StateDir>, now: Timestamp) -> anyhow::Result<Self> {
        let file = state.path(FILE);
        let replicated_state = Self { changes: Mutex::default(), state, writing: Arc::default() };
        if !file.exists() {
            return Ok(replicated_state);
        }
        let bytes = service::files::read(&file, LARGEST_FILE)?;
        match serde_json::from_slice::<Vec<Change>>(&bytes) {
            Ok(kept) => drop(replicated_state.apply(kept, now)),
            Err(fault) => {
                let aside = service::files::set_aside(&file)
                    .with_context(|| format!("`{}` is damaged and cannot be set aside", file.display()))?;
                error!(
                    file = %file.display(),
                    set_aside_as = %aside.display(),
                    %fault,
                    "the state file is damaged: starting without the bans, revocations and overrides that only it held. \
                     Redis and other replicas give back what they know; check GET /admin/ip-blocks, /admin/revocations \
                     and /admin/overrides"
                );
            }
        }
        Ok(replicated_state)
    }

    /// Makes changes here. Each is newer than the known change of its key, even if that one came from a replica whose
    /// clock is ahead of ours (a hybrid logical clock: Kulkarni and others, "Logical Physical Clocks", 2014). Returns
    /// the changes with their times.
    pub fn change(&self, mut changes: Vec<Change>, now: Timestamp) -> Vec<Change> {
        let mut all = self.changes.lock();
        for change in &mut changes {
            let key = (change.topic, change.key.clone());
            let after_known = all.get(&key).map_or(0, |known| known.changed_at.saturating_add(1));
            change.changed_at = now.as_nanos().max(after_known);
            all.insert(key, change.clone());
        }
        if all.len() > MOST {
            make_room(&mut all, now);
        }
        changes
    }

    /// Merges changes and returns those that were new here.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>, now: Timestamp) -> Vec<Change> {
        let mut all = self.changes.lock();
        let mut news = Vec::new();
        for change in changes.into_iter().filter(|change| change.matters(now) && change.is_credible()) {
            let key = (change.topic, change.key.clone());
            if all.get(&key).is_none_or(|known| known.changed_at < change.changed_at) {
                all.insert(key, change.clone());
                news.push(change);
            }
        }
        if all.len() > MOST {
            make_room(&mut all, now);
        }
        news
    }

    /// The changes of a topic that hold now.
    pub fn holding(&self, topic: Topic, now: Timestamp) -> Vec<Change> {
        let all = self.changes.lock();
        all.values().filter(|change| change.topic == topic && change.holds(now)).cloned().collect()
    }

    /// Every change of a topic that matters, also those that take something back.
    pub fn all(&self, topic: Topic, now: Timestamp) -> Vec<Change> {
        let all = self.changes.lock();
        all.values().filter(|change| change.topic == topic && change.matters(now)).cloned().collect()
    }

    /// The change of `key` that counts.
    pub fn find(&self, topic: Topic, key: &str, now: Timestamp) -> Option<Change> {
        let all = self.changes.lock();
        all.get(&(topic, key.to_owned())).filter(|change| change.holds(now)).cloned()
    }

    /// Drops what does not matter any more.
    pub fn sweep(&self, now: Timestamp) {
        self.changes.lock().retain(|_, change| change.matters(now));
    }

    /// Writes everything to the file. After an error the file is unchanged.
    pub async fn save(self: &Arc<Self>) -> io::Result<()> {
        let alone = Arc::clone(&self.writing).lock_owned().await;
        let replicated_state = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            let _alone = alone; // the task that waits for this may be gone
            let all: Vec<Change> = replicated_state.changes.lock().values().cloned().collect();
            replicated_state.state.replace(FILE, |out| Ok(serde_json::to_writer(out, &all)?))
        });
        written.await?
    }
}

/// Drops changes that do not matter any more. Then each topic that has too many drops the tenth that is missed least:
/// the oldest changes, and of revocations those that end soonest.
fn make_room(all: &mut HashMap<(Topic, String), Change>, now: Timestamp) {
    all.retain(|_, change| change.matters(now));
    for topic in Topic::ALL {
        let worth = |change: &Change| match topic {
            Topic::Revocations => change.until.unwrap_or(u64::MAX),
            Topic::Bans | Topic::Overrides => change.changed_at,
        };
        let mut all_worth: Vec<u64> =
            all.values().filter(|change| change.topic == topic).map(worth).collect();
        if all_worth.len() <= MOST {
            continue;
        }
        let (_, least, _) = all_worth.select_nth_unstable(MOST / 10);
        let least = *least;
        warn!(topic = topic.as_str(), most = MOST, "too many changes are remembered: a tenth is forgotten");
        let mut excess = MOST / 10;
        all.retain(|_, change| {
            let goes = change.topic == topic && worth(change) <= least && excess > 0;
            excess -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Metrics;

    fn change(key: &str, value: Option<i32>, changed_at: u64) -> Change {
        let value = value.map(serde_json::Value::from);
        Change { topic: Topic::Bans, key: key.to_owned(), value, until: None, changed_at }
    }

    fn open(dir: &tempfile::TempDir) -> Arc<ReplicatedState> {
        let state = StateDir::new(dir.path().to_owned(), Metrics::new().unwrap());
        Arc::new(ReplicatedState::open(state, NOW).unwrap())
    }

    fn replicated_state() -> (tempfile::TempDir, Arc<ReplicatedState>) {
        let dir = tempfile::tempdir().unwrap();
        let replicated_state = open(&dir);
        (dir, replicated_state)
    }

    const NOW: Timestamp = Timestamp::from_secs(1);

    #[test]
    fn the_later_change_counts_whatever_the_order_of_arrival() {
        let (_dir, replicated_state) = replicated_state();
        assert_eq!(replicated_state.apply([change("a", None, 2)], NOW).len(), 1);
        assert_eq!(replicated_state.apply([change("a", Some(1), 1)], NOW).len(), 0);
        assert!(replicated_state.holding(Topic::Bans, NOW).is_empty());
        assert_eq!(replicated_state.apply([change("a", Some(1), 3)], NOW).len(), 1);
        assert_eq!(replicated_state.holding(Topic::Bans, NOW).len(), 1);
        assert!(replicated_state.holding(Topic::Overrides, NOW).is_empty());
    }

    #[test]
    fn a_change_made_here_is_newer_than_what_it_changes_whatever_the_clock_says() {
        let (_dir, replicated_state) = replicated_state();
        let ahead = Timestamp::from_secs(1_000).as_nanos();
        replicated_state.apply([change("a", Some(1), ahead)], NOW);
        let made = replicated_state.change(vec![change("a", None, 0), change("b", Some(1), 0)], NOW);
        assert_eq!([made[0].changed_at, made[1].changed_at], [ahead + 1, NOW.as_nanos()]);
        assert!(replicated_state.find(Topic::Bans, "a", NOW).is_none());
        assert_eq!(
            replicated_state.apply([change("c", Some(1), u64::MAX)], NOW).len(),
            0,
            "nothing could follow it"
        );
    }

    #[tokio::test]
    async fn what_is_saved_is_there_after_a_restart() {
        let (dir, replicated_state) = replicated_state();
        replicated_state.apply([change("a", Some(1), 1), change("b", None, 1)], NOW);
        replicated_state.save().await.unwrap();
        assert_eq!(open(&dir).all(Topic::Bans, NOW).len(), 2);
        for damaged in ["", "[", "\0\0\0"] {
            std::fs::write(dir.path().join("changes.json"), damaged).unwrap();
            assert!(open(&dir).all(Topic::Bans, NOW).is_empty(), "it starts without");
            assert_eq!(std::fs::read_to_string(dir.path().join("changes.json.damaged")).unwrap(), damaged);
        }
    }
}
