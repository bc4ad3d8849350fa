//! Live settings on top of the policy file: paths in the file, with the values that replace its values.
//!
//! A path is the keys with dots between them: `limits.login.rate`. A route is addressed by its name:
//! `routes.login.limits`. The policy with its overrides is judged like a file: parsed, validated, tested by its own
//! tests.

use std::collections::HashSet;

use policy::document::Fault;
use serde_json::Value;

/// The most overrides.
pub const MOST: usize = 1_000;

/// The longest path of an override, in bytes, and its most parts. Values may nest equally deep.
const LONGEST_PATH: usize = 512;
const MOST_PARTS: usize = 16;

/// What a fault names instead of a file.
const PLACE: &str = "overrides";

/// A path and its value.
pub type Override = (String, Value);

/// Reads the overrides of a JSON body: nested as in the file, or flat with dots in the names; `None` removes one. Each
/// path may occur only once, because with two values for one setting it is not clear which one is meant.
pub fn flatten(body: &Value) -> Result<Vec<(String, Option<Value>)>, Fault> {
    let mut all = Vec::new();
    walk("", body, &mut all)?;
    let mut paths = HashSet::new();
    match all.iter().find(|(path, _)| !paths.insert(path.as_str())) {
        Some((path, _)) => Err(fault(path, "stands here twice")),
        None => Ok(all),
    }
}

/// Collects the overrides in `value` at `path`. Bounds are checked first, before anything is built from the values.
fn walk(path: &str, value: &Value, into: &mut Vec<(String, Option<Value>)>) -> Result<(), Fault> {
    if into.len() >= MOST {
        return Err(fault("", &format!("at most {MOST} settings at a time")));
    }
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                if path.len() + 1 + name.len() > LONGEST_PATH || path.split('.').count() >= MOST_PARTS {
                    return Err(fault(path, &too_deep()));
                }
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(&path, value, into)?;
            }
        }
        Value::Null => into.push((path.to_owned(), None)),
        value => into.push((path.to_owned(), Some(value.clone()))),
    }
    Ok(())
}

fn too_deep() -> String {
    format!("a path has at most {LONGEST_PATH} bytes and {MOST_PARTS} parts")
}

/// The text of the policy with `overrides` in it.
pub fn lay_over(text: &str, overrides: &[Override]) -> Result<String, Vec<Fault>> {
    let mut table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| vec![fault("", error.message())])?;
    let mut faults = Vec::new();
    for (path, value) in overrides {
        if let Err(message) = set(&mut table, path, value) {
            faults.push(fault(path, &message));
        }
    }
    if faults.is_empty() { Ok(table.to_string()) } else { Err(faults) }
}

/// Faults of the text that [`lay_over`] made, without lines: nobody has seen this text, so only its keys are useful.
pub fn without_lines(faults: Vec<Fault>) -> Vec<Fault> {
    faults.into_iter().map(|found| fault(&found.key, &found.message)).collect()
}

fn fault(key: &str, message: &str) -> Fault {
    let key: String = key.chars().take(LONGEST_PATH).collect();
    Fault { file: PLACE.to_owned(), line: 1, column: 1, key, message: message.to_owned() }
}

/// Checks that a path and a value are not deeper than those of a policy. Code that walks through deeper ones would
/// overflow its stack.
fn check_depth(path: &str, value: &Value) -> Result<(), String> {
    fn is_within(value: &Value, depth: usize) -> bool {
        match value {
            Value::Array(items) => depth > 0 && items.iter().all(|item| is_within(item, depth - 1)),
            Value::Object(fields) => depth > 0 && fields.values().all(|field| is_within(field, depth - 1)),
            _ => true,
        }
    }
    if path.len() > LONGEST_PATH || path.split('.').count() > MOST_PARTS {
        return Err(too_deep());
    }
    if !is_within(value, MOST_PARTS) {
        return Err(format!("a value has at most {MOST_PARTS} levels"));
    }
    Ok(())
}

fn set(table: &mut toml::Table, path: &str, value: &Value) -> Result<(), String> {
    check_depth(path, value)?;
    let value = toml::Value::try_from(value).map_err(|_| "TOML has no such value".to_owned())?;
    let (parents, key) = path.rsplit_once('.').map_or((None, path), |(parents, key)| (Some(parents), key));
    let mut inner = table;
    for name in parents.iter().flat_map(|parents| parents.split('.')) {
        let next = inner.entry(name).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        inner = match next {
            toml::Value::Table(table) => table,
            toml::Value::Array(items) => return set_in_list(items, path, name, &value),
            _ => return Err(format!("`{name}` holds a value, not keys")),
        };
    }
    inner.insert(key.to_owned(), value);
    Ok(())
}

/// `routes.NAME.KEY`: finds the element of the list that has this name.
fn set_in_list(items: &mut [toml::Value], path: &str, list: &str, value: &toml::Value) -> Result<(), String> {
    let rest = path.split_once(&format!("{list}.")).map_or("", |(_, rest)| rest);
    let (name, key) = rest.rsplit_once('.').ok_or_else(|| format!("{list}.NAME.KEY"))?;
    let named = |item: &&mut toml::Value| item.get("name").and_then(toml::Value::as_str) == Some(name);
    let item = items.iter_mut().find(named).and_then(toml::Value::as_table_mut);
    item.ok_or_else(|| format!("nothing in `{list}` is called `{name}`"))?
        .insert(key.to_owned(), value.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POLICY: &str = "[limits.login]\nrate = \"5/min\"\n[[routes]]\nname = \"a\"\nlimits = [\"login\"]\n";

    #[test]
    fn a_body_may_be_nested_or_flat() {
        let nested = flatten(&json!({"limits": {"login": {"rate": "9/min", "burst": null}}})).unwrap();
        let flat = flatten(&json!({"limits.login.rate": "9/min", "limits.login.burst": null})).unwrap();
        assert_eq!(nested.len(), 2);
        assert!(nested.iter().all(|one| flat.contains(one)));
    }

    #[test]
    fn a_body_that_means_too_much_or_two_things_is_refused_before_it_costs_anything() {
        let twice = json!({"limits": {"new": {"rate": "6/min"}}, "limits.new.rate": null});
        assert!(flatten(&twice).unwrap_err().to_string().contains("limits.new.rate: stands here twice"));
        let many: serde_json::Map<_, _> =
            (0..2_000).map(|number| (format!("a{number}"), json!(null))).collect();
        assert!(flatten(&Value::Object(many)).unwrap_err().to_string().contains("at most 1000"));
        let fields: serde_json::Map<_, _> =
            (0..1_000).map(|number| (format!("a{number}"), json!(1))).collect();
        let long = json!({ "k".repeat(20_000): fields });
        assert!(flatten(&long).unwrap_err().to_string().len() < 1_000);
    }

    #[test]
    fn values_are_laid_over_tables_and_named_elements() {
        let over = [
            ("limits.login.rate".to_owned(), json!("9/min")),
            ("limits.new.key".to_owned(), json!("ip")),
            ("routes.a.limits".to_owned(), json!([])),
        ];
        let table: toml::Table = lay_over(POLICY, &over).unwrap().parse().unwrap();
        assert_eq!(table["limits"]["login"]["rate"].as_str(), Some("9/min"));
        assert_eq!(table["limits"]["new"]["key"].as_str(), Some("ip"));
        assert_eq!(table["routes"][0]["limits"].as_array().map(Vec::len), Some(0));
    }

    #[test]
    fn a_path_or_a_value_that_is_too_deep_is_refused() {
        let deep = (0..100).fold(json!(1), |value, _| json!([value]));
        for over in
            [("a.".repeat(10_000) + "a", json!(1)), ("a".repeat(1_000), json!(1)), ("a".to_owned(), deep)]
        {
            let faults = lay_over(POLICY, &[over]).unwrap_err();
            assert!(faults[0].message.contains("has at most"), "{faults:?}");
        }
    }

    #[test]
    fn what_cannot_be_laid_over_is_said_with_its_path() {
        let over = [("routes.b.limits".to_owned(), json!([])), ("limits.login.rate.x".to_owned(), json!(1))];
        let faults = lay_over(POLICY, &over).unwrap_err();
        assert_eq!(faults.len(), 2);
        assert!(faults[0].message.contains("nothing in `routes` is called `b`"), "{faults:?}");
        assert_eq!(faults[1].key, "limits.login.rate.x");
    }
}
