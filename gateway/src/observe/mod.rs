//! What operators can see from outside: metrics, logs, traces.

pub mod access;
pub mod audit;
pub mod clock_steps;
pub mod metrics;
pub mod usage;
