//! What replicas share and what survives a restart: the buckets of limits, and bans, revocations and overrides. It is
//! in process, in Redis and in the state directory.
//!
//! Floor 3: imports `clock`, `config`, `observe`.

pub mod bans;
pub mod directory;
pub mod leases;
pub mod local;
pub mod overrides;
pub mod redis;
pub mod redis_connection;
pub mod replicated_state;
pub mod revocations;
pub(crate) mod shards;
pub mod store;
