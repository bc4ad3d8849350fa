//! The gateways that follow the log of changes, and what a commit waits for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

/// How long a change waits for the gateways.
pub(crate) const NOTIFY_TIMEOUT: Duration = Duration::from_millis(100);

/// A gateway that was answered asks again within this time, or it counts as disconnected.
const FOLLOWER_TIMEOUT: Duration = Duration::from_millis(300);

/// The most followers that are remembered; one that asks under a new name each time takes no more memory than this.
const MOST_FOLLOWERS: usize = 1_000;

/// The gateways that follow the log.
pub(crate) struct Followers {
    all: Mutex<HashMap<String, Follower>>,
    run: String,
    commits: watch::Sender<i64>,
    confirmations: watch::Sender<()>,
}

#[derive(Clone, Copy)]
struct Follower {
    confirmed: i64,
    questions: u32,
    answered_at: Instant,
}

impl Followers {
    pub(crate) fn new() -> Self {
        Self {
            all: Mutex::default(),
            run: uuid::Uuid::now_v7().simple().to_string(),
            commits: watch::Sender::new(0),
            confirmations: watch::Sender::new(()),
        }
    }

    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    pub(crate) fn commits(&self) -> watch::Receiver<i64> {
        self.commits.subscribe()
    }

    /// A gateway has applied everything up to `revision` and asks for more.
    pub(crate) fn asks<'f>(&'f self, replica: &str, revision: i64) -> Following<'f> {
        let mut all = self.all.lock();
        if all.len() >= MOST_FOLLOWERS {
            all.retain(|_, follower| follower.is_connected());
        }
        let now = Instant::now();
        let follower = all.entry(replica.to_owned()).or_insert(Follower {
            confirmed: revision,
            questions: 0,
            answered_at: now,
        });
        follower.confirmed = revision;
        follower.questions += 1;
        drop(all);
        self.confirmations.send_replace(());
        Following { followers: self, replica: replica.to_owned() }
    }

    /// Wakes the gateways after a commit, and waits until those that are connected have applied it.
    pub(crate) async fn notify(&self, revision: i64) {
        let mut confirmations = self.confirmations.subscribe();
        self.commits.send_replace(revision);
        let all_know = async {
            while self.all.lock().values().any(|one| one.is_connected() && one.confirmed < revision) {
                // Woken or not, look again: a gateway that disconnected is not waited for.
                let _ = tokio::time::timeout(NOTIFY_TIMEOUT / 10, confirmations.changed()).await;
            }
        };
        let _ = tokio::time::timeout(NOTIFY_TIMEOUT, all_know).await;
    }
}

impl Follower {
    fn is_connected(&self) -> bool {
        self.questions > 0 || self.answered_at.elapsed() < FOLLOWER_TIMEOUT
    }
}

/// A question that waits for news.
pub(crate) struct Following<'f> {
    followers: &'f Followers,
    replica: String,
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        if let Some(follower) = self.followers.all.lock().get_mut(&self.replica) {
            follower.questions -= 1;
            follower.answered_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_for_followers_and_not_for_long() {
        let followers = std::sync::Arc::new(Followers::new());
        let first = followers.asks("one", 1);
        let notified = tokio::spawn({
            let followers = std::sync::Arc::clone(&followers);
            async move { followers.notify(2).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!notified.is_finished(), "one has not applied it");
        drop(first);
        let _second = followers.asks("one", 2);
        notified.await.unwrap();
        let begun = tokio::time::Instant::now();
        followers.notify(3).await;
        assert_eq!(
            begun.elapsed(),
            NOTIFY_TIMEOUT,
            "a gateway that does not answer delays no call for longer"
        );
    }
}
