//! What takes its time by nature: floods, long streams, ten thousand of something, a crowd that guesses, a steady load while
//! everything around it fails. Run by `make test` after the short tests.
#![expect(clippy::unwrap_used, reason = "a test panics to fail")]

/// One module for all of them, so that `--skip soak::` leaves them out of a run of everything else.
#[path = "."]
mod soak {
    mod chaos;
    mod clock;
    mod connections;
    mod guessing;
    mod limits;
    mod permissions;
    mod slow;
    mod streams;
}
