//! Secrets: the environment first, then one file each. Nothing prints them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use service::secret::Length;

pub use service::secret::Secret;

/// Its length is not checked, because Redis decides which passwords are good.
pub const REDIS_PASSWORD: &str = "REDIS_PASSWORD";

/// Where secrets come from: the environment first, then one file each.
#[derive(Clone, Debug)]
pub struct Secrets {
    dir: PathBuf,
    environment: BTreeMap<String, Secret>,
}

impl Secrets {
    /// The names of the secrets that are read from the environment. A policy's `secret = "NAME"` adds its own.
    const NAMES: [&str; 5] = ["ADMIN_TOKEN", "GATEWAY_TOKEN", "JWT_SECRET", "METRICS_TOKEN", REDIS_PASSWORD];

    /// Reads the secrets from the environment.
    pub fn new(dir: &Path, environment: &BTreeMap<String, String>) -> anyhow::Result<Self> {
        let known = |name: &str| Self::NAMES.contains(&name) || name.ends_with("_SECRET");
        let mut secrets = BTreeMap::new();
        for (name, text) in environment.iter().filter(|(name, _)| known(name)) {
            secrets.insert(name.clone(), Secret::decode(name, text, "in the environment", length(name))?);
        }
        Ok(Self { dir: dir.to_owned(), environment: secrets })
    }

    /// The secret called `name`, if it is there.
    pub fn get(&self, name: &str) -> anyhow::Result<Option<Secret>> {
        if let Some(secret) = self.environment.get(name) {
            return Ok(Some(secret.clone()));
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
            bail!("a secret's name holds letters, digits, `_` and `-` (got {name:?})");
        }
        Secret::in_dir(&self.dir, name, length(name))
    }

    /// Checks that every secret of `needed` is there and valid; each comes with the reason why it is needed. The error
    /// names all that are not.
    pub fn require_all(&self, needed: &[(String, String)]) -> anyhow::Result<()> {
        let faults: Vec<String> = needed
            .iter()
            .filter_map(|(name, why)| match self.get(name) {
                Ok(Some(_)) => None,
                Ok(None) => Some(format!("{name} is missing: {why}")),
                Err(fault) => Some(format!("{fault:#}")),
            })
            .collect();
        if !faults.is_empty() {
            let (faults, dir) = (faults.join("; "), self.dir.display());
            bail!("{faults}; looked in the environment and in `{dir}`");
        }
        Ok(())
    }

    /// The secret called `name`, which must be there because of `why`.
    pub fn require(&self, name: &str, why: &str) -> anyhow::Result<Secret> {
        self.get(name)?.with_context(|| {
            format!("{name} is missing: {why}; looked in the environment and in `{}`", self.dir.display())
        })
    }
}

fn length(name: &str) -> Length {
    if name == REDIS_PASSWORD { Length::Theirs } else { Length::Ours }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn secrets_come_from_the_environment_then_from_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ADMIN_TOKEN"), format!("{}\n", "a".repeat(32))).unwrap();
        std::fs::write(dir.path().join("GATEWAY_TOKEN"), "short").unwrap();
        let secrets = Secrets::new(dir.path(), &environment(&[("JWT_SECRET", &"j".repeat(32))])).unwrap();
        assert!(secrets.get("ADMIN_TOKEN").unwrap().unwrap().matches("a".repeat(32).as_bytes()));
        assert_eq!(secrets.get("JWT_SECRET").unwrap().unwrap().expose(), "j".repeat(32).as_bytes());
        assert!(secrets.get("METRICS_TOKEN").unwrap().is_none());
        let error = secrets.get("GATEWAY_TOKEN").unwrap_err().to_string();
        assert!(error.contains("at least 32 characters (got 5)"), "{error}");
        let error = secrets.require("OTHER", "the policy names it").unwrap_err().to_string();
        assert!(error.starts_with("OTHER is missing: the policy names it"), "{error}");
        let needed = ["ADMIN_TOKEN", "GATEWAY_TOKEN", "ONE", "TWO"]
            .map(|name| (name.to_owned(), "it is used".to_owned()));
        let error = secrets.require_all(&needed).unwrap_err().to_string();
        for wanted in
            ["GATEWAY_TOKEN in `", "(got 5)", "ONE is missing: it is used", "TWO is missing: it is used"]
        {
            assert!(error.contains(wanted) && !error.contains("ADMIN_TOKEN"), "{error}");
        }
        assert!(!format!("{secrets:?}").contains("jjj"));
    }
}
