//! What a limit has left for a client, as figures.

use std::sync::Arc;
use std::time::Duration;

use crate::values::time::whole_seconds;

/// What a limit has left for this client, for `RateLimit` and `RateLimit-Policy`.
#[derive(Clone, Debug)]
pub struct Quota {
    /// The limit's name.
    pub limit: Arc<str>,
    /// Its rate: so many requests,
    pub count: u32,
    /// in so much time.
    pub per: Duration,
    /// What is left now.
    pub remaining: u32,
    /// How long until there is one more.
    pub next: Duration,
    /// Whether this limit had nothing left for the request.
    pub exceeded: bool,
    /// Whether it refuses for that.
    pub enforced: bool,
    /// Whether nobody had taken anything from its bucket before.
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
