//! Reads the settings: command line > environment > secret files > TOML file > defaults.
//!
//! An unknown key, in the file or in the environment, is an error that names the nearest known one.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;

use super::settings::Config;

/// What begins an environment variable of ours.
const PREFIX: &str = "PALISADE_BACKEND__";

/// The largest file of settings, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Reads `file`, if there is one, and lays the environment over it.
pub(crate) fn load(file: Option<&Path>, environment: &BTreeMap<String, String>) -> anyhow::Result<Config> {
    let mut table = toml::Table::new();
    if let Some(file) = file {
        let name = file.display().to_string();
        let text = service::files::read_text(file, LARGEST_FILE)?;
        // Parsed by itself first, so that a fault has a line and a column.
        toml::from_str::<Config>(&text)
            .map_err(|error| anyhow::anyhow!(with_location(&name, &text, &error)))?;
        table = text.parse()?;
    }
    for (variable, value) in environment {
        let Some(path) = variable.strip_prefix(PREFIX) else { continue };
        let path: Vec<_> = path.split("__").map(str::to_ascii_lowercase).collect();
        let scalar = scalar(value, &path);
        let mut single = toml::Table::new();
        set_path(&mut single, &path, scalar.clone());
        if let Err(error) = single.try_into::<Config>() {
            bail!("{variable}: {}", with_nearest(error.message()));
        }
        set_path(&mut table, &path, scalar);
    }
    let config: Config = table.try_into()?;
    config.check()
}

/// A value from the environment: what TOML reads as a number, a flag or a list is one, the rest is text; a list of
/// roles may be written with commas.
fn scalar(text: &str, path: &[String]) -> toml::Value {
    let parsed = format!("v = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
    let value =
        parsed.filter(|value| !value.is_table() && !value.is_datetime()).unwrap_or_else(|| text.into());
    if path == ["accounts", "require_totp_for"] && !value.is_array() {
        let roles = text.split(',').map(str::trim).filter(|role| !role.is_empty());
        return roles.map(toml::Value::from).collect::<Vec<_>>().into();
    }
    value
}

fn set_path(table: &mut toml::Table, path: &[String], value: toml::Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            let inner = table.entry(key.clone()).or_insert_with(|| toml::Table::new().into());
            if !inner.is_table() {
                *inner = toml::Table::new().into();
            }
            if let Some(inner) = inner.as_table_mut() {
                set_path(inner, rest, value);
            }
        }
    }
}

fn with_location(name: &str, text: &str, error: &toml::de::Error) -> String {
    let offset = error.span().map_or(0, |span| span.start);
    let before = &text[..offset.min(text.len())];
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("{name}:{}:{column}: {}", before.matches('\n').count() + 1, with_nearest(error.message()))
}

/// Serde says ``unknown field `lisen`, expected one of `listen`, …``; the nearest is what was meant.
fn with_nearest(message: &str) -> String {
    let mut words = message.split('`').skip(1).step_by(2);
    let found = words.next().filter(|_| message.starts_with("unknown field"));
    let nearest = found.and_then(|found| {
        let likeness = |known: &str| strsim::jaro_winkler(found, known);
        words.filter(|known| likeness(known) > 0.7).max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
    });
    match nearest {
        Some(nearest) => format!("{message}: did you mean `{nearest}`?"),
        None => service::settings::in_plain_words(message),
    }
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
