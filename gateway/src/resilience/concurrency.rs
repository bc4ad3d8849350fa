//! How many requests each upstream is working on, and which requests wait for a permit.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use policy::rules::concurrency::{ConcurrencyRule, Overloaded, Priority};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The limits of the upstreams, by name.
#[derive(Default)]
pub struct ConcurrencyLimits(Mutex<HashMap<Arc<str>, Arc<ConcurrencyLimit>>>);

impl ConcurrencyLimits {
    /// The limit of one upstream.
    pub fn of(&self, upstream: &Arc<str>) -> Arc<ConcurrencyLimit> {
        let mut all = self.0.lock();
        match all.get(upstream) {
            Some(limit) => Arc::clone(limit),
            None => Arc::clone(all.entry(Arc::clone(upstream)).or_default()),
        }
    }
}

/// Requests in flight to one upstream, and those that wait.
#[derive(Default)]
pub struct ConcurrencyLimit(Mutex<State>);

#[derive(Default)]
struct State {
    in_flight: u32,
    /// In the order of their arrival.
    waiting: Vec<Waiting>,
    next: u64,
}

struct Waiting {
    number: u64,
    priority: Priority,
    /// When this is dropped, the request gets no permit.
    called: oneshot::Sender<()>,
}

/// A request in flight, until this is dropped.
pub struct Permit {
    limit: Arc<ConcurrencyLimit>,
    /// While this is `true`, another request may use its permit.
    paused: bool,
}

impl Permit {
    const fn new(limit: Arc<ConcurrencyLimit>) -> Self {
        Self { limit, paused: false }
    }

    /// The request waits for its client, so another request may be sent meanwhile.
    pub fn pause(&mut self) {
        if !std::mem::replace(&mut self.paused, true) {
            self.limit.0.lock().pass_on_permit();
        }
    }

    /// The upstream works on the request again. The request counts at once, even if there are more than `max_in_flight`
    /// then. Waiting requests wait until there are fewer.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.limit.0.lock().in_flight += 1;
        }
    }
}

impl ConcurrencyLimit {
    /// Takes a permit; waits for one if necessary.
    pub async fn enter(
        self: &Arc<Self>,
        rule: &ConcurrencyRule,
        priority: Priority,
    ) -> Result<Permit, Overloaded> {
        let (number, call) = {
            let mut state = self.0.lock();
            if state.in_flight < rule.max_in_flight && state.waiting.is_empty() {
                state.in_flight += 1;
                return Ok(Permit::new(Arc::clone(self)));
            }
            state.queue_up(rule, priority)?
        };
        let mut guard = QueueGuard { limit: self, number: Some(number) };
        let called = timeout(rule.max_wait, call).await;
        guard.number = None;
        if matches!(called, Ok(Ok(()))) || !self.0.lock().remove(number) {
            // Either a permit was sent, perhaps at the moment the wait ended, or the request was shed, and nothing was
            // sent.
            return if matches!(called, Ok(Err(_))) {
                Err(Overloaded)
            } else {
                Ok(Permit::new(Arc::clone(self)))
            };
        }
        Err(Overloaded)
    }

    /// Requests in flight, and those that wait.
    pub fn counts(&self) -> (u32, usize) {
        let state = self.0.lock();
        (state.in_flight, state.waiting.len())
    }
}

impl State {
    /// Enters the queue. If the queue is full, the latest request of a lower priority is shed.
    fn queue_up(
        &mut self,
        rule: &ConcurrencyRule,
        priority: Priority,
    ) -> Result<(u64, oneshot::Receiver<()>), Overloaded> {
        if self.waiting.len() >= usize::try_from(rule.max_queued).unwrap_or(usize::MAX) {
            let least = self.waiting.iter().map(|one| one.priority).min().filter(|least| *least < priority);
            let least = least.ok_or(Overloaded)?;
            let latest = self.waiting.iter().rposition(|one| one.priority == least).ok_or(Overloaded)?;
            self.waiting.remove(latest);
        }
        let (called, call) = oneshot::channel();
        self.next += 1;
        self.waiting.push(Waiting { number: self.next, priority, called });
        Ok((self.next, call))
    }

    /// Removes a request from the queue. Returns whether it was still waiting.
    fn remove(&mut self, number: u64) -> bool {
        let at = self.waiting.iter().position(|one| one.number == number);
        at.map(|at| self.waiting.remove(at)).is_some()
    }

    /// Gives a free permit to the first request of the highest priority.
    fn pass_on_permit(&mut self) {
        while let Some(most) = self.waiting.iter().map(|one| one.priority).max() {
            let Some(first) = self.waiting.iter().position(|one| one.priority == most) else { break };
            if self.waiting.remove(first).called.send(()).is_ok() {
                return; // it has the permit now
            }
        }
        self.in_flight -= 1;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.paused {
            self.limit.0.lock().pass_on_permit();
        }
    }
}

/// Removes a request from the queue when its task is gone.
struct QueueGuard<'c> {
    limit: &'c ConcurrencyLimit,
    number: Option<u64>,
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let mut state = self.limit.0.lock();
            if !state.remove(number) {
                state.pass_on_permit(); // it had been given a permit already
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rule(most: u32, queue: u32) -> ConcurrencyRule {
        ConcurrencyRule { max_in_flight: most, max_queued: queue, max_wait: Duration::from_millis(100) }
    }

    async fn enter(
        limit: &Arc<ConcurrencyLimit>,
        rule: &ConcurrencyRule,
        priority: Priority,
    ) -> tokio::task::JoinHandle<Result<Permit, Overloaded>> {
        let (limit, rule) = (Arc::clone(limit), rule.clone());
        let task = tokio::spawn(async move { limit.enter(&rule, priority).await });
        tokio::task::yield_now().await;
        task
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_matter_most_go_first_and_those_that_matter_least_are_shed() {
        let (limit, rule) = (Arc::new(ConcurrencyLimit::default()), rule(1, 2));
        let first = limit.enter(&rule, Priority::Low).await.unwrap();
        let low = enter(&limit, &rule, Priority::Low).await;
        let normal = enter(&limit, &rule, Priority::Normal).await;
        assert_eq!(limit.counts(), (1, 2));
        let high = enter(&limit, &rule, Priority::High).await;
        assert_eq!(low.await.unwrap().err(), Some(Overloaded), "the queue is full, and it matters least");
        assert_eq!(
            limit.enter(&rule, Priority::Normal).await.err(),
            Some(Overloaded),
            "it matters no more than those"
        );
        drop(first);
        let high = high.await.unwrap().unwrap();
        assert_eq!(limit.counts(), (1, 1));
        drop(high);
        drop(normal.await.unwrap().unwrap());
        assert_eq!(limit.counts(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_longer_and_who_leaves_takes_no_place_along() {
        let (limit, rule) = (Arc::new(ConcurrencyLimit::default()), rule(1, 5));
        let first = limit.enter(&rule, Priority::Normal).await.unwrap();
        let begun = tokio::time::Instant::now();
        assert_eq!(limit.enter(&rule, Priority::High).await.err(), Some(Overloaded));
        assert_eq!(begun.elapsed(), rule.max_wait);
        let leaves = enter(&limit, &rule, Priority::High).await;
        leaves.abort();
        assert!(leaves.await.is_err());
        assert_eq!(limit.counts(), (1, 0));
        drop(first);
        assert_eq!(limit.counts(), (0, 0));
    }
}
