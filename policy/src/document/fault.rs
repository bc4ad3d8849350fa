//! The faults of one text, each with its place.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::ops::Range;

use toml::de::DeTable;

/// How many faults of one text are listed at most.
pub const MOST_FAULTS: usize = 100;

/// The longest key path and the longest message of a fault, in bytes. A longer one is cut.
const LONGEST_KEY: usize = 256;
const LONGEST_MESSAGE: usize = 1_024;

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// The name of the file, as the operator wrote it.
    pub file: String,
    /// Counted from one.
    pub line: usize,
    /// Counted from one, in characters.
    pub column: usize,
    /// The key path. Empty when the fault is about the whole file.
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

/// The file being read and the faults found so far.
pub struct Faults<'t> {
    file: &'t str,
    text: &'t str,
    /// Where each line begins. Computed when the first fault needs it.
    line_starts: OnceCell<Vec<usize>>,
    list: RefCell<Vec<Fault>>,
    /// How many faults are listed at most.
    most: usize,
    /// How many more faults were found.
    more: Cell<usize>,
    renamed: RefCell<Vec<Renamed>>,
}

/// A key that a policy writes with its old name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The line, counted from one.
    pub line: usize,
    /// The path of the key, with the old name.
    pub key: String,
    /// The new name.
    pub now: &'static str,
}

impl fmt::Display for Renamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: `{}` is called `{}` now", self.line, self.key, self.now)
    }
}

impl<'t> Faults<'t> {
    /// An empty list for `text`, the contents of `file`.
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

    /// The same list, which holds at most `most` faults and counts the others.
    #[must_use]
    pub fn at_most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// Adds a fault at `span`.
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

    /// The keys that the text writes with their old names.
    pub fn renamed(&self) -> Vec<Renamed> {
        self.renamed.borrow().clone()
    }

    /// Notes that the text at `span` uses the old name of a key. `key` is the path with that old name.
    pub(super) fn note_renamed(&self, span: &Range<usize>, key: String, now: &'static str) {
        let (line, _) = self.place(span.start);
        self.renamed.borrow_mut().push(Renamed { line, key, now });
    }

    /// Whether further faults are only counted, so that their messages need not be built.
    pub fn is_full(&self) -> bool {
        self.list.borrow().len() >= self.most
    }

    /// Line and column of a byte offset in the text, counted from one. The line starts are computed once.
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

    /// The faults in the order of the file; empty when there are none. When there are too many, the first that were
    /// found are listed, and a last entry says how many more there are.
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

    /// Whether no fault was found so far.
    pub fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// Parses the text. Syntax errors are faults; the table holds whatever can still be read.
    pub fn document(&self) -> toml::Spanned<DeTable<'t>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            self.add(&error.span().unwrap_or(0..0), "", error.message());
        }
        table
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_faults_the_first_are_listed_and_the_others_counted() {
        let faults = Faults::new("f.toml", "a = 1\n");
        (0..1_000).for_each(|_| faults.add(&(0..0), "a", "wrong"));
        let list = faults.into_list();
        assert_eq!(list.len(), MOST_FAULTS + 1);
        assert_eq!(list.last().unwrap().message, "900 more faults are not listed");
    }

    #[test]
    fn a_fault_has_a_line_and_a_column_and_a_bound() {
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
