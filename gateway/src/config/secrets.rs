//! Secrets: the environment first, then one file each. Nothing prints them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;

/// Text that no log, error or debug print ever shows.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Compares in constant time.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        use subtle::ConstantTimeEq as _;
        self.0.ct_eq(candidate).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The shortest secret of ours, in bytes.
const MIN_SECRET: usize = 32;

/// The largest file of a secret, in bytes.
const LARGEST: u64 = 64 << 10;

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
            secrets.insert(name.clone(), decode(name, text, "in the environment")?);
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
        let file = self.dir.join(name);
        if !file.try_exists().unwrap_or(true) {
            return Ok(None);
        }
        let text = service::files::read_text(&file, LARGEST).with_context(|| name.to_owned())?;
        decode(name, &text, &format!("in `{}`", file.display())).map(Some)
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

fn decode(name: &str, text: &str, place: &str) -> anyhow::Result<Secret> {
    let text = text.trim_end_matches(['\r', '\n']);
    let bytes = match text.strip_prefix("base64:") {
        Some(encoded) => base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .map_err(|_| anyhow::anyhow!("{name} {place}: what follows `base64:` is not base64"))?,
        None => text.as_bytes().to_vec(),
    };
    if bytes.len() < MIN_SECRET && name != REDIS_PASSWORD {
        bail!("{name} {place}: at least {MIN_SECRET} characters (got {})", bytes.len());
    }
    Ok(Secret(bytes))
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
