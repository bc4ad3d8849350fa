//! Reads the policy's files, the policy itself and its deny files, each with a bound.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use policy::Policy;
use policy::document::Fault;

/// The largest policy, in bytes.
pub(crate) const LARGEST: u64 = 4 << 20;

/// The most bytes of all deny files of a policy together.
pub(crate) const LARGEST_LISTS: u64 = 64 << 20;

/// The policy's text.
pub(crate) fn read(file: &Path) -> anyhow::Result<String> {
    service::files::read_text(file, LARGEST).context("policy.file")
}

/// The folder of the files that the policy in `file` names.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).to_owned()
}

/// The text of the deny file `name` of a policy in `folder`, of at most `largest` bytes.
pub(crate) fn read_list_text(folder: &Path, name: &str, largest: u64) -> anyhow::Result<String> {
    let read = || service::files::read_text(&service::files::below(folder, name)?, largest);
    read().context("blocks.deny_files")
}

/// Reads the deny files that the policy in `file` names, which are below its folder. Every fault counts.
pub(crate) fn read_deny_files(file: &Path, rules: &mut Policy) -> Result<(), Vec<Fault>> {
    let (folder, mut room) = (folder_of(file), LARGEST_LISTS);
    let (mut lists, mut faults) = (Vec::new(), Vec::new());
    for name in &rules.blocks.deny_files {
        let path = folder.join(name);
        let read = read_list_text(&folder, name, room).map_err(|error| vec![whole_file(&path, &error)]);
        room = room.saturating_sub(read.as_ref().map_or(0, |text| text.len() as u64));
        match read.and_then(|text| policy::rules::blocks::read_list(&path.display().to_string(), &text)) {
            Ok(networks) => lists.push(networks),
            Err(found) => faults.extend(found),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let denied = rules.blocks.deny_also(lists.iter().map(Vec::as_slice));
    denied.map_err(|message| vec![whole_file(file, &anyhow::anyhow!("blocks.deny_files: {message}"))])
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
