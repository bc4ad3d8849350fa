//! Overload: how many requests an upstream is sent at a time. A few more wait for a moment, those that matter most first;
//! when even they are too many, those that matter least are told to come back. A service that is given what it can do
//! answers more than one that is given everything.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::document::Section;
use crate::document::units::Span;
use crate::words;

/// How much a route's requests matter; later ones matter more.
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
    /// Requests in flight.
    pub max_in_flight: u32,
    /// Requests that wait.
    pub max_queued: u32,
    /// For how long.
    pub max_wait: Duration,
}

/// There are too many requests in flight, and too many that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded;

/// What the concurrency stage asks of the outside. An implementation never waits without a bound.
pub trait Permits: Sync {
    /// A place among the requests in flight, until it is dropped.
    type Permit: Send;

    /// A place among the requests that are sent to `upstream` at a time, if `rule` bounds them; waits no longer than that
    /// says.
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
