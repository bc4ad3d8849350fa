//! What a program says of itself when it starts: which optional parts are off, and which secrets were found where.

use std::collections::BTreeMap;
use std::path::Path;

use tracing::info;

/// The summary, part by part.
pub struct Summary<'s> {
    dir: &'s Path,
    environment: &'s BTreeMap<String, String>,
    found: Vec<String>,
    off: Vec<&'s str>,
}

impl<'s> Summary<'s> {
    /// Nothing so far; secrets are in the `environment`, else in files in `dir`.
    pub fn new(dir: &'s Path, environment: &'s BTreeMap<String, String>) -> Self {
        Self { dir, environment, found: Vec::new(), off: Vec::new() }
    }

    /// Notes an optional part, by the setting that switches it on.
    #[must_use]
    pub fn part(mut self, setting: &'s str, is_on: bool) -> Self {
        if !is_on {
            self.off.push(setting);
        }
        self
    }

    /// Notes a secret, by its name: where it was found, or that it was not.
    #[must_use]
    pub fn secret(mut self, name: &'s str) -> Self {
        let file = self.dir.join(name);
        if self.environment.contains_key(name) {
            self.found.push(format!("{name} in the environment"));
        } else if file.exists() {
            self.found.push(format!("{name} in `{}`", file.display()));
        } else {
            self.off.push(name);
        }
        self
    }

    /// Logs it.
    pub fn log(self, profile: &str, version: &str) {
        let said = |list: &[String]| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        let off: Vec<String> = self.off.iter().map(|part| (*part).to_owned()).collect();
        info!(version, profile, secrets_found = said(&self.found), not_set = said(&off), "starting");
    }
}
