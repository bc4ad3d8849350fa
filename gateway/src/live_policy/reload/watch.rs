//! Watches the policy's files. A change is read as soon as the files are quiet; all files are checked at intervals,
//! too.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use notify::{EventKind, RecursiveMode, Watcher as _};
use tracing::warn;

use super::Reloader;
use crate::live_policy::deny_lists::Networks;
use crate::live_policy::files::read;
use crate::live_policy::in_force::PolicyInForce;

/// How long a file must be unchanged before it is read.
const QUIET: Duration = Duration::from_millis(100);

/// How often the file is checked. Some file systems do not report changes.
const LOOK: Duration = Duration::from_secs(5);

impl Reloader {
    /// Watches the file, forever, on a thread of its own. Where the system allows no watch, the file is checked every
    /// [`LOOK`].
    pub fn watch(self: &Arc<Self>, live: Arc<PolicyInForce>) -> anyhow::Result<()> {
        let (sender, events) = channel();
        let watcher = self.notify(sender.clone()).inspect_err(|error| {
            let advice = "raise fs.inotify.max_user_instances or fs.inotify.max_user_watches";
            warn!(%error, advice, "the policy cannot be watched: a change is seen within 5 s and not at once");
        });
        let reloader = Arc::clone(self);
        std::thread::Builder::new().name("policy-watch".to_owned()).spawn(move || {
            let _kept = (watcher, sender);
            while wait(&events) {
                reloader.look(&live);
            }
        })?;
        Ok(())
    }

    /// Sends a message for each change of a watched file, until the returned value is dropped.
    fn notify(&self, sender: Sender<()>) -> notify::Result<notify::RecommendedWatcher> {
        let names = Arc::clone(&self.watched);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| is_of(&event, &names.lock())) {
                let _ = sender.send(());
            }
        })?;
        let directory = self.file.parent().filter(|parent| !parent.as_os_str().is_empty());
        watcher.watch(directory.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    fn look(&self, live: &PolicyInForce) {
        self.state.catch_up();
        let text = read(&self.file).map_err(|error| format!("{error:#}"));
        let changed = self.last_seen.lock().as_ref() != Some(&text);
        let waits_for = self.waits_for.lock().clone();
        if changed || (!waits_for.is_empty() && self.lists.look(&waits_for).1.is_empty()) {
            let _ = self.reload(live);
        } else {
            self.look_at_lists(live);
        }
    }

    /// Puts the text in force again if a deny file has changed.
    fn look_at_lists(&self, live: &PolicyInForce) {
        let in_force = live.policy();
        let (lists, _) = self.lists.look(&in_force.rules.blocks.deny_files);
        let same = |((_, held), (_, now)): (&(String, Networks), &(String, Networks))| Arc::ptr_eq(held, now);
        if lists.len() == in_force.lists.len() && in_force.lists.iter().zip(&lists).all(same) {
            self.note_lists(&live.policy().lists);
        } else {
            self.lay_anew(live, "a deny file");
        }
    }
}

/// Whether an event is about a watched file, or about the link by which a `ConfigMap` swaps all of its files. A log in
/// the same folder does not count, and neither does our own reading.
fn is_of(event: &notify::Event, watched: &HashSet<OsString>) -> bool {
    let counts =
        |path: &PathBuf| path.file_name().is_some_and(|name| name == "..data" || watched.contains(name));
    event.need_rescan() || (!matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(counts))
}

/// Waits for a change and then quiet, or for the next check. `false` when the watch has ended.
fn wait(events: &Receiver<()>) -> bool {
    match events.recv_timeout(LOOK) {
        Ok(()) => {
            let begun = std::time::Instant::now();
            while begun.elapsed() < 5 * QUIET && events.recv_timeout(QUIET).is_ok() {}
            true
        }
        Err(RecvTimeoutError::Timeout) => true,
        Err(RecvTimeoutError::Disconnected) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_of_the_watched_files_count() {
        let watched = HashSet::from([OsString::from("policy.toml"), OsString::from("list.txt")]);
        let event = |kind, name: &str| notify::Event::new(kind).add_path(Path::new("/etc/p").join(name));
        let modified = EventKind::Modify(notify::event::ModifyKind::Any);
        for name in ["policy.toml", "list.txt", "..data"] {
            assert!(is_of(&event(modified, name), &watched), "{name}");
        }
        for name in ["gateway.log", "policy.toml.swp", "..2024_tmp"] {
            assert!(!is_of(&event(modified, name), &watched), "{name}");
        }
        assert!(!is_of(&event(EventKind::Access(notify::event::AccessKind::Any), "policy.toml"), &watched));
    }
}
