//! Overload: a bound on the requests in flight to an upstream. A few more wait for a moment, and those with the highest
//! priority are sent first. When too many wait, those with the lowest priority are refused with a `Retry-After`. A
//! service that gets no more requests than it can serve answers more of them than one that gets all.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::document::Section;
use crate::document::units::Span;
use crate::words;

/// How important the requests of a route are, in ascending order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Shed first.
    Low,
    /// In between.
    #[default]
    Normal,
    /// Shed last.
    High,
}

words! { Priority { "low" => Low, "normal" => Normal, "high" => High } or "low, normal or high" }

/// `[concurrency.UPSTREAM]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcurrencyRule {
    /// The most requests in flight.
    pub max_in_flight: u32,
    /// The most requests that wait.
    pub max_queued: u32,
    /// How long a request waits at most.
    pub max_wait: Duration,
}

/// Too many requests are in flight and too many wait, or this one has waited too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded;

/// What the concurrency stage asks of the outside. An implementation never waits without a bound.
pub trait Permits: Sync {
    /// The right to be one of the requests in flight, until it is dropped.
    type Permit: Send;

    /// Acquires a permit for one request to `upstream`. If `rule` bounds the requests in flight, this may wait, at most
    /// for the rule's `max_wait`.
    fn acquire(
        &self,
        upstream: &Arc<str>,
        rule: Option<&ConcurrencyRule>,
        priority: Priority,
    ) -> impl Future<Output = Result<Self::Permit, Overloaded>> + Send;
}

impl ConcurrencyRule {
    pub(crate) fn read_all(root: &Section<'_>) -> HashMap<String, Arc<Self>> {
        let sections = root.named_sections("concurrency");
        sections
            .into_iter()
            .filter_map(|(name, section)| Some((name, Arc::new(Self::read(section)?))))
            .collect()
    }

    fn read(section: Section<'_>) -> Option<Self> {
        let key = section.renamed("max_in_flight", "most");
        let max_in_flight = section.require::<u32>(key, "how many requests in flight");
        if max_in_flight == Some(0) {
            section.fault(key, "at least 1 (got 0)");
        }
        let max_queued = section.get_or(section.renamed("max_queued", "queue"), 100);
        let max_wait =
            section.get_or(section.renamed("max_wait", "wait"), Span(Duration::from_millis(100))).0;
        section.finish();
        Some(Self { max_in_flight: max_in_flight?, max_queued, max_wait })
    }
}
