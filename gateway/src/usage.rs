//! Who uses what most, for `/admin/top` and `/admin/limits`: estimates in bounded memory, of this replica.

use policy::bucket::Bucket;

use crate::sketch::Sketch;

/// The busiest of each kind.
#[derive(Default)]
pub struct Usage {
    /// Client addresses.
    pub addresses: Sketch<String>,
    /// Subjects.
    pub users: Sketch<String>,
    /// API keys, by id.
    pub api_keys: Sketch<String>,
    /// Routes, by name.
    pub routes: Sketch<String>,
    /// Buckets of limits.
    pub buckets: Sketch<Bucket>,
}

impl Usage {
    /// The sketch that an operator calls `name`.
    pub fn by(&self, name: &str) -> Option<&Sketch<String>> {
        match name {
            "ip" => Some(&self.addresses),
            "user" => Some(&self.users),
            "api_key" => Some(&self.api_keys),
            "route" => Some(&self.routes),
            _ => None,
        }
    }
}
