//! Read-only mode: entered by hand, or by itself when the disk is full or writing fails. Reading continues; what would
//! write is answered with 503. What was entered by itself is left by itself, once writing has worked several times in a
//! row.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::ErrorCode;
use tracing::{error, info};

use super::error::DbError;

/// How often it is tried whether writing works again.
pub(crate) const TRY_EVERY: Duration = Duration::from_secs(2);

/// So many tries in a row: a disk that is nearly full would otherwise be entered and left with each write.
const WORKS_AFTER: u32 = 2;

/// Whether anything is written.
#[derive(Debug, Default)]
pub(crate) struct Mode {
    by_hand: AtomicBool,
    failing: AtomicBool,
    worked: AtomicU32,
}

impl Mode {
    /// Whether what would write is refused.
    pub(crate) fn refuses(&self) -> bool {
        self.by_hand.load(Ordering::Relaxed) || self.is_failing()
    }

    /// Whether writing fails.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// The mode as operators call it, and why.
    pub(crate) fn describe(&self) -> &'static str {
        match (self.by_hand.load(Ordering::Relaxed), self.is_failing()) {
            (true, _) => "read-only, by hand",
            (false, true) => "read-only, for writing fails",
            (false, false) => "read-write",
        }
    }

    /// An operator wants it so.
    pub(crate) fn set_by_hand(&self, read_only: bool) {
        self.by_hand.store(read_only, Ordering::Relaxed);
        info!(mode = self.describe(), "mode set by hand");
    }

    /// A write failed: whether the disk is the cause.
    pub(crate) fn learn(&self, fault: &DbError) {
        let DbError::Sqlite(fault) = fault else { return };
        let of_the_disk = matches!(
            fault.sqlite_error_code(),
            Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly)
        );
        if of_the_disk && !self.failing.swap(true, Ordering::Relaxed) {
            self.worked.store(0, Ordering::Relaxed);
            error!(error = %fault, "writing fails: read-only until it works again");
        }
    }

    /// Writing was tried.
    pub(crate) fn tried(&self, worked: bool) {
        let in_a_row = if worked { self.worked.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        self.worked.store(in_a_row, Ordering::Relaxed);
        if in_a_row >= WORKS_AFTER {
            self.failing.store(false, Ordering::Relaxed);
            info!("writing works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_makes_it_read_only_until_writing_has_worked_for_a_while() {
        let mode = Mode::default();
        let failure =
            |code| DbError::Sqlite(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
        mode.learn(&failure(rusqlite::ffi::SQLITE_CONSTRAINT));
        assert!(!mode.refuses());
        mode.learn(&failure(rusqlite::ffi::SQLITE_FULL));
        assert!(mode.refuses());
        mode.tried(true);
        mode.tried(false);
        mode.tried(true);
        assert!(mode.refuses(), "not twice in a row yet");
        mode.tried(true);
        assert!(!mode.refuses());
        mode.set_by_hand(true);
        mode.tried(true);
        assert!(mode.refuses(), "what was set by hand is left by hand");
    }
}
