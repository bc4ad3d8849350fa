//! Log lines. Who writes one never waits: a line is put into a queue that is bounded in bytes and written by another
//! thread. When that thread is late, because nobody reads standard output or the disk is full, further lines are dropped
//! and counted, and when it has caught up the general log says how many.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::log::Log;
use crate::sink::Sink;

/// For lines that still wait when a program ends.
pub const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// A place for a log that cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("log.{log}: cannot write `{place}`: {cause}")]
pub struct PlaceFault {
    log: Log,
    place: String,
    cause: io::Error,
}

/// There is no room for a line: the writer is too far behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log's queue is full")]
pub struct Full;

/// Where the lines of a log go; cheap to clone. Logs that go to one place share its writer, so that no line is torn.
#[derive(Clone)]
pub struct Lines {
    log: Log,
    sink: Option<Arc<Sink>>,
}

impl Lines {
    /// `place` is `stdout`, `off` or a file, which is appended to.
    pub fn open(log: Log, place: &str) -> Result<Self, PlaceFault> {
        if place == "off" {
            return Ok(Self { log, sink: None });
        }
        let sink = Sink::open(place).map_err(|cause| PlaceFault { log, place: place.to_owned(), cause })?;
        Ok(Self { log, sink: Some(sink) })
    }

    /// Writes a line, which ends with a newline; `false` when it was dropped, which has been counted.
    pub fn write(&self, line: &[u8]) -> bool {
        self.sink.as_ref().is_none_or(|sink| sink.push(self.log, line))
    }

    /// Counts a line that was dropped without being offered.
    pub fn note_dropped(&self) {
        if let Some(sink) = &self.sink {
            sink.note_dropped(self.log);
        }
    }

    /// Keeps room for a line that is to be written once what it tells of has happened.
    pub fn reserve(&self, line: Vec<u8>) -> Result<Reserved, Full> {
        let fits = self.sink.as_ref().is_none_or(|sink| sink.reserve(self.log, line.len()));
        if fits { Ok(Reserved { lines: self.clone(), line }) } else { Err(Full) }
    }
}

/// A line with its room in the queue. Dropped, it gives the room back and nothing is written.
#[must_use = "a reserved line is written by `write`"]
pub struct Reserved {
    lines: Lines,
    line: Vec<u8>,
}

impl Reserved {
    /// Writes the line; it is never dropped.
    pub fn write(mut self) {
        let line = std::mem::take(&mut self.line);
        if let Some(sink) = &self.lines.sink {
            sink.push_reserved(self.lines.log, &line);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(sink) = &self.lines.sink {
            sink.give_back(self.lines.log, self.line.len());
        }
    }
}

/// Waits until every line so far is written, at most `patience` for each place.
pub fn flush(patience: Duration) {
    for sink in crate::sink::all() {
        sink.flush(patience);
    }
}

/// One event of the general log.
pub struct LineWriter<'l>(&'l Lines);

impl io::Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line); // dropped is counted
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'l> MakeWriter<'l> for Lines {
    type Writer = LineWriter<'l>;

    fn make_writer(&'l self) -> Self::Writer {
        LineWriter(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_there_after_a_flush_and_a_reserved_one_only_when_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.log");
        let lines = Lines::open(Log::Audit, file.to_str().unwrap()).unwrap();
        assert!(lines.write(b"one\n"));
        drop(lines.reserve(b"never\n".to_vec()).unwrap());
        lines.reserve(b"two\n".to_vec()).unwrap().write();
        flush(Duration::from_secs(10));
        assert_eq!(std::fs::read_to_string(file).unwrap(), "one\ntwo\n");
        assert!(Lines::open(Log::Access, "off").unwrap().write(b"nowhere\n"));
    }

    #[test]
    fn a_place_that_is_no_place_for_lines_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().to_str().unwrap();
        let fault = Lines::open(Log::Access, place).err().unwrap().to_string();
        assert!(fault.starts_with(&format!("log.access: cannot write `{place}`: ")), "{fault}");
    }
}
