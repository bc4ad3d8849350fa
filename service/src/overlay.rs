//! Settings as a program reads them: the environment over a TOML file over defaults. An unknown key, in the file or in the
//! environment, is an error that names the nearest known one.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{anyhow, bail};
use serde::de::DeserializeOwned;

use crate::settings::in_plain_words;

/// The largest file of settings, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Where settings come from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'s> {
    /// The file, if there is one.
    pub file: Option<&'s Path>,
    /// The environment.
    pub environment: &'s BTreeMap<String, String>,
    /// What begins a variable of this program; `__` stands between the keys of a path.
    pub prefix: &'s str,
    /// Whether the setting at a path is a list, which a variable may write with commas.
    pub is_list: fn(&[String]) -> bool,
}

/// Reads the settings `T`. An error names the file with line and column, or the variable.
pub fn read<T: DeserializeOwned>(source: Source<'_>) -> anyhow::Result<T> {
    let mut table = toml::Table::new();
    if let Some(file) = source.file {
        let name = file.display().to_string();
        let text = crate::files::read_text(file, LARGEST_FILE)?;
        // Parsed by itself first, so that a fault has a line and a column.
        toml::from_str::<T>(&text).map_err(|error| anyhow!(located(&name, &text, &error)))?;
        table = text.parse()?;
    }
    for (variable, text) in source.environment {
        let Some(path) = variable.strip_prefix(source.prefix) else { continue };
        let path: Vec<_> = path.split("__").map(str::to_ascii_lowercase).collect();
        let value = if (source.is_list)(&path) { list(text) } else { scalar(text) };
        set(&mut table, &path, value);
        // Judged with what is there already: one key of a table alone may say too little.
        if let Err(error) = table.clone().try_into::<T>() {
            bail!("{variable}: {}", with_nearest(error.message()));
        }
    }
    Ok(table.try_into()?)
}

/// What TOML reads as a number, a flag or a list is one, the rest is text.
fn scalar(text: &str) -> toml::Value {
    let parsed = format!("v = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
    parsed.filter(|value| !value.is_table() && !value.is_datetime()).unwrap_or_else(|| text.into())
}

fn list(text: &str) -> toml::Value {
    let value = scalar(text);
    if value.is_array() {
        return value;
    }
    // An empty item stays: whoever checks the setting says what is wrong with it, and it is no reason for a default.
    text.split(',').map(|item| toml::Value::from(item.trim())).collect::<Vec<_>>().into()
}

fn set(table: &mut toml::Table, path: &[String], value: toml::Value) {
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
                set(inner, rest, value);
            }
        }
    }
}

fn located(name: &str, text: &str, error: &toml::de::Error) -> String {
    let offset = error.span().map_or(0, |span| span.start);
    let before = &text[..text.floor_char_boundary(offset)];
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
        None => in_plain_words(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        listen: Vec<String>,
        threads: u32,
    }

    fn read_with(variable: &str, value: &str) -> anyhow::Result<Settings> {
        let environment = BTreeMap::from([(variable.to_owned(), value.to_owned())]);
        let is_list = |path: &[String]| path == ["listen"];
        read(Source { file: None, environment: &environment, prefix: "P__", is_list })
    }

    #[test]
    fn a_list_is_written_with_commas_or_as_toml_writes_it() {
        for text in ["a, b", "[\"a\", \"b\"]"] {
            assert_eq!(read_with("P__LISTEN", text).unwrap().listen, ["a", "b"], "{text}");
        }
        assert_eq!(read_with("P__LISTEN", "").unwrap().listen, [""], "what is empty is not what is missing");
        assert_eq!(read_with("P__THREADS", "3").unwrap().threads, 3);
    }

    #[test]
    fn an_unknown_key_names_the_variable_and_the_nearest_key() {
        let error = read_with("P__LISEN", "x").unwrap_err().to_string();
        assert!(error.starts_with("P__LISEN: ") && error.ends_with("did you mean `listen`?"), "{error}");
    }
}
