//! `[permissions]`: which upstream answers permission questions and knows API keys, and how long an answer is valid.

use std::sync::Arc;
use std::time::Duration;

use crate::document::Section;
use crate::document::units::Span;
use crate::words;

/// `[permissions]`: which upstream answers permission questions, and how long an answer is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermissionRule {
    /// The upstream that answers.
    pub upstream: Arc<str>,
    /// How long a positive answer is valid.
    pub ttl: Duration,
    /// How long a negative answer is valid.
    pub negative_ttl: Duration,
    /// The most answers that are cached.
    pub capacity: u32,
    /// While the change feed is unavailable, an answer that is older than this is not used.
    pub max_staleness: Duration,
    /// What happens when nobody answers.
    pub on_failure: OnPermissionFailure,
}

/// What happens when nobody answers a permission question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPermissionFailure {
    /// 503.
    Deny,
    /// The last known answer counts; 503 when there is none.
    Stale,
}

words! { OnPermissionFailure { "deny" => Deny, "stale" => Stale } or "deny or stale" }

impl PermissionRule {
    pub(crate) fn read(section: Option<Section<'_>>) -> Self {
        let secs = |seconds| Span(Duration::from_secs(seconds));
        let Some(section) = section else {
            return Self {
                upstream: "backend".into(),
                ttl: secs(300).0,
                negative_ttl: secs(30).0,
                capacity: 100_000,
                max_staleness: secs(5).0,
                on_failure: OnPermissionFailure::Deny,
            };
        };
        let rule = Self {
            upstream: section.get_or("upstream", "backend".to_owned()).into(),
            ttl: section.get_or("ttl", secs(300)).0,
            negative_ttl: section.get_or("negative_ttl", secs(30)).0,
            capacity: section.get_checked("capacity", 100_000, |capacity| {
                (1..=10_000_000)
                    .contains(capacity)
                    .then_some(())
                    .ok_or(format!("from 1 to 10000000 (got {capacity})"))
            }),
            max_staleness: section.get_or("max_staleness", secs(5)).0,
            on_failure: section.get_or("on_failure", OnPermissionFailure::Deny),
        };
        section.finish();
        rule
    }
}
