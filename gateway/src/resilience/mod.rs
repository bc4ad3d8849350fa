//! What protects upstreams and the clients that wait for them: breakers, concurrency limits, retry budgets, last good
//! answers.
//!
//! Floor 3: imports `clock`, `collections`, `http`, `observe`.

pub mod backoff;
pub mod breakers;
pub mod concurrency;
pub mod last_good;
pub mod retry_budget;
