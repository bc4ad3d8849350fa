//! The thread that writes lines to one place. It never gives up: a full disk, a file that is gone and a pipe without a
//! reader are tried again until they work.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::warn;

use crate::log::{Log, QUEUE_BYTES, dropped};

/// A place that could not be written to is tried again after this.
const RETRY: Duration = Duration::from_millis(200);

/// A file that was moved or removed is noticed within this time of the next line.
const LOOK: Duration = Duration::from_secs(1);

/// A buffer that has grown beyond this is given back to the system once it is empty.
const KEPT_BYTES: usize = 64 << 10;

static SINKS: Mutex<BTreeMap<String, Arc<Sink>>> = Mutex::new(BTreeMap::new());

/// One number for each log.
type PerLog<T> = [T; Log::ALL.len()];

/// Lines of one place on their way out.
pub(crate) struct Sink {
    queue: Mutex<Queue>,
    /// There is something to write.
    filled: Condvar,
    /// Everything is written.
    emptied: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Whole lines that nobody has begun to write.
    waiting: Vec<u8>,
    /// Bytes of each log in `waiting`.
    waits: PerLog<usize>,
    /// Bytes of each log that are in `waiting`, being written, or reserved: at most [`QUEUE_BYTES`].
    held: PerLog<usize>,
    /// Lines of each log that were dropped since the writer last caught up.
    dropped: PerLog<u64>,
    is_writing: bool,
}

impl Sink {
    /// The sink of `place`, with its thread: `stdout` or a file.
    pub(crate) fn open(place: &str) -> io::Result<Arc<Self>> {
        let mut sinks = SINKS.lock();
        if let Some(sink) = sinks.get(place) {
            return Ok(Arc::clone(sink));
        }
        let out = Out::open(place)?;
        let sink =
            Arc::new(Self { queue: Mutex::default(), filled: Condvar::new(), emptied: Condvar::new() });
        let writes = Arc::clone(&sink);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || writes.write_forever(out))?;
        sinks.insert(place.to_owned(), Arc::clone(&sink));
        Ok(sink)
    }

    pub(crate) fn push(&self, log: Log, line: &[u8]) -> bool {
        let mut queue = self.queue.lock();
        let fits = queue.hold(log, line.len());
        if fits {
            queue.add(log, line);
        }
        drop(queue);
        if fits {
            self.filled.notify_one();
        } else {
            self.note_dropped(log);
        }
        fits
    }

    pub(crate) fn note_dropped(&self, log: Log) {
        let mut queue = self.queue.lock();
        let count = &mut queue.dropped[log as usize];
        *count = count.saturating_add(1);
        drop(queue);
        dropped(log);
    }

    pub(crate) fn reserve(&self, log: Log, bytes: usize) -> bool {
        self.queue.lock().hold(log, bytes)
    }

    pub(crate) fn give_back(&self, log: Log, bytes: usize) {
        self.queue.lock().release(log, bytes);
    }

    pub(crate) fn push_reserved(&self, log: Log, line: &[u8]) {
        self.queue.lock().add(log, line);
        self.filled.notify_one();
    }

    pub(crate) fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut queue = self.queue.lock();
        while queue.is_writing || !queue.waiting.is_empty() {
            if self.emptied.wait_until(&mut queue, deadline).timed_out() {
                return;
            }
        }
    }

    fn write_forever(&self, mut out: Out) {
        let mut lines = Vec::new();
        loop {
            let counts = self.take(&mut lines);
            out.write(&lines);
            lines.clear();
            lines.shrink_to(KEPT_BYTES);
            for (log, dropped) in Log::ALL.into_iter().zip(self.wrote(counts)) {
                if dropped > 0 {
                    warn!(log = log.as_str(), dropped, "log lines were dropped: their writer was late");
                }
            }
        }
    }

    /// Waits for lines, and takes all of them.
    fn take(&self, into: &mut Vec<u8>) -> PerLog<usize> {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() {
            self.emptied.notify_all();
            self.filled.wait(&mut queue);
        }
        std::mem::swap(&mut queue.waiting, into);
        queue.is_writing = true;
        std::mem::take(&mut queue.waits)
    }

    /// Notes that what was taken is written; what was dropped until then.
    fn wrote(&self, counts: PerLog<usize>) -> PerLog<u64> {
        let mut queue = self.queue.lock();
        queue.is_writing = false;
        for (log, bytes) in Log::ALL.into_iter().zip(counts) {
            queue.release(log, bytes);
        }
        std::mem::take(&mut queue.dropped)
    }
}

impl Queue {
    fn hold(&mut self, log: Log, bytes: usize) -> bool {
        let held = &mut self.held[log as usize];
        let fits = held.saturating_add(bytes) <= QUEUE_BYTES;
        if fits {
            *held += bytes;
        }
        fits
    }

    fn release(&mut self, log: Log, bytes: usize) {
        let held = &mut self.held[log as usize];
        *held = held.saturating_sub(bytes);
    }

    fn add(&mut self, log: Log, line: &[u8]) {
        self.waiting.extend_from_slice(line);
        self.waits[log as usize] += line.len();
    }
}

/// Every sink that was opened.
pub(crate) fn all() -> Vec<Arc<Sink>> {
    SINKS.lock().values().map(Arc::clone).collect()
}

/// An open place.
struct Out {
    file: File,
    /// Where to open it again; standard output cannot be.
    path: Option<PathBuf>,
    /// When it was last seen to be the file that its path names.
    seen_at: Instant,
}

impl Out {
    fn open(place: &str) -> io::Result<Self> {
        let seen_at = Instant::now();
        // A descriptor of our own: nothing of the library's buffer and lock is between.
        let stream = match place {
            "stdout" | "/dev/stdout" => Some(io::stdout().as_fd().try_clone_to_owned()?),
            "/dev/stderr" => Some(io::stderr().as_fd().try_clone_to_owned()?),
            _ => None,
        };
        if let Some(stream) = stream {
            return Ok(Self { file: File::from(stream), path: None, seen_at });
        }
        let path = PathBuf::from(place);
        Ok(Self { file: append_to(&path)?, path: Some(path), seen_at })
    }

    /// Opens the file again that was moved or removed, as those do who rotate logs: looked at once in [`LOOK`].
    fn follow(&mut self) {
        if self.seen_at.elapsed() < LOOK {
            return;
        }
        self.seen_at = Instant::now();
        let named = self.path.as_ref().and_then(|path| std::fs::metadata(path).ok());
        let is_the_same = identity(named) == identity(self.file.metadata().ok());
        if self.path.is_some() && !is_the_same {
            self.open_again();
        }
    }

    /// Writes whole lines, however long it takes.
    fn write(&mut self, lines: &[u8]) {
        self.follow();
        let mut rest = lines;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(count) if count > 0 => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    std::thread::sleep(RETRY);
                    if self.open_again() {
                        let written = lines.len() - rest.len();
                        rest = lines.get(line_start(lines, written)..).unwrap_or_default();
                    }
                }
            }
        }
    }

    /// Opens the file anew. Whether it is another one now, in which a line that was half written begins again.
    fn open_again(&mut self) -> bool {
        let Some(anew) = self.path.as_ref().and_then(|path| append_to(path).ok()) else { return false };
        let is_another = identity(anew.metadata().ok()) != identity(self.file.metadata().ok());
        self.file = anew;
        is_another
    }
}

/// Which file it is.
fn identity(about: Option<std::fs::Metadata>) -> Option<(u64, u64)> {
    about.map(|about| (about.dev(), about.ino()))
}

/// Opens a file at its end. A pipe or a socket is none: to open it may wait for somebody who reads it.
fn append_to(path: &PathBuf) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|about| about.file_type().is_fifo() || about.file_type().is_socket())
    {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file is needed, not a pipe or a socket"));
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Where the line that holds the byte at `at` begins.
fn line_start(lines: &[u8], at: usize) -> usize {
    let before = lines.get(..at).unwrap_or_default();
    before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn fill(sink: &Sink, log: Log) -> usize {
        let line = [b"x".repeat(1_023), b"\n".to_vec()].concat();
        (0..1_000_000).take_while(|_| sink.push(log, &line)).count()
    }

    #[test]
    fn a_file_that_was_moved_or_removed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (place, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let mut out = Out::open(place.to_str().unwrap()).unwrap();
        out.write(b"one\n");
        std::fs::rename(&place, &moved).unwrap();
        out.seen_at = Instant::now().checked_sub(LOOK).unwrap();
        out.write(b"two\n");
        std::fs::remove_file(&moved).unwrap();
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "two\n");
        std::fs::remove_file(&place).unwrap();
        out.seen_at = Instant::now().checked_sub(LOOK).unwrap();
        out.write(b"three\n");
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "three\n");
    }

    #[test]
    fn a_full_disk_costs_the_lines_beyond_the_queue_and_none_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let (place, good) = (dir.path().join("access.log"), dir.path().join("good.log"));
        std::os::unix::fs::symlink("/dev/full", &place).unwrap();
        let sink = Sink::open(place.to_str().unwrap()).unwrap();
        let queued = fill(&sink, Log::Access);
        assert_eq!(queued, QUEUE_BYTES / 1_024);
        assert!(sink.push(Log::Audit, b"audit\n"), "each log has a queue of its own");
        assert!(!sink.reserve(Log::Access, 1));
        std::fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink(&good, &place).unwrap();
        sink.flush(PATIENCE);
        assert!(sink.push(Log::Access, b"afterwards\n"));
        sink.flush(PATIENCE);
        let text = std::fs::read_to_string(good).unwrap();
        assert_eq!(text.lines().count(), queued + 2);
        assert!(text.ends_with("\nafterwards\n"));
        assert!(text.lines().all(|line| [1_023, 5, 10].contains(&line.len())), "no line is torn");
    }

    #[test]
    fn a_line_begins_after_the_last_newline() {
        assert_eq!([0, 1, 3, 4, 9].map(|at| line_start(b"ab\ncd\n", at)), [0, 0, 3, 3, 0]);
    }
}
