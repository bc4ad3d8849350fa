//! Counts the results of requests under one policy, for its trial.

use std::sync::atomic::{AtomicU64, Ordering};

use policy::rules::canary::Tally;

/// The results of requests under one policy.
#[derive(Debug, Default)]
pub struct Counts {
    requests: AtomicU64,
    refusals: AtomicU64,
    errors: AtomicU64,
}

impl Counts {
    /// Counts a request that ended with `status`.
    pub fn record(&self, status: u16, refused: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if status >= 500 {
            self.errors.fetch_add(1, Ordering::Relaxed);
        } else if refused {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn tally(&self) -> Tally {
        Tally {
            requests: self.requests.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}
