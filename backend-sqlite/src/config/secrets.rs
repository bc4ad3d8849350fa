//! Secrets: the environment first, then one file each. Nothing prints them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;
use service::secret::Length;

pub(crate) use service::secret::Secret;

use super::Profile;

/// The secret that opens the SMTP server, beside the user in `mail.url`.
pub(crate) const SMTP_PASSWORD: &str = "SMTP_PASSWORD";

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
    let length = if name == SMTP_PASSWORD { Length::Theirs } else { Length::Ours };
    match environment.get(name) {
        Some(text) => Secret::decode(name, text, "in the environment", length).map(Some),
        None => Secret::in_dir(dir, name, length),
    }
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
        assert!(!format!("{:?}", Secret::of(b"hidden")).contains("hidden"));
    }
}
