//! What protects upstreams and who waits for them: breakers, concurrency limits, the budget of retries, last good
//! responses.
//!
//! Floor 3: imports `clock`, `collections`, `http`, `observe`.

pub mod backoff;
pub mod breakers;
pub mod concurrency;
pub mod last_good;
pub mod retry_budget;
