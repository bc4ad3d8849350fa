//! Reading TOML so that every fault is found at once, each with its place.
//!
//! Text → [`Section`] → validated type. A section knows which of its keys were read. A key that nobody reads is a
//! fault, which names the nearest known key. Serde stops at the first fault and does not report the places of the
//! others, so this is a reader of our own on `toml`'s spanned tree.
//!
//! Floor 1: imports only its own files.

mod fault;
pub mod network;
mod section;
pub mod units;
pub mod value;

pub use self::fault::{Fault, Faults, MOST_FAULTS, Renamed};
pub use self::section::{LONGEST_NAME, Section, nearest};
pub use self::value::{FromToml, OneOrMany, Unfit};
