//! The state directory: what survives a restart. A file that cannot be written now, as on a full disk, is tried again
//! until it is written.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::{error, info, warn};

use crate::observe::metrics::Metrics;

/// `state.dir`.
pub struct StateDir {
    dir: PathBuf,
    /// Files, by name, that do not hold what they should, each with what it should hold. `None`: the file should not
    /// exist.
    late: Mutex<BTreeMap<String, Option<Arc<[u8]>>>>,
    /// The files that cannot be written, each with the reason.
    faults: Mutex<BTreeMap<String, String>>,
    metrics: Metrics,
}

impl StateDir {
    /// The directory `dir`, which is created at the first write.
    pub fn new(dir: PathBuf, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { dir, late: Mutex::default(), faults: Mutex::default(), metrics })
    }

    /// The path of the file `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The contents of the file `name`, up to `largest` bytes; `None` if there is no such file.
    pub fn read(&self, name: &str, largest: u64) -> Option<Vec<u8>> {
        let path = self.path(name);
        path.exists().then_some(())?;
        let read = service::files::read(&path, largest);
        read.inspect_err(|error| warn!(%error, "a file of the state directory is not used")).ok()
    }

    /// The names of the files in it.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Replaces the file `name`.
    pub fn replace(
        &self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        self.note(name, service::files::replace(&self.path(name), write))
    }

    /// Stores `bytes` as the file `name`, at once or as soon as possible.
    pub fn keep(&self, name: &str, bytes: &[u8]) {
        self.late.lock().insert(name.to_owned(), Some(bytes.into()));
        self.catch_up();
    }

    /// Removes the file `name`, at once or as soon as possible.
    pub fn remove(&self, name: &str) {
        self.late.lock().insert(name.to_owned(), None);
        self.catch_up();
    }

    /// Tries the writes and removals again that failed before. To be called at intervals.
    pub fn catch_up(&self) {
        self.late.lock().retain(|name, bytes| {
            let done = match bytes {
                Some(bytes) => self.replace(name, |out| out.write_all(bytes)),
                None => self.note(name, service::files::remove(&self.path(name))),
            };
            done.is_err()
        });
    }

    /// The files that cannot be written, each with the reason, as text for operators.
    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().iter().map(|(name, error)| format!("`{}`: {error}", self.show(name))).collect()
    }

    fn show(&self, name: &str) -> String {
        Path::new(&self.dir).join(name).display().to_string()
    }

    /// Counts a failure. Logs when failing begins and when it ends.
    fn note(&self, name: &str, done: io::Result<()>) -> io::Result<()> {
        let mut faults = self.faults.lock();
        match &done {
            Ok(()) if faults.remove(name).is_some() => info!(file = self.show(name), "written again"),
            Ok(()) => {}
            Err(error) => {
                self.metrics.state_write_errors.inc();
                if faults.insert(name.to_owned(), error.to_string()).is_none() {
                    error!(
                        file = self.show(name),
                        %error,
                        "cannot be written: it holds what it held before, and a restart would go back to that. It is \
                         tried again; make room, or make `state.dir` writable"
                    );
                }
            }
        }
        self.metrics.state_files_late.set(i64::try_from(faults.len()).unwrap_or(i64::MAX));
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("state");
        std::fs::write(&place, "no directory").unwrap();
        let metrics = Metrics::new().unwrap();
        let state = StateDir::new(place.clone(), metrics.clone());
        state.keep("a", b"1");
        state.keep("a", b"2");
        assert_eq!((state.faults().len(), metrics.state_files_late.get()), (1, 1));
        assert_eq!(state.read("a", 9), None);
        std::fs::remove_file(&place).unwrap();
        state.catch_up();
        assert_eq!(state.read("a", 9).as_deref(), Some(&b"2"[..]));
        assert!(state.faults().is_empty() && metrics.state_files_late.get() == 0);
        state.remove("a");
        assert_eq!(state.read("a", 9), None);
    }
}
