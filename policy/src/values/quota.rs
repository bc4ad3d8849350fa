//! The figures of a limit for one client.

use std::sync::Arc;
use std::time::Duration;

use crate::values::time::whole_seconds;

/// What is left of a limit for this client: the figures of `RateLimit` and `RateLimit-Policy`.
#[derive(Clone, Debug)]
pub struct Quota {
    /// The limit's name.
    pub limit: Arc<str>,
    /// The rate: how many requests,
    pub count: u32,
    /// in how much time.
    pub per: Duration,
    /// Requests left now.
    pub remaining: u32,
    /// The time until one more is left.
    pub next: Duration,
    /// Whether nothing was left for this request.
    pub exceeded: bool,
    /// Whether the limit refuses the request then.
    pub enforced: bool,
    /// Whether the bucket was full before this request.
    pub was_full: bool,
}

impl Quota {
    /// `"login";q=5;w=60`, draft-ietf-httpapi-ratelimit-headers.
    pub fn policy_field(&self) -> String {
        format!("\"{}\";q={};w={}", self.limit, self.count, self.per.as_secs())
    }

    /// `"login";r=0;t=12`.
    pub fn field(&self) -> String {
        let seconds = if self.next.is_zero() { 0 } else { whole_seconds(self.next) };
        format!("\"{}\";r={};t={seconds}", self.limit, self.remaining)
    }
}
