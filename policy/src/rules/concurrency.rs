//! Overload: how many requests an upstream is sent at a time. A few more wait for a moment, those that matter most first;
//! when even they are too many, those that matter least are told to come back. A service that is given what it can do
//! answers more than one that is given everything.

use std::collections::HashMap;
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
pub struct CrowdRule {
    /// Requests in flight.
    pub most: u32,
    /// Requests that wait.
    pub queue: u32,
    /// For how long.
    pub wait: Duration,
}

impl CrowdRule {
    pub(crate) fn read_all(root: &Section<'_>) -> HashMap<String, Arc<Self>> {
        let sections = root.named_sections("concurrency");
        sections
            .into_iter()
            .filter_map(|(name, section)| Some((name, Arc::new(Self::read(section)?))))
            .collect()
    }

    fn read(section: Section<'_>) -> Option<Self> {
        let most = section.require::<u32>("most", "how many requests in flight");
        if most == Some(0) {
            section.fault("most", "at least 1 (got 0)");
        }
        let queue = section.get_or("queue", 100);
        let wait = section.get_or("wait", Span(Duration::from_millis(100))).0;
        section.finish();
        Some(Self { most: most?, queue, wait })
    }
}
