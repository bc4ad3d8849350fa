//! The policy's files as they are read: itself and its deny files, each with a bound.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use policy::Policy;
use policy::document::Fault;

/// The largest policy, in bytes.
const LARGEST: u64 = 4 << 20;

/// The largest deny file, in bytes.
const LARGEST_LIST: u64 = 64 << 20;

/// The deny files of a policy, with what they held.
pub(crate) type DenyFiles = Vec<(PathBuf, String)>;

/// The policy's text.
pub(crate) fn read(file: &Path) -> anyhow::Result<String> {
    read_bounded("policy.file", file, LARGEST)
}

/// The text of a deny file.
pub(crate) fn read_deny_file(file: &Path) -> anyhow::Result<String> {
    read_bounded("blocks.deny_files", file, LARGEST_LIST)
}

/// The text of `file`, which has at most `largest` bytes; `setting` is what an error names.
fn read_bounded(setting: &str, file: &Path, largest: u64) -> anyhow::Result<String> {
    let cannot = || format!("{setting}: cannot read `{}`", file.display());
    let size = std::fs::metadata(file).with_context(cannot)?.len();
    if size > largest {
        bail!("{setting}: `{}` has more than {largest} bytes", file.display());
    }
    std::fs::read_to_string(file).with_context(cannot)
}

/// Reads the deny files that the policy in `file` names, beside it where the name is relative.
pub fn read_deny_files(file: &Path, rules: &mut Policy) -> Result<DenyFiles, Vec<Fault>> {
    let directory = file.parent().unwrap_or(Path::new(""));
    let (mut read, mut faults) = (Vec::new(), Vec::new());
    for name in rules.blocks.deny_files.clone() {
        let list = directory.join(&name);
        match read_deny_file(&list) {
            Ok(text) => {
                if let Err(found) =
                    rules.blocks.deny_also([(list.display().to_string().as_str(), text.as_str())])
                {
                    faults.extend(found);
                }
                read.push((list, text));
            }
            Err(error) => faults.push(whole_file(&list, &error)),
        }
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
