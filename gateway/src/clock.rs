//! The one place where the gateway reads its clocks for decisions.
//!
//! Durations are measured by the steady clock, which nobody can set: limits, windows, breakers, the age of answers.
//! Times that others name are compared with the wall clock: the ends of tokens and bans, the order of changes. The wall
//! clock may be set forward or back, which is logged and counted.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use policy::values::time::Timestamp;

/// Where the steady clock begins: at the wall clock's time at the start, so that zero is long ago on both clocks.
static START: LazyLock<(Instant, Timestamp)> = LazyLock::new(|| (Instant::now(), wall()));

/// The steady time: nobody can set it.
pub fn steady() -> Timestamp {
    let (instant, wall) = *START;
    wall + instant.elapsed()
}

/// The wall time: the time that others use.
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::EPOCH + since
}

/// A moment in nanoseconds since the epoch, as people read it.
pub fn text(nanos: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string()
}
