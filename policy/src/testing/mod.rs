//! Tries a policy without a gateway: the simulated world, in which the `[[tests]]` of a policy run.
//!
//! Floor 5: imports every other room.

pub mod check;
pub mod simulation;
