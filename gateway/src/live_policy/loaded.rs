//! A policy with all that it was read with.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use policy::Policy;
use policy::document::Fault;

use crate::identity::keys::Keys;
use crate::live_policy::counts::Counts;
use crate::live_policy::deny_lists::Lists;
use crate::live_policy::files::whole_file;
use crate::live_policy::named::Named;

/// A policy with where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The rules.
    pub rules: Policy,
    /// Of the file's bytes, in hexadecimal.
    pub sha256: String,
    /// The file.
    pub file: String,
    /// When it came into force.
    pub loaded_at: SystemTime,
    /// The file's text, without overrides.
    pub(super) text: String,
    pub(super) lists: Lists,
    /// What the file names outside of itself.
    pub(super) named: Named,
    /// How requests went under it.
    pub counts: Arc<Counts>,
}

impl Loaded {
    /// The policy, once the keys that it names are there.
    pub(super) fn adopted(self, keys: &Keys) -> Result<Self, Vec<Fault>> {
        let adopted = keys.adopt(&self.rules);
        adopted.map_err(|error| vec![whole_file(Path::new(&self.file), &error)])?;
        Ok(self)
    }
}
