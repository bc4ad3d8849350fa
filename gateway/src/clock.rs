//! The one place where the gateway reads its clocks for decisions.
//!
//! Durations are measured by the steady clock: limits, windows, breakers, the age of answers. Nobody sets it. Moments that
//! others name are compared with the wall clock: the ends of tokens and bans, the order of changes. It may be set forward
//! and back, which is logged and counted.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use policy::values::time::Timestamp;
use tracing::warn;

use crate::observe::metrics::Metrics;

/// Where the steady clock begins: at the wall clock's time of the start, so that zero is long ago on both.
static START: LazyLock<(Instant, Timestamp)> = LazyLock::new(|| (Instant::now(), wall()));

/// How often the two clocks are compared.
const LOOK: Duration = Duration::from_secs(1);

/// A smaller difference within [`LOOK`] is a clock that is being adjusted, or a thread that waited.
pub const STEP: Duration = Duration::from_millis(500);

/// The time that goes on evenly.
pub fn steady() -> Timestamp {
    let (instant, wall) = *START;
    wall + instant.elapsed()
}

/// The time as others know it.
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::EPOCH + since
}

/// Tells of each step of the wall clock, forever.
pub async fn watch(metrics: Metrics) {
    let mut before = ahead();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = ahead();
        let step = now - before;
        before = now;
        if step.unsigned_abs() > STEP.as_millis() {
            metrics.clock_steps.with_label_values(&["gateway"]).inc();
            warn!(
                step_ms = i64::try_from(step).unwrap_or_default(),
                "the wall clock was set: tokens and bans end by the new time, limits and breakers are not affected"
            );
        }
    }
}

/// By how many milliseconds the wall clock is ahead of the steady one.
fn ahead() -> i128 {
    let millis = |time: Timestamp| i128::from(time.as_nanos() / 1_000_000);
    millis(wall()) - millis(steady())
}

/// A moment in nanoseconds since the epoch, as people read it.
pub fn text(nanos: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string()
}
