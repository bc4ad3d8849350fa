//! What every program of ours has, whatever it does: connections with bounds and deadlines, log lines on their way out,
//! what may be logged, files that are bounded.
//!
//! [`lines`] takes lines and never waits, [`sink`] writes them on a thread of its own, [`level`] says which events are
//! logged at all, and [`panics`] what is said when a program ends before its time. [`files`] reads what settings name and replaces what outlives a restart,
//! [`settings`] says what is wrong with them. [`telemetry`] starts logs and traces, [`startup`] says
//! what is on. [`listener`] serves a router, and gives no client more time or room than it
//! says.

pub mod files;
mod last_answer;
pub mod level;
pub mod lines;
pub mod listener;
pub mod log;
pub mod overlay;
pub mod panics;
pub mod secret;
pub mod settings;
mod sink;
pub mod startup;
pub mod telemetry;
mod timed_stream;
