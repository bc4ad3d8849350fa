//! Secrets: the environment first, then one file each. Nothing prints them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, bail};
use base64::Engine as _;

use super::Profile;

/// The secret that opens the SMTP server, beside the user in `mail.url`.
pub(crate) const SMTP_PASSWORD: &str = "SMTP_PASSWORD";

/// Text that no log, error or debug print ever shows.
#[derive(Clone)]
pub(crate) struct Secret(Vec<u8>);

impl Secret {
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Compares in constant time.
    pub(crate) fn matches(&self, candidate: &[u8]) -> bool {
        use subtle::ConstantTimeEq as _;
        self.0.ct_eq(candidate).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// What the program must know and never show.
#[derive(Clone, Debug)]
pub(crate) struct Secrets {
    /// Signs tokens: HS256.
    pub(crate) jwt_secret: Option<Secret>,
    /// Signs tokens: a private key in PEM.
    pub(crate) jwt_key: Option<Secret>,
    /// The secret that the gateway signs its assertions with.
    pub(crate) gateway_token: Option<Secret>,
    /// Guards `/metrics`.
    pub(crate) metrics_token: Option<Secret>,
    /// Opens the SMTP server.
    pub(crate) smtp_password: Option<Secret>,
}

/// The largest file of a secret, in bytes.
const LARGEST: u64 = 64 << 10;

/// The least a secret may hold.
const MIN_SECRET: usize = 32;

impl Secrets {
    /// Environment first, then files in `dir`; production requires what it needs.
    pub(crate) fn load(
        dir: &Path,
        environment: &BTreeMap<String, String>,
        profile: Profile,
    ) -> anyhow::Result<Self> {
        let secrets = Self {
            jwt_secret: secret("JWT_SECRET", dir, environment)?,
            jwt_key: secret("JWT_KEY", dir, environment)?,
            gateway_token: secret("GATEWAY_TOKEN", dir, environment)?,
            metrics_token: secret("METRICS_TOKEN", dir, environment)?,
            smtp_password: secret(SMTP_PASSWORD, dir, environment)?,
        };
        if profile == Profile::Production {
            let signs = secrets.jwt_secret.is_some() || secrets.jwt_key.is_some();
            let needed =
                [("JWT_SECRET (or JWT_KEY)", signs), ("GATEWAY_TOKEN", secrets.gateway_token.is_some())];
            let missing: Vec<_> = needed
                .iter()
                .filter(|(_, found)| !found)
                .map(|(name, _)| format!("{name} is missing"))
                .collect();
            if !missing.is_empty() {
                let missing = missing.join("; ");
                bail!("{missing}: production needs it, in the environment or in `{}`", dir.display());
            }
        }
        Ok(secrets)
    }
}

fn secret(name: &str, dir: &Path, environment: &BTreeMap<String, String>) -> anyhow::Result<Option<Secret>> {
    let file = dir.join(name);
    let (text, place) = match environment.get(name) {
        Some(text) => (text.clone(), "in the environment".to_owned()),
        None if !file.try_exists().unwrap_or(true) => return Ok(None),
        None => {
            let text = service::files::read_text(&file, LARGEST).with_context(|| name.to_owned())?;
            (text, format!("in `{}`", file.display()))
        }
    };
    let text = text.trim_end_matches(['\r', '\n']);
    let bytes = match text.strip_prefix("base64:") {
        Some(encoded) => base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .map_err(|_| anyhow::anyhow!("{name} {place}: what follows `base64:` is not base64"))?,
        None => text.as_bytes().to_vec(),
    };
    if bytes.len() < MIN_SECRET && name != SMTP_PASSWORD {
        bail!("{name} {place}: at least {MIN_SECRET} characters (got {})", bytes.len());
    }
    Ok(Some(Secret(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_short_or_missing_secret_stops_production() {
        let nowhere = Path::new("/nonexistent");
        let missing = Secrets::load(nowhere, &environment(&[]), Profile::Production).unwrap_err();
        let wanted = "JWT_SECRET (or JWT_KEY) is missing; GATEWAY_TOKEN is missing: production needs it";
        assert!(missing.to_string().starts_with(wanted), "{missing}");
        let short = environment(&[("JWT_SECRET", "short")]);
        let error = Secrets::load(nowhere, &short, Profile::Development).unwrap_err().to_string();
        assert_eq!(error, "JWT_SECRET in the environment: at least 32 characters (got 5)");
        assert!(!format!("{:?}", Secret(b"hidden".to_vec())).contains("hidden"));
    }
}
