//! The harness: real programs on ports of their own, a real Redis, clients with addresses of their own, faults.
//!
//! `tests/it` are the short tests, each of some seconds at most and six at a time; `tests/soak` those that load, flood or
//! wait by nature, two at a time. A policy is changed by path with [`policy_text::PolicyText`].
//!
//! Nothing waits a fixed time: everything waits for a state, with a long bound. Every program that is started ends with
//! the value that stands for it, and its log is printed when the test fails.
#![expect(clippy::missing_panics_doc, reason = "a harness panics to fail a test")]
#![expect(clippy::unwrap_used, reason = "a harness panics to fail a test")]

pub mod accounts;
pub mod answers;
pub mod authority;
pub mod client;
pub mod fake_clock;
pub mod fault;
pub mod frames;
pub mod hammer;
pub mod load;
pub mod mutate;
pub mod peers;
pub mod permissions;
pub mod policy_text;
pub mod program;
pub mod redis;
pub mod secrets;
pub mod stack;
pub mod streams;
pub mod three;
pub mod upstream;

use std::future::Future;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The longest wait for a state.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `state` holds; `what` says in a failure what did not come about.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut state: impl FnMut() -> F) {
    let begun = Instant::now();
    while !state().await {
        assert!(begun.elapsed() < PATIENCE, "did not come about: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await; // between two looks
    }
}

/// A port that is free now, and that nobody takes by chance before it is listened on: it lies below those that the system
/// gives to outgoing connections, and each is given out once.
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Where two test runs are active at once, they begin at different places.
        let number = std::process::id().wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % COUNT).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// The mails in a directory that a backend writes them to, in the order in which they were sent; not one that is being
/// written.
pub fn mails(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path());
    let mut mails: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|ending| ending == "eml")).collect();
    mails.sort();
    mails
}
