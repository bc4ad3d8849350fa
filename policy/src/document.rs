//! Reading TOML so that every fault is found at once, each with its place.
//!
//! Text → [`Section`] → validated type. A section knows which of its keys were asked for; what nobody asked for is a
//! fault that names the nearest key. Serde stops at the first fault and forgets where the others are, so this is a
//! reader of our own on `toml`'s spanned tree.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// The file as the operator named it.
    pub file: String,
    /// Counted from one.
    pub line: usize,
    /// Counted from one, in characters.
    pub column: usize,
    /// The key path, empty when the file as a whole is meant.
    pub key: String,
    /// What is allowed and what was found.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// What is wrong with a value: what is allowed and, where it helps, what was found.
#[derive(Clone, Debug)]
pub struct Unfit(String);

impl Unfit {
    /// `allowed`, and the text that was found instead.
    pub fn new(allowed: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self(format!("{allowed} (got {found})"))
    }

    /// A sentence that says it all.
    pub fn says(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A value that can be read from TOML.
pub trait FromToml: Sized {
    /// Reads the value or says what is allowed.
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit>;
}

/// The file being read and the faults found so far.
pub struct Faults<'t> {
    file: &'t str,
    text: &'t str,
    list: RefCell<Vec<Fault>>,
}

impl<'t> Faults<'t> {
    /// No faults yet in `text`, which is called `file`.
    pub fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, list: RefCell::default() }
    }

    /// Notes a fault at `span`.
    pub fn add(&self, span: &Range<usize>, key: impl Into<String>, message: impl Into<String>) {
        let before = &self.text[..span.start.min(self.text.len())];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        self.list.borrow_mut().push(Fault {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            key: key.into(),
            message: message.into(),
        });
    }

    /// The faults in the order of the file; empty when there are none.
    pub fn into_list(self) -> Vec<Fault> {
        let mut list = self.list.into_inner();
        list.sort_by_key(|fault| (fault.line, fault.column));
        list
    }

    /// Whether there is no fault so far.
    pub fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// Parses the text; syntax errors are faults, and what can be read around them is in the table.
    pub fn document(&self) -> toml::Spanned<DeTable<'t>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            self.add(&error.span().unwrap_or(0..0), "", error.message());
        }
        table
    }
}

/// One table of the document, with the keys that were asked for.
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

    /// Where the section stands in the document, for a fault about all of it.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The path of `key` below this section; of the section itself when `key` is empty.
    pub fn path(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    /// Where `key` stands, or the section when it is absent.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or_else(|| self.span(), toml::Spanned::span)
    }

    /// A fault about the value of `key`.
    pub fn fault(&self, key: &str, message: impl Into<String>) {
        self.faults.add(&self.span_of(key), self.path(key), message);
    }

    fn value(&self, key: &'static str) -> Option<&'d toml::Spanned<DeValue<'d>>> {
        self.known.borrow_mut().push(key);
        self.table.get(key)
    }

    /// The value of `key`; `None` when it is absent or unfit, which is a fault.
    pub fn get<T: FromToml>(&self, key: &'static str) -> Option<T> {
        let value = self.value(key)?;
        T::from_toml(value.get_ref()).map_err(|Unfit(message)| self.fault(key, message)).ok()
    }

    /// The value of `key`, or a default.
    pub fn get_or<T: FromToml>(&self, key: &'static str, default: T) -> T {
        self.get(key).unwrap_or(default)
    }

    /// The value of `key`; its absence is a fault.
    pub fn require<T: FromToml>(&self, key: &'static str, what: &str) -> Option<T> {
        if !self.table.contains_key(key) {
            self.known.borrow_mut().push(key);
            self.faults.add(&self.span(), self.path(key), format!("required: {what}"));
            return None;
        }
        self.get(key)
    }

    /// The value of `key`, checked: `check` says what is allowed.
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

    /// The table under `key`; an empty one when it is absent.
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

    /// Every key with its value as text, where the keys are the operator's own: `[headers]`, `forward`.
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

    /// Whether `key` is there; it counts as asked for.
    pub fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Ends the section: a key that nobody asked for is a fault.
    pub fn finish(self) {
        let known = self.known.borrow();
        for name in self.table.keys().filter(|name| !known.contains(&name.get_ref().as_ref())) {
            let mut message = format!("unknown key `{}`", name.get_ref());
            if let Some(nearest) = nearest(name.get_ref(), known.iter().copied()) {
                message = format!("{message}: did you mean `{nearest}`?");
            }
            self.faults.add(&name.span(), self.path(name.get_ref()), message);
        }
    }
}

/// The candidate most like `name`; of those with nothing in common, none.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// A value as an operator would name it.
fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

impl FromToml for String {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        value.as_str().map(str::to_owned).ok_or_else(|| Unfit::new("a string", found(value)))
    }
}

impl FromToml for bool {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        value.as_bool().ok_or_else(|| Unfit::new("true or false", found(value)))
    }
}

impl FromToml for u32 {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        let unfit = || Unfit::new(format!("a whole number up to {}", u32::MAX), found(value));
        let number = value.as_integer().ok_or_else(unfit)?;
        u32::from_str_radix(number.as_str(), number.radix()).map_err(|_| unfit())
    }
}

impl FromToml for f64 {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        let text = value.as_float().map(|number| number.as_str().to_owned());
        let text = text.or_else(|| value.as_integer().map(|number| number.as_str().to_owned()));
        text.and_then(|text| text.parse().ok()).ok_or_else(|| Unfit::new("a number", found(value)))
    }
}

impl<T: FromToml> FromToml for Vec<T> {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        let items = value.as_array().ok_or_else(|| Unfit::new("an array", found(value)))?;
        items.iter().map(|item| T::from_toml(item.get_ref())).collect()
    }
}

/// One value or several: `key = "ip"` and `key = ["ip", "route"]`.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T: FromToml> FromToml for OneOrMany<T> {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        if value.is_array() { Vec::from_toml(value) } else { T::from_toml(value).map(|one| vec![one]) }
            .map(Self)
    }
}

/// Implements [`FromToml`] for a type that is written as a string and parsed by `FromStr`, whose error says what is
/// allowed.
#[macro_export]
macro_rules! from_toml_str {
    ($($type:ty),+ $(,)?) => {$(
        impl $crate::document::FromToml for $type {
            fn from_toml(value: &toml::de::DeValue<'_>) -> Result<Self, $crate::document::Unfit> {
                let text = <String as $crate::document::FromToml>::from_toml(value)?;
                text.parse().map_err(|allowed| $crate::document::Unfit::new(allowed, format_args!("{text:?}")))
            }
        }
    )+};
}

impl FromToml for ipnet::IpNet {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        let text = String::from_toml(value)?;
        crate::client::parse_network(&text)
            .ok_or_else(|| Unfit::new("an address or a CIDR like 192.0.2.0/24", format_args!("{text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_syntax_error_is_a_fault_with_its_place() {
        let faults = Faults::new("f.toml", "a = 1\nb = = 2\n");
        let _ = faults.document();
        let list = faults.into_list();
        assert_eq!((list[0].line, list[0].column), (2, 5), "{list:?}");
    }
}
