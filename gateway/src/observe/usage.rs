//! Who uses what most, for `/admin/top` and `/admin/limits`: estimates in bounded memory, of this replica.

use policy::rules::limits::bucket::Bucket;

use crate::collections::top_k::Sketch;

/// The longest name that is counted, in bytes: subjects are as long as their issuers make them.
const LONGEST_NAME: usize = 128;

/// A name as it is counted: two names whose first [`LONGEST_NAME`] bytes are equal count as one.
pub fn counted(name: &str) -> &str {
    &name[..name.floor_char_boundary(LONGEST_NAME)]
}

/// The busiest items of each kind.
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
    /// The sketch that an operator names `name`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_name_has_a_bound_and_is_not_cut_within_a_letter() {
        assert_eq!(counted("ann"), "ann");
        let long = format!("{}ä", "a".repeat(LONGEST_NAME - 1));
        assert_eq!(counted(&long).len(), LONGEST_NAME - 1);
    }
}
