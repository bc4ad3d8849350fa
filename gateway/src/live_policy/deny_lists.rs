//! Deny files: lists from outside. Each is judged once whenever it changes. While a list is bad, the last good one
//! stays in force, also over a restart. So a mistake in a list does not prevent a restart or another change of the
//! policy.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use ipnet::IpNet;
use parking_lot::Mutex;
use policy::Policy;
use policy::document::Fault;
use policy::rules::blocks::read_list;
use sha2::{Digest as _, Sha256};
use tracing::{error, info};

use crate::live_policy::files::{LARGEST_LISTS, read_list_text, whole_file};
use crate::state::directory::StateDir;

/// The networks of one deny file.
pub(super) type Networks = Arc<[IpNet]>;

/// The deny files of a policy, by their names in it, with their networks.
pub(super) type Lists = Vec<(String, Networks)>;

/// A file that changed less than this ago may change again without a new time, within one tick of its file system's
/// clock.
const TICK: Duration = Duration::from_secs(2);

/// The deny files that policies name.
pub(super) struct DenyLists {
    folder: PathBuf,
    state: Arc<StateDir>,
    known: Mutex<BTreeMap<String, Known>>,
}

/// The state of one file.
#[derive(Default)]
struct Known {
    /// The file system's data about it when it was read; `None` if these cannot show a change.
    stamp: Option<Stamp>,
    /// The contents that were read.
    seen: Option<Seen>,
    /// The size in bytes.
    size: u64,
    /// The networks that it holds, if it is a valid list.
    latest: Option<Networks>,
    /// The networks that it held when a policy with it was last in force.
    good: Option<Networks>,
    /// The faults of its contents.
    faults: Vec<Fault>,
}

type Stamp = (u64, u64, u64, i64, i64, i64, i64);

#[derive(PartialEq, Eq)]
enum Seen {
    Text([u8; 32]),
    Unreadable(String),
}

impl DenyLists {
    /// The lists in `folder`, which is the policy's.
    pub(super) fn new(folder: PathBuf, state: Arc<StateDir>) -> Self {
        Self { folder, state, known: Mutex::default() }
    }

    /// Adds the networks of the deny files that `rules` name; the last good list where a file is bad. A file that was
    /// never good is a fault.
    pub(super) fn read(&self, rules: &mut Policy) -> Result<Lists, Vec<Fault>> {
        let (lists, faults) = self.look(&rules.blocks.deny_files);
        if !faults.is_empty() {
            return Err(faults);
        }
        let denied = rules.blocks.deny_also(lists.iter().map(|(_, networks)| &**networks));
        match denied {
            Ok(()) => Ok(lists),
            Err(message) => Err(vec![whole_file(&self.folder, &anyhow!("blocks.deny_files: {message}"))]),
        }
    }

    /// The lists named `names`, as they should be in force now, and the faults of those that were never good.
    pub(super) fn look(&self, names: &[String]) -> (Lists, Vec<Fault>) {
        let (mut known, mut room) = (self.known.lock(), LARGEST_LISTS);
        let (mut lists, mut faults) = (Lists::new(), Vec::new());
        for name in names {
            let list = known.entry(name.clone()).or_default();
            self.judge(name, list, room);
            room = room.saturating_sub(list.size);
            match list.latest.as_ref().or(list.good.as_ref()) {
                Some(networks) => lists.push((name.clone(), Arc::clone(networks))),
                None => faults.extend_from_slice(&list.faults),
            }
        }
        (lists, faults)
    }

    /// The faults of the files of `lists` whose last good list is in force.
    pub(super) fn faults(&self, lists: &Lists) -> Vec<Fault> {
        let known = self.known.lock();
        let faults = lists.iter().filter_map(|(name, _)| known.get(name));
        faults.flat_map(|list| list.faults.iter().cloned()).collect()
    }

    /// Notes that `lists` are in force: each is now the last good list of its file, also over a restart.
    pub(super) fn hold(&self, lists: &Lists) {
        let mut known = self.known.lock();
        for (name, networks) in lists {
            let list = known.entry(name.clone()).or_default();
            if !list.good.as_ref().is_some_and(|good| Arc::ptr_eq(good, networks)) {
                let text =
                    networks.iter().fold(String::new(), |text, network| text + &network.to_string() + "\n");
                self.state.keep(&kept_as(name), (text + &end_of(networks)).as_bytes());
                list.good = Some(Arc::clone(networks));
            }
        }
    }

    /// Notes that the policy in force does not accept the new lists of the files named `names`: their last good lists
    /// stay, and `faults` are reported until they change again.
    pub(super) fn reject(&self, names: &[String], faults: &[Fault]) {
        let mut known = self.known.lock();
        for (name, list) in known.iter_mut().filter(|(name, _)| names.contains(name)) {
            self.give_up(name, list, faults);
        }
    }

    /// The same for all files whose lists are new, whatever the fault is.
    pub(super) fn reject_all(&self) {
        let mut known = self.known.lock();
        for (name, list) in known.iter_mut() {
            let error = anyhow!("the policy is refused with it");
            self.give_up(name, list, &[whole_file(&self.folder.join(name), &error)]);
        }
    }

    fn give_up(&self, name: &str, list: &mut Known, faults: &[Fault]) {
        let Some(latest) = &list.latest else { return };
        if list.good.as_ref().is_some_and(|good| Arc::ptr_eq(good, latest)) {
            return;
        }
        list.good = list.good.take().or_else(|| self.last_good(name, &self.folder.join(name)));
        if list.good.is_some() {
            (list.latest, list.faults) = (None, faults.to_vec());
        }
    }

    /// Forgets all lists except `lists`, on the disk as well.
    pub(super) fn keep_only(&self, lists: &Lists) {
        self.known.lock().retain(|name, _| lists.iter().any(|(kept, _)| kept == name));
        let wanted: Vec<String> = lists.iter().map(|(name, _)| kept_as(name)).collect();
        for file in self.state.names() {
            if file.starts_with(KEPT_BEGINS) && file.ends_with(KEPT_ENDS) && !wanted.contains(&file) {
                self.state.remove(&file);
            }
        }
    }

    /// Reads a file if it has changed since it was judged.
    fn judge(&self, name: &str, list: &mut Known, room: u64) {
        let path = self.folder.join(name);
        let metadata = std::fs::metadata(&path).ok();
        let stamp = metadata.as_ref().and_then(stamp_of);
        if list.stamp.is_some() && list.stamp == stamp {
            return;
        }
        list.stamp = None; // what cannot be read is read again next time: its permissions may change, and so may the room beside other files
        list.size = metadata.map_or(0, |metadata| metadata.len());
        let read = read_list_text(&self.folder, name, room);
        let seen = match &read {
            Ok(text) => Seen::Text(Sha256::digest(text.as_bytes()).into()),
            Err(error) => Seen::Unreadable(format!("{error:#}")),
        };
        if read.is_ok() {
            list.stamp = stamp;
        }
        if list.seen.as_ref() == Some(&seen) {
            return;
        }
        list.seen = Some(seen);
        match read
            .map_err(|error| vec![whole_file(&path, &error)])
            .and_then(|text| read_list(&path.display().to_string(), &text))
        {
            Ok(networks) => {
                if !list.faults.is_empty() {
                    info!(file = %path.display(), networks = networks.len(), "the deny file is good again");
                }
                (list.latest, list.faults) = (Some(networks.into()), Vec::new());
            }
            Err(faults) => {
                let good = list.good.take().or_else(|| self.last_good(name, &path));
                if good.is_some() {
                    for fault in &faults {
                        error!(%fault, "a deny file is refused: the last good one stays in force");
                    }
                }
                (list.latest, list.good, list.faults) = (None, good, faults);
            }
        }
    }

    /// The last good list from before a restart.
    fn last_good(&self, name: &str, path: &Path) -> Option<Networks> {
        let text = String::from_utf8(self.state.read(&kept_as(name), LARGEST_LISTS)?).ok()?;
        let networks = read_list(&path.display().to_string(), &text).ok()?;
        let is_whole = text.ends_with(&end_of(&networks));
        if !is_whole {
            error!(file = %self.state.path(&kept_as(name)).display(), "the last good deny file is damaged, and not used");
        }
        is_whole.then(|| networks.into())
    }
}

/// What distinguishes one state of a file from another; `None` if the file was changed just now.
fn stamp_of(metadata: &Metadata) -> Option<Stamp> {
    let age = SystemTime::now().duration_since(metadata.modified().ok()?).ok()?;
    let changed = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
    let stamp = (metadata.dev(), metadata.ino(), metadata.len(), changed.0, changed.1, changed.2, changed.3);
    (age > TICK).then_some(stamp)
}

/// The last line of a stored list. A list without it was cut short and is not used.
fn end_of(networks: &[IpNet]) -> String {
    format!("# {} networks\n", networks.len())
}

/// How the names in the state directory begin and end.
const KEPT_BEGINS: &str = "deny-";
const KEPT_ENDS: &str = ".last-good.txt";

/// The name in the state directory.
fn kept_as(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().take(8).fold(KEPT_BEGINS.to_owned(), |hex, byte| hex + &format!("{byte:02x}")) + KEPT_ENDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Metrics;

    fn lists(dir: &Path) -> DenyLists {
        let state = StateDir::new(dir.join("state"), Metrics::new().unwrap());
        DenyLists::new(dir.to_owned(), state)
    }

    #[test]
    fn a_bad_list_leaves_the_last_good_one_in_force_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["list.txt".to_owned()];
        let write = |text: &str| std::fs::write(dir.path().join("list.txt"), text).unwrap();
        let held = |lists: &DenyLists| {
            let (held, faults) = lists.look(&names);
            (
                held.iter().map(|(_, networks)| networks.len()).sum::<usize>(),
                faults.len(),
                lists.faults(&held).len(),
            )
        };
        let in_force = |lists: &DenyLists| lists.hold(&lists.look(&names).0);
        let first = lists(dir.path());
        write("no address\n");
        assert_eq!(held(&first), (0, 1, 0), "it never was good");
        write("192.0.2.1\n192.0.2.2\n");
        assert_eq!(held(&first), (2, 0, 0));
        in_force(&first);
        write("192.0.2.300\n");
        assert_eq!(held(&first), (2, 0, 1));
        assert_eq!(held(&lists(dir.path())), (2, 0, 1), "after a restart");
        std::fs::remove_file(dir.path().join("list.txt")).unwrap();
        assert_eq!(held(&first), (2, 0, 1), "one that is gone");
        write("192.0.2.1\n192.0.2.2\n192.0.2.3\n");
        assert_eq!(held(&first), (3, 0, 0), "a good one");
        first.reject(&names, &[whole_file(dir.path(), &anyhow!("the policy's tests fail"))]);
        assert_eq!(held(&first), (2, 0, 1), "that the policy does not take");
        let after = lists(dir.path());
        assert_eq!(held(&after), (3, 0, 0));
        after.reject_all();
        assert_eq!(held(&after), (2, 0, 1), "nor after a restart");
        let kept = dir.path().join("state").join(kept_as("list.txt"));
        let whole = std::fs::read_to_string(&kept).unwrap();
        std::fs::write(&kept, whole.lines().next().unwrap()).unwrap();
        write("no address\n");
        assert_eq!(held(&lists(dir.path())).0, 0, "a kept list that is cut short is none");
        first.keep_only(&Lists::new());
        std::fs::remove_file(dir.path().join("list.txt")).unwrap();
        assert_eq!(held(&lists(dir.path())), (0, 1, 0), "what no policy names is not kept");
    }

    #[test]
    fn a_list_is_judged_once() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["list.txt".to_owned()];
        std::fs::write(dir.path().join("list.txt"), "192.0.2.1\n").unwrap();
        let lists = lists(dir.path());
        let one = lists.look(&names).0;
        std::fs::write(dir.path().join("list.txt"), "192.0.2.1\n").unwrap();
        assert!(Arc::ptr_eq(&one[0].1, &lists.look(&names).0[0].1), "written again, it says the same");
    }
}
