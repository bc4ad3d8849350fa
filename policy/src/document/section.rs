//! One table of the document. It knows which of its keys were read.

use std::cell::RefCell;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::document::fault::Faults;
use crate::document::value::{FromToml, Unfit, found};

/// The longest name of a rule, in bytes.
pub const LONGEST_NAME: usize = 128;

/// One table of the document, with the keys that were read.
pub struct Section<'d> {
    path: String,
    span: Range<usize>,
    table: &'d DeTable<'d>,
    faults: &'d Faults<'d>,
    known: RefCell<Vec<&'static str>>,
}

impl<'d> Section<'d> {
    /// The root of a document.
    pub fn root(document: &'d toml::Spanned<DeTable<'d>>, faults: &'d Faults<'d>) -> Self {
        Self::at(String::new(), document.span(), document.get_ref(), faults)
    }

    fn at(path: String, span: Range<usize>, table: &'d DeTable<'d>, faults: &'d Faults<'d>) -> Self {
        Self { path, span, table, faults, known: RefCell::default() }
    }

    /// The place of the section in the document, for a fault about the whole section.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The path of `key` in this section; the path of the section itself when `key` is empty.
    pub fn path(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    /// The place of `key`, or of the section when the key is absent.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or_else(|| self.span(), toml::Spanned::span)
    }

    /// Adds a fault about the value of `key`.
    pub fn fault(&self, key: &str, message: impl Into<String>) {
        self.faults.add(&self.span_of(key), self.path(key), message);
    }

    fn value(&self, key: &'static str) -> Option<&'d toml::Spanned<DeValue<'d>>> {
        self.known.borrow_mut().push(key);
        self.table.get(key)
    }

    /// The value of `key`. `None` when it is absent, and also when it is unfit, which is a fault.
    pub fn get<T: FromToml>(&self, key: &'static str) -> Option<T> {
        let value = self.value(key)?;
        T::from_toml(value.get_ref()).map_err(|Unfit(message)| self.fault(key, message)).ok()
    }

    /// The name that the file uses for `key`: `key` itself, or its old name `old`, which is noted. Using both is a
    /// fault.
    pub fn renamed(&self, key: &'static str, old: &'static str) -> &'static str {
        if !self.table.contains_key(old) {
            return key;
        }
        if self.table.contains_key(key) {
            self.known.borrow_mut().push(old);
            self.fault(old, format!("the old name of `{key}`, which is also set here: remove the old one"));
            return key;
        }
        self.faults.note_renamed(&self.span_of(old), self.path(old), key);
        old
    }

    /// The value of `key`, or a default.
    pub fn get_or<T: FromToml>(&self, key: &'static str, default: T) -> T {
        self.get(key).unwrap_or(default)
    }

    /// The value of `key`. It is a fault when the key is absent.
    pub fn require<T: FromToml>(&self, key: &'static str, what: &str) -> Option<T> {
        if !self.table.contains_key(key) {
            self.known.borrow_mut().push(key);
            self.faults.add(&self.span(), self.path(key), format!("required: {what}"));
            return None;
        }
        self.get(key)
    }

    /// The value of `key`, checked by `check`, whose error says what is allowed.
    pub fn get_checked<T: FromToml>(
        &self,
        key: &'static str,
        default: T,
        check: impl FnOnce(&T) -> Result<(), String>,
    ) -> T {
        let value = self.get_or(key, default);
        if let Err(message) = check(&value) {
            self.fault(key, message);
        }
        value
    }

    /// The table under `key`; `None` when it is absent, and also when the value is not a table, which is a fault.
    pub fn section(&self, key: &'static str) -> Option<Section<'d>> {
        let value = self.value(key)?;
        if let DeValue::Table(table) = value.get_ref() {
            return Some(Self::at(self.path(key), value.span(), table, self.faults));
        }
        self.fault(key, format!("a table (got {})", found(value.get_ref())));
        None
    }

    /// The named tables under `key`: `[key.one]`, `[key.two]`, in the order of the file.
    pub fn named_sections(&self, key: &'static str) -> Vec<(String, Section<'d>)> {
        self.section(key).map(Section::into_named).unwrap_or_default()
    }

    fn into_named(self) -> Vec<(String, Section<'d>)> {
        let mut sections = Vec::new();
        for (name, value) in self.table {
            if name.get_ref().len() > LONGEST_NAME {
                self.faults.add(
                    &name.span(),
                    self.path(""),
                    format!("a name has at most {LONGEST_NAME} bytes"),
                );
                continue;
            }
            let path = self.path(name.get_ref());
            match value.get_ref() {
                DeValue::Table(table) => sections
                    .push((name.get_ref().to_string(), Self::at(path, value.span(), table, self.faults))),
                other => self.faults.add(&value.span(), path, format!("a table (got {})", found(other))),
            }
        }
        sections.sort_by_key(|(_, section)| section.span.start);
        sections
    }

    /// The tables of the array `[[key]]`.
    pub fn sections(&self, key: &'static str) -> Vec<Section<'d>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.fault(key, format!("an array of tables, `[[{}]]` (got {})", key, found(value.get_ref())));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", self.path(key));
            match item.get_ref() {
                DeValue::Table(table) => {
                    sections.push(Self::at(path, item.span(), table, self.faults));
                }
                other => self.faults.add(&item.span(), path, format!("a table (got {})", found(other))),
            }
        }
        sections
    }

    /// Every key with its value as text, in a table whose keys the operator chooses: `[headers]`, `forward`.
    pub fn free_strings(&self) -> Vec<(String, String, Range<usize>)> {
        let mut strings = Vec::new();
        for (name, value) in self.table {
            match String::from_toml(value.get_ref()) {
                Ok(text) => strings.push((name.get_ref().to_string(), text, value.span())),
                Err(Unfit(message)) => self.faults.add(&value.span(), self.path(name.get_ref()), message),
            }
        }
        strings
    }

    /// Whether `key` is there. This counts as reading it.
    pub fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Whether further faults of the document are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.faults.is_full()
    }

    /// A list of at most `most` values under `key`; empty when the key is absent.
    pub(crate) fn list<T: FromToml>(&self, key: &'static str, most: usize) -> Vec<T> {
        let mut list = self.get_or::<Vec<T>>(key, Vec::new());
        if list.len() > most {
            self.fault(key, format!("at most {most} values (got {})", list.len()));
            list.truncate(most);
        }
        list
    }

    /// Ends the section: a key that was not read is a fault.
    pub fn finish(self) {
        let known = self.known.borrow();
        for name in self.table.keys().filter(|name| !known.contains(&name.get_ref().as_ref())) {
            if self.faults.is_full() {
                self.faults.add(&name.span(), "", "");
                continue;
            }
            let mut message = format!("unknown key `{}`", name.get_ref());
            if let Some(nearest) = nearest(name.get_ref(), known.iter().copied()) {
                message = format!("{message}: did you mean `{nearest}`?");
            }
            self.faults.add(&name.span(), self.path(name.get_ref()), message);
        }
    }
}

/// The candidate that is most similar to `name`, or none when no candidate is similar. The number of candidates and
/// their length have a bound: a very long name is not a typing error.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const MOST: usize = 1_000;
    const LONGEST: usize = 64;
    candidates
        .take(if name.len() > LONGEST { 0 } else { MOST })
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::MOST_FAULTS;

    #[test]
    fn every_fault_is_found_with_its_place_and_the_nearest_key() {
        let text = "a = 1\nflag = \"yes\"\n[inner]\ncuont = 3\n";
        let faults = Faults::new("f.toml", text);
        let document = faults.document();
        let root = Section::root(&document, &faults);
        root.get::<u32>("a");
        root.get::<bool>("flag");
        let inner = root.section("inner").unwrap();
        inner.get::<u32>("count");
        inner.finish();
        root.finish();
        let list: Vec<_> = faults.into_list().iter().map(ToString::to_string).collect();
        assert_eq!(
            list,
            [
                "f.toml:2:8: flag: true or false (got \"yes\")",
                "f.toml:4:1: inner.cuont: unknown key `cuont`: did you mean `count`?",
            ]
        );
    }

    #[test]
    fn unknown_keys_beyond_the_bound_are_counted() {
        let text = (0..1_000).map(|key| format!("k{key} = 1\n")).collect::<Vec<_>>().concat();
        let faults = Faults::new("f.toml", &text);
        let document = faults.document();
        Section::root(&document, &faults).finish();
        let list = faults.into_list();
        assert_eq!(list.len(), MOST_FAULTS + 1);
        assert_eq!(list.last().unwrap().message, "900 more faults are not listed");
    }
}
