//! The one place where the gateway reads the clock for decisions.
//!
//! Time goes on evenly: it is the wall clock's at the start and moves with the monotonic clock from there. A step of the
//! wall clock is followed only when somebody calls [`follow`], now and then, so that leases and bans do not end early
//! or late in the middle of a request.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use policy::time::Timestamp;

static START: LazyLock<(Instant, AtomicU64)> = LazyLock::new(|| (Instant::now(), AtomicU64::new(wall())));

/// A smaller difference to the wall clock is left alone.
const STEP: Duration = Duration::from_secs(1);

fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Now.
pub fn now() -> Timestamp {
    let (start, offset) = &*START;
    let elapsed = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Timestamp::from_nanos(offset.load(Ordering::Relaxed).saturating_add(elapsed))
}

/// Follows the wall clock, if it was set.
pub fn follow() {
    let (ours, theirs) = (now().as_nanos(), wall());
    if u128::from(ours.abs_diff(theirs)) > STEP.as_nanos() {
        let offset = &START.1;
        offset
            .store(offset.load(Ordering::Relaxed).wrapping_add(theirs).wrapping_sub(ours), Ordering::Relaxed);
    }
}

/// A moment in nanoseconds since the epoch, as people read it.
pub fn text(nanos: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string()
}
