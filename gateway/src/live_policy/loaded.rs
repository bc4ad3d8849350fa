//! A policy with its origin.

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

/// A policy with the text and file that it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The rules.
    pub rules: Policy,
    /// The SHA-256 of the file's bytes, in hexadecimal.
    pub sha256: String,
    /// The file.
    pub file: String,
    /// When it came into force.
    pub loaded_at: SystemTime,
    /// The file's text, without overrides.
    pub(super) text: String,
    pub(super) lists: Lists,
    /// The files, addresses and secrets that the file names.
    pub(super) named: Named,
    /// The results of requests under it.
    pub counts: Arc<Counts>,
}

impl Loaded {
    /// Builds the policy, after the keys that it names were loaded.
    pub(super) fn adopted(self, keys: &Keys) -> Result<Self, Vec<Fault>> {
        let adopted = keys.adopt(&self.rules);
        adopted.map_err(|error| vec![whole_file(Path::new(&self.file), &error)])?;
        Ok(self)
    }
}
