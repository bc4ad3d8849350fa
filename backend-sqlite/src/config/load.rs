//! Reads the settings: command line > environment > secret files > TOML file > defaults.
//!
//! An unknown key, in the file or in the environment, is an error that names the nearest known one.

use std::collections::BTreeMap;
use std::path::Path;

use service::overlay::{self, Source};

use super::settings::Config;

/// What begins an environment variable of ours.
const PREFIX: &str = "PALISADE_BACKEND__";

/// Reads `file`, if there is one, and lays the environment over it.
pub(crate) fn load(file: Option<&Path>, environment: &BTreeMap<String, String>) -> anyhow::Result<Config> {
    let is_list = |path: &[String]| path == ["accounts", "require_totp_for"];
    let config: Config = overlay::read(Source { file, environment, prefix: PREFIX, is_list })?;
    config.check()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_shipped_file_parses_and_the_environment_overrides_it() {
        let shipped = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/backend.toml"));
        let over = environment(&[
            ("PALISADE_BACKEND__SERVER__LISTEN", "127.0.0.1:0"),
            ("PALISADE_BACKEND__DATABASE__POOL_SIZE", "3"),
        ]);
        let config = load(Some(shipped), &over).unwrap();
        assert_eq!((config.server.listen.as_str(), config.database.pool_size), ("127.0.0.1:0", 3));
    }

    #[test]
    fn an_unknown_key_names_the_nearest_one() {
        let over = environment(&[("PALISADE_BACKEND__SERVER__LISEN", "x")]);
        let error = load(None, &over).unwrap_err().to_string();
        assert!(error.contains("PALISADE_BACKEND__SERVER__LISEN"), "{error}");
        assert!(error.ends_with("did you mean `listen`?"), "{error}");
    }
}
