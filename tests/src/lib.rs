//! The harness: real programs on ports of their own, a real Redis, clients with addresses of their own, faults.
//!
//! Nothing waits a fixed time: everything waits for a state, with a long bound. Every program that is started ends with
//! the value that stands for it, and its log is printed when the test fails.
#![expect(clippy::missing_panics_doc, reason = "a harness panics to fail a test")]
#![expect(clippy::unwrap_used, reason = "a harness panics to fail a test")]

pub mod client;
pub mod fault;
pub mod hammer;
pub mod program;
pub mod redis;
pub mod stack;
pub mod upstream;

use std::future::Future;
use std::time::{Duration, Instant};

/// The longest wait for a state.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `state` holds; `what` says in a failure what did not come about.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut state: impl FnMut() -> F) {
    let begun = Instant::now();
    while !state().await {
        assert!(begun.elapsed() < PATIENCE, "did not come about: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
