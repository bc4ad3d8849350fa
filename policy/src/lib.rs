//! The specification of Palisade: parse a policy, validate it, decide requests by it.
//!
//! Read [`pipeline`] first: it is the product in one function. Each stage is a file of its own, [`stage::Stage`] is
//! the table of contents, and [`world::World`] is all that the specification may ask of the outside. There is no clock,
//! file, socket, environment, runtime or randomness in this crate: time and chance are arguments, so that a decision
//! can be simulated, tested for properties, explained and replayed. `clippy.toml` keeps it so.

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
