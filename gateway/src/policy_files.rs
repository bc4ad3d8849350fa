//! The policy's files as they are read: itself and its deny files, each with a bound.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use policy::Policy;
use policy::document::Fault;

/// The largest policy, in bytes.
pub(crate) const LARGEST: u64 = 4 << 20;

/// The most bytes of all deny files of a policy together.
const LARGEST_LISTS: u64 = 64 << 20;

/// The deny files of a policy by the names that it gives them, with what they held.
pub(crate) type DenyFiles = Vec<(String, String)>;

/// The policy's text.
pub(crate) fn read(file: &Path) -> anyhow::Result<String> {
    service::files::read_text(file, LARGEST).context("policy.file")
}

/// Where the files lie that the policy in `file` names.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).to_owned()
}

/// The text of the deny file that a policy in `folder` calls `name`, of at most `largest` bytes.
fn read_list(folder: &Path, name: &str, largest: u64) -> anyhow::Result<String> {
    let read = || service::files::read_text(&service::files::below(folder, name)?, largest);
    read().context("blocks.deny_files")
}

/// What the deny files of `held` hold now; `None` for one that cannot be read.
pub(crate) fn read_again(folder: &Path, held: &DenyFiles) -> Vec<Option<String>> {
    held.iter().map(|(name, _)| read_list(folder, name, LARGEST_LISTS).ok()).collect()
}

/// Reads the deny files that the policy in `file` names: files below its folder.
pub fn read_deny_files(file: &Path, rules: &mut Policy) -> Result<DenyFiles, Vec<Fault>> {
    let (folder, mut room) = (folder_of(file), LARGEST_LISTS);
    let (mut read, mut faults) = (DenyFiles::new(), Vec::new());
    for name in rules.blocks.deny_files.clone() {
        match read_list(&folder, &name, room) {
            Ok(text) => {
                room = room.saturating_sub(text.len() as u64);
                read.push((name, text));
            }
            Err(error) => faults.push(whole_file(&folder.join(&name), &error)),
        }
    }
    let shown: Vec<String> = read.iter().map(|(name, _)| folder.join(name).display().to_string()).collect();
    let lists = shown.iter().zip(&read).map(|(shown, (_, text))| (shown.as_str(), text.as_str()));
    if let Err(found) = rules.blocks.deny_also(lists) {
        faults.extend(found);
    }
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}

/// A fault of a file as a whole.
pub(crate) fn whole_file(file: &Path, error: &anyhow::Error) -> Fault {
    let message = format!("{error:#}");
    Fault { file: file.display().to_string(), line: 1, column: 1, key: String::new(), message }
}

/// The faults, one a line.
pub fn lines(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
