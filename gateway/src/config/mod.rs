//! What an operator sets outside the policy: the settings file, the command line, secrets.
//!
//! Floor 1: imports nothing of this crate but its own files.

pub mod address;
pub mod cli;
pub mod health;
pub mod redis_address;
pub mod secrets;
pub mod settings;
