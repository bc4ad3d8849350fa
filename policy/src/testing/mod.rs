//! A policy that is tried without a gateway: the simulated world, and the `[[tests]]` of a policy run in it.
//!
//! Floor 5: imports every other room.

pub mod check;
pub mod simulation;
