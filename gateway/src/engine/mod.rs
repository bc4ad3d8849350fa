//! What decisions need, shared by all connections, and the `World` that the policy asks.
//!
//! Floor 7: imports everything below `request`, `admin` and `server`.

mod gateway;
pub mod websockets;
mod world;

pub use self::gateway::{By, ChangeFault, Components, Gateway};
pub use self::world::Handle;
