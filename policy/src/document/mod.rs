//! Reading TOML so that every fault is found at once, each with its place.
//!
//! Text → [`Section`] → validated type. A section knows which of its keys were asked for; what nobody asked for is a
//! fault that names the nearest key. Serde stops at the first fault and forgets where the others are, so this is a
//! reader of our own on `toml`'s spanned tree.

pub mod network;
pub mod units;

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// The most faults of one text that are listed.
pub const MOST_FAULTS: usize = 100;

/// The longest key path and the longest message of a fault, in bytes; what is longer is cut.
const LONGEST_KEY: usize = 256;
const LONGEST_MESSAGE: usize = 1_024;

/// The longest name of a rule, in bytes.
pub const LONGEST_NAME: usize = 128;

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
    /// Where each line begins, once somebody asks.
    line_starts: OnceCell<Vec<usize>>,
    list: RefCell<Vec<Fault>>,
    /// The faults that are listed at most.
    most: usize,
    /// Faults beyond these.
    more: Cell<usize>,
    renamed: RefCell<Vec<Renamed>>,
}

/// A key that stands in a policy under the name that it had before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The line, counted from one.
    pub line: usize,
    /// Its path, with the old name.
    pub key: String,
    /// What it is called now.
    pub now: &'static str,
}

impl fmt::Display for Renamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: `{}` is called `{}` now", self.line, self.key, self.now)
    }
}

impl<'t> Faults<'t> {
    /// No faults yet in `text`, which is called `file`.
    pub fn new(file: &'t str, text: &'t str) -> Self {
        let most = MOST_FAULTS;
        Self {
            file,
            text,
            line_starts: OnceCell::new(),
            list: RefCell::default(),
            most,
            more: Cell::new(0),
            renamed: RefCell::default(),
        }
    }

    /// The same, and of many faults the first `most` are listed.
    #[must_use]
    pub fn at_most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// Notes a fault at `span`.
    pub fn add(&self, span: &Range<usize>, key: impl Into<String>, message: impl Into<String>) {
        if self.is_full() {
            return self.more.set(self.more.get().saturating_add(1));
        }
        let (line, column) = self.place(span.start);
        self.list.borrow_mut().push(Fault {
            file: self.file.to_owned(),
            line,
            column,
            key: clipped(key.into(), LONGEST_KEY),
            message: clipped(message.into(), LONGEST_MESSAGE),
        });
    }

    /// The keys that stand under the names that they had before.
    pub fn renamed(&self) -> Vec<Renamed> {
        self.renamed.borrow().clone()
    }

    /// Whether further faults are only counted: nobody need find words for them.
    pub fn is_full(&self) -> bool {
        self.list.borrow().len() >= self.most
    }

    /// Line and column of a place in the text, counted from one. The lines are counted once for all faults.
    fn place(&self, offset: usize) -> (usize, usize) {
        let starts = self.line_starts.get_or_init(|| {
            let after_newlines = self.text.match_indices('\n').map(|(at, _)| at + 1);
            std::iter::once(0).chain(after_newlines).collect()
        });
        let line = starts.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|line| starts.get(line)).copied().unwrap_or_default();
        let before = self.text.get(start..offset.min(self.text.len())).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    /// The faults in the order of the file; empty when there are none. Of many the first that were found are listed, and then
    /// how many more there are.
    pub fn into_list(self) -> Vec<Fault> {
        let mut list = self.list.into_inner();
        list.sort_by_key(|fault| (fault.line, fault.column));
        let more = self.more.get();
        if let Some(last) = list.last().filter(|_| more > 0) {
            let message = format!("{more} more faults are not listed");
            list.push(Fault { key: String::new(), message, ..last.clone() });
        }
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

    /// The name under which `key` stands: `key`, or `old`, which it was called before and which is noted. Both are a fault.
    pub fn renamed(&self, key: &'static str, old: &'static str) -> &'static str {
        if !self.table.contains_key(old) {
            return key;
        }
        if self.table.contains_key(key) {
            self.known.borrow_mut().push(old);
            self.fault(old, format!("it is called `{key}` now, which stands here as well: leave it out"));
            return key;
        }
        let (line, _) = self.faults.place(self.span_of(old).start);
        self.faults.renamed.borrow_mut().push(Renamed { line, key: self.path(old), now: key });
        old
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

    /// Whether further faults of the document are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.faults.is_full()
    }

    /// A list of at most `most` values under `key`; none when it is absent.
    pub(crate) fn list<T: FromToml>(&self, key: &'static str, most: usize) -> Vec<T> {
        let mut list = self.get_or::<Vec<T>>(key, Vec::new());
        if list.len() > most {
            self.fault(key, format!("at most {most} values (got {})", list.len()));
            list.truncate(most);
        }
        list
    }

    /// Ends the section: a key that nobody asked for is a fault.
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

/// `text`, cut to `most` bytes.
fn clipped(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}

/// The candidate most like `name`; of those with nothing in common, none. Only so many are looked at, and none that is
/// too long to be a slip of the hand.
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

/// Names the values of a setting that is one of a few words: `FromStr`, [`FromToml`], and `WORDS`, all of them.
#[macro_export]
macro_rules! words {
    ($type:ident { $($word:literal => $variant:ident),+ } or $allowed:literal) => {
        impl $type {
            /// What may be written.
            pub(crate) const WORDS: &'static [&'static str] = &[$($word),+];
        }

        impl std::str::FromStr for $type {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text { $($word => Ok(Self::$variant),)+ _ => Err($allowed) }
            }
        }

        $crate::from_toml_str!($type);
    };
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
    fn of_many_faults_the_first_are_listed_and_the_others_counted() {
        let text = (0..1_000).map(|key| format!("k{key} = 1\n")).collect::<Vec<_>>().concat();
        let faults = Faults::new("f.toml", &text);
        let document = faults.document();
        Section::root(&document, &faults).finish();
        let list = faults.into_list();
        assert_eq!(list.len(), MOST_FAULTS + 1);
        assert_eq!(list.last().unwrap().message, "900 more faults are not listed");
        let faults = Faults::new("f.toml", "a\nbc\u{e4}d\n");
        let places = [0, 1, 2, 4, 6, 8, 99].map(|at| faults.place(at));
        assert_eq!(places, [(1, 1), (1, 2), (2, 1), (2, 3), (2, 4), (3, 1), (3, 1)]);
        faults.add(&(0..0), "k".repeat(1_000), "ä".repeat(1_000));
        let fault = &faults.into_list()[0];
        assert!(fault.key.len() < 300 && fault.message.len() < 1_100);
    }

    #[test]
    fn a_syntax_error_is_a_fault_with_its_place() {
        let faults = Faults::new("f.toml", "a = 1\nb = = 2\n");
        let _ = faults.document();
        let list = faults.into_list();
        assert_eq!((list[0].line, list[0].column), (2, 5), "{list:?}");
    }
}
