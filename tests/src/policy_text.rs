//! A policy that a test changes in a few places. A change that changes nothing fails the test: a misspelt place would
//! leave the policy as it was, and the test would prove nothing.

use std::ops::{Add, Deref};

use toml::{Table, Value};

use crate::stack::POLICY;

/// The text of a policy, with changes by path. A path has the form that live settings have: `limits.login.rate`,
/// `routes.NAME.retry`. It must not name a table that is not there, except as its last part.
#[derive(Clone, Debug)]
pub struct PolicyText(String);

impl PolicyText {
    /// A policy of the test's own.
    pub fn of(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The policy of most tests, `tests/src/policy.toml`.
    pub fn usual() -> Self {
        Self::of(POLICY)
    }

    /// Sets `path` to a value that it did not have.
    #[must_use]
    pub fn set(self, path: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.edit(path, |table, key| {
            let before = table.insert(key.to_owned(), value.clone());
            assert_ne!(before, Some(value), "`{path}` had this value");
        })
    }

    /// Removes what is at `path`.
    #[must_use]
    pub fn remove(self, path: &str) -> Self {
        self.edit(path, |table, key| assert!(table.remove(key).is_some(), "`{path}` is not there"))
    }

    /// Removes each of `keys` from every route that has it; at least one must.
    #[must_use]
    pub fn remove_from_routes(self, key: &str) -> Self {
        let mut document = self.document();
        let routes = document.get_mut("routes").and_then(Value::as_array_mut).expect("routes");
        let removed = routes.iter_mut().filter_map(|route| route.as_table_mut()?.remove(key)).count();
        assert!(removed > 0, "no route has `{key}`");
        Self(document.to_string())
    }

    /// Replaces text that is there.
    #[must_use]
    pub fn replace(self, from: &str, to: &str) -> Self {
        assert!(self.0.contains(from), "{from:?} is not there:\n{}", self.0);
        Self(self.0.replace(from, to))
    }

    fn document(&self) -> Table {
        self.0.parse().unwrap_or_else(|fault| panic!("{fault}\n{}", self.0))
    }

    fn edit(self, path: &str, edit: impl FnOnce(&mut Table, &str)) -> Self {
        let mut document = self.document();
        let (tables, key) = path.rsplit_once('.').map_or((None, path), |(tables, key)| (Some(tables), key));
        let mut table = &mut document;
        let mut parts = tables.into_iter().flat_map(|tables| tables.split('.'));
        while let Some(part) = parts.next() {
            let next = table.get_mut(part).unwrap_or_else(|| panic!("`{path}`: there is no `{part}`"));
            table = match next {
                Value::Array(items) => named(items, path, parts.next()),
                next => next.as_table_mut().unwrap_or_else(|| panic!("`{path}`: `{part}` is no table")),
            };
        }
        edit(table, key);
        Self(document.to_string())
    }
}

/// The item of an array of tables that has this name.
fn named<'a>(items: &'a mut [Value], path: &str, name: Option<&str>) -> &'a mut Table {
    let tables = items.iter_mut().filter_map(Value::as_table_mut);
    let mut found = tables.filter(|table| table.get("name").and_then(Value::as_str) == name);
    found.next().unwrap_or_else(|| panic!("`{path}`: nothing has this name"))
}

impl Deref for PolicyText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Appends lines: tables and routes that are new.
impl Add<&str> for PolicyText {
    type Output = Self;

    fn add(self, more: &str) -> Self {
        Self(format!("{}\n{more}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::PolicyText;

    const TEXT: &str =
        "a = 1\n[b.c]\nd = \"x\"\n[[routes]]\nname = \"one\"\n[[routes]]\nname = \"two\"\nroles = []\n";

    #[test]
    fn a_change_is_made_where_its_path_says() {
        let text =
            PolicyText::of(TEXT).set("a", 2).set("b.c.e", "y").remove("b.c.d").set("routes.two.retry", "r");
        let changed: toml::Table = text.parse().unwrap();
        assert_eq!(changed["a"].as_integer(), Some(2));
        assert_eq!(changed["b"]["c"].to_string(), "{ e = \"y\" }");
        assert_eq!(changed["routes"][1]["retry"].as_str(), Some("r"));
        let text = text.remove_from_routes("roles") + "[f]\ng = 3\n";
        let changed: toml::Table = text.parse().unwrap();
        assert!(changed["routes"][1].get("roles").is_none());
        assert_eq!(changed["f"]["g"].as_integer(), Some(3));
    }

    #[test]
    fn a_change_that_changes_nothing_fails() {
        let fails = |change: fn(PolicyText) -> PolicyText| {
            std::panic::catch_unwind(move || change(PolicyText::of(TEXT))).is_err()
        };
        assert!(fails(|text| text.set("a", 1)), "the same value");
        assert!(fails(|text| text.set("b.x.d", 1)), "no such table");
        assert!(fails(|text| text.set("routes.three.retry", "r")), "no such route");
        assert!(fails(|text| text.remove("b.c.x")), "no such key");
        assert!(fails(|text| text.remove_from_routes("x")), "no such key of a route");
    }
}
