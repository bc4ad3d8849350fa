//! Steps of the wall clock are logged and counted: tokens and bans end by the new time.

use std::time::Duration;

use policy::values::time::Timestamp;
use tracing::warn;

use crate::clock::{steady, wall};
use crate::observe::metrics::Metrics;

/// How often the two clocks are compared.
const LOOK: Duration = Duration::from_secs(1);

/// A smaller difference within [`LOOK`] means that the clock is being adjusted, or that this thread waited.
pub const STEP: Duration = Duration::from_millis(500);

/// Logs and counts each step of the wall clock, forever.
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

/// How many milliseconds the wall clock is ahead of the steady clock.
fn ahead() -> i128 {
    let millis = |time: Timestamp| i128::from(time.as_nanos() / 1_000_000);
    millis(wall()) - millis(steady())
}
