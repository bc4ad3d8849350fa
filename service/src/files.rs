//! Files that settings and policies name: regular ones, each with a bound on what is really read. No error quotes what a
//! file holds, because it may be another file than the one that was meant.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

/// A file that is not read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FileFault(String);

impl FileFault {
    fn new(file: &Path, why: impl fmt::Display) -> Self {
        Self(format!("cannot read `{}`: {why}", file.display()))
    }
}

/// The bytes of a regular `file`, at most `largest` of them.
pub fn read(file: &Path, largest: u64) -> Result<Vec<u8>, FileFault> {
    let cannot = |error: io::Error| FileFault::new(file, error);
    let irregular = || FileFault::new(file, "it is no regular file");
    // Asked before it is opened: to open a pipe waits for whoever writes to it.
    if !std::fs::metadata(file).map_err(cannot)?.is_file() {
        return Err(irregular());
    }
    let opened = File::open(file).map_err(cannot)?;
    if !opened.metadata().map_err(cannot)?.is_file() {
        return Err(irregular());
    }
    let mut bytes = Vec::new();
    // What the system says of a size may be 0, as in /proc, or change.
    opened.take(largest.saturating_add(1)).read_to_end(&mut bytes).map_err(cannot)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > largest {
        return Err(FileFault::new(file, format_args!("it has more than {largest} bytes")));
    }
    Ok(bytes)
}

/// The same of a text.
pub fn read_text(file: &Path, largest: u64) -> Result<String, FileFault> {
    String::from_utf8(read(file, largest)?).map_err(|_| FileFault::new(file, "it is not UTF-8"))
}

/// The file `name` of `folder`, with every link in it followed: what lies elsewhere is refused. A mounted `ConfigMap` is
/// links within its own folder.
pub fn below(folder: &Path, name: &str) -> Result<PathBuf, FileFault> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let named = folder.join(name);
    let outside = || FileFault(format!("`{name}` is not below the policy's folder"));
    if Path::new(name).components().any(|part| part == Component::ParentDir) {
        return Err(outside());
    }
    let top = folder.canonicalize().map_err(|error| FileFault::new(folder, error))?;
    if Path::new(name).is_absolute() && !named.starts_with(folder) && !named.starts_with(&top) {
        return Err(outside()); // nor is it said whether it is there
    }
    let file = named.canonicalize().map_err(|error| FileFault::new(&named, error))?;
    if !file.starts_with(&top) {
        return Err(outside());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_regular_and_no_larger_than_its_bound_by_what_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        let fault = |file: &Path, largest| format!("{:#}", read(file, largest).unwrap_err());
        assert!(fault(&file, 4).ends_with("it has more than 4 bytes"));
        assert!(fault(Path::new("/dev/zero"), 4).ends_with("it is no regular file"));
        assert!(fault(dir.path(), 4).ends_with("it is no regular file"));
        assert!(
            fault(Path::new("/proc/self/status"), 4).ends_with("it has more than 4 bytes"),
            "its size is 0"
        );
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(fault(&pipe, 4).ends_with("it is no regular file"));
        std::fs::write(&file, b"secret \xff").unwrap();
        assert!(!format!("{:#}", read_text(&file, 99).unwrap_err()).contains("secret"));
    }

    #[test]
    fn a_file_lies_below_the_folder_when_its_links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, elsewhere) = (dir.path().join("policy"), dir.path().join("secret"));
        std::fs::create_dir_all(folder.join("..v1")).unwrap();
        std::fs::write(&elsewhere, "s").unwrap();
        std::fs::write(folder.join("..v1/list.txt"), "").unwrap();
        symlink("..v1", folder.join("..data")).unwrap();
        symlink("..data/list.txt", folder.join("list.txt")).unwrap();
        symlink(&elsewhere, folder.join("out.txt")).unwrap();
        assert!(below(&folder, "list.txt").unwrap().ends_with("..v1/list.txt"));
        assert!(below(&folder, folder.join("list.txt").to_str().unwrap()).is_ok());
        for name in ["out.txt", "../secret", elsewhere.to_str().unwrap(), "/etc/passwd", "/etc/no-such-file"]
        {
            let fault = below(&folder, name).unwrap_err().to_string();
            assert!(fault.ends_with("is not below the policy's folder"), "{name}: {fault}");
        }
    }
}
