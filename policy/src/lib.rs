//! The specification of Palisade: parse a policy, validate it, and decide requests by it.
//!
//! Read [`pipeline`] first: it is the whole product in the order of enforcement. [`values::stage::Stage`] is the table
//! of contents, and each table of the policy has a file in [`rules`]. [`world::World`] is everything that the
//! specification may ask of the outside. This crate has no clock, file, socket, environment, runtime or randomness.
//! Time and chance are arguments, so that a decision can be simulated, tested for properties, explained and replayed.
//! `clippy.toml` enforces this.

pub mod document;
pub mod neighbours;
pub mod offered;
pub mod pipeline;
mod policy;
pub mod policy_test;
pub mod progress;
mod reading;
pub mod routes;
pub mod rules;
pub mod testing;
pub mod values;
pub mod world;

pub use policy::{Policy, VERSION, same_field};
