//! Reading TOML so that every fault is found at once, each with its place.
//!
//! Text → [`Section`] → validated type. A section knows which of its keys were asked for; what nobody asked for is a
//! fault that names the nearest key. Serde stops at the first fault and forgets where the others are, so this is a
//! reader of our own on `toml`'s spanned tree.

mod fault;
pub mod network;
mod section;
pub mod units;
pub mod value;

pub use self::fault::{Fault, Faults, MOST_FAULTS, Renamed};
pub use self::section::{LONGEST_NAME, Section, nearest};
pub use self::value::{FromToml, OneOrMany, Unfit};
