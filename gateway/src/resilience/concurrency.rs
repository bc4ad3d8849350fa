//! How many requests each upstream is working on, and who waits for a place.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use policy::rules::concurrency::{CrowdRule, Priority};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The crowds of the upstreams, by name.
#[derive(Default)]
pub struct Crowds(Mutex<HashMap<Arc<str>, Arc<Crowd>>>);

impl Crowds {
    /// The crowd before an upstream.
    pub fn of(&self, upstream: &Arc<str>) -> Arc<Crowd> {
        let mut all = self.0.lock();
        match all.get(upstream) {
            Some(crowd) => Arc::clone(crowd),
            None => Arc::clone(all.entry(Arc::clone(upstream)).or_default()),
        }
    }
}

/// Requests in flight to one upstream, and those that wait.
#[derive(Default)]
pub struct Crowd(Mutex<State>);

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
    /// Dropped: there is no place for it.
    called: oneshot::Sender<()>,
}

/// A request in flight, until this is dropped.
pub struct Place(Arc<Crowd>);

/// There is no place.
#[derive(Debug, PartialEq, Eq)]
pub struct Shed;

impl Crowd {
    /// Takes a place, waiting for one if need be.
    pub async fn enter(self: &Arc<Self>, rule: &CrowdRule, priority: Priority) -> Result<Place, Shed> {
        let (number, call) = {
            let mut state = self.0.lock();
            if state.in_flight < rule.most && state.waiting.is_empty() {
                state.in_flight += 1;
                return Ok(Place(Arc::clone(self)));
            }
            state.queue_up(rule, priority)?
        };
        let mut leaving = Leaving { crowd: self, number: Some(number) };
        let called = timeout(rule.wait, call).await;
        leaving.number = None;
        if matches!(called, Ok(Ok(()))) || !self.0.lock().leave(number) {
            // Called, perhaps in the moment in which the waiting ended; or shed, and then nobody called.
            return if matches!(called, Ok(Err(_))) { Err(Shed) } else { Ok(Place(Arc::clone(self))) };
        }
        Err(Shed)
    }

    /// Requests in flight, and those that wait.
    pub fn counts(&self) -> (u32, usize) {
        let state = self.0.lock();
        (state.in_flight, state.waiting.len())
    }
}

impl State {
    /// A place in the queue: at the cost of the latest of those that matter less, if it is full.
    fn queue_up(
        &mut self,
        rule: &CrowdRule,
        priority: Priority,
    ) -> Result<(u64, oneshot::Receiver<()>), Shed> {
        if self.waiting.len() >= usize::try_from(rule.queue).unwrap_or(usize::MAX) {
            let least = self.waiting.iter().map(|one| one.priority).min().filter(|least| *least < priority);
            let least = least.ok_or(Shed)?;
            let latest = self.waiting.iter().rposition(|one| one.priority == least).ok_or(Shed)?;
            self.waiting.remove(latest);
        }
        let (called, call) = oneshot::channel();
        self.next += 1;
        self.waiting.push(Waiting { number: self.next, priority, called });
        Ok((self.next, call))
    }

    /// Whether it was still waiting.
    fn leave(&mut self, number: u64) -> bool {
        let place = self.waiting.iter().position(|one| one.number == number);
        place.map(|place| self.waiting.remove(place)).is_some()
    }

    /// Gives a place that is free now to the first of those that matter most.
    fn hand_on(&mut self) {
        while let Some(most) = self.waiting.iter().map(|one| one.priority).max() {
            let Some(first) = self.waiting.iter().position(|one| one.priority == most) else { break };
            if self.waiting.remove(first).called.send(()).is_ok() {
                return; // its place is the one that was free
            }
        }
        self.in_flight -= 1;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.lock().hand_on();
    }
}

/// Leaves the queue when whoever waits is gone.
struct Leaving<'c> {
    crowd: &'c Crowd,
    number: Option<u64>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let mut state = self.crowd.0.lock();
            if !state.leave(number) {
                state.hand_on(); // it was called already
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rule(most: u32, queue: u32) -> CrowdRule {
        CrowdRule { most, queue, wait: Duration::from_millis(100) }
    }

    async fn enter(
        crowd: &Arc<Crowd>,
        rule: &CrowdRule,
        priority: Priority,
    ) -> tokio::task::JoinHandle<Result<Place, Shed>> {
        let (crowd, rule) = (Arc::clone(crowd), rule.clone());
        let task = tokio::spawn(async move { crowd.enter(&rule, priority).await });
        tokio::task::yield_now().await;
        task
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_matter_most_go_first_and_those_that_matter_least_are_shed() {
        let (crowd, rule) = (Arc::new(Crowd::default()), rule(1, 2));
        let first = crowd.enter(&rule, Priority::Low).await.unwrap();
        let low = enter(&crowd, &rule, Priority::Low).await;
        let normal = enter(&crowd, &rule, Priority::Normal).await;
        assert_eq!(crowd.counts(), (1, 2));
        let high = enter(&crowd, &rule, Priority::High).await;
        assert_eq!(low.await.unwrap().err(), Some(Shed), "the queue is full, and it matters least");
        assert_eq!(
            crowd.enter(&rule, Priority::Normal).await.err(),
            Some(Shed),
            "it matters no more than those"
        );
        drop(first);
        let high = high.await.unwrap().unwrap();
        assert_eq!(crowd.counts(), (1, 1));
        drop(high);
        drop(normal.await.unwrap().unwrap());
        assert_eq!(crowd.counts(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_longer_and_who_leaves_takes_no_place_along() {
        let (crowd, rule) = (Arc::new(Crowd::default()), rule(1, 5));
        let first = crowd.enter(&rule, Priority::Normal).await.unwrap();
        let begun = tokio::time::Instant::now();
        assert_eq!(crowd.enter(&rule, Priority::High).await.err(), Some(Shed));
        assert_eq!(begun.elapsed(), rule.wait);
        let leaves = enter(&crowd, &rule, Priority::High).await;
        leaves.abort();
        assert!(leaves.await.is_err());
        assert_eq!(crowd.counts(), (1, 0));
        drop(first);
        assert_eq!(crowd.counts(), (0, 0));
    }
}
