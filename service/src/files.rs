//! Files: regular ones are read, each with a bound on what is really read, and replaced as a whole. No error quotes what
//! a file holds, because it may be another file than the one that was meant.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IntoInnerError, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
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

/// Replaces `file` by what `write` writes, and makes its folder where there is none. The new text is written beside it,
/// flushed to the disk and renamed over it, and the folder is flushed as well. After an error the old file is still there;
/// a kill or a power cut leaves the old one or the new one. Only the owner of the process may read it.
pub fn replace(file: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let folder = folder_of(file);
    std::fs::create_dir_all(folder)?;
    let beside = named_after(file, "tmp");
    let written = write_whole(&beside, write).and_then(|()| std::fs::rename(&beside, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside); // on a full disk it takes the room that is missing
    }
    written.and_then(|()| sync_folder(folder))
}

/// Makes a rename last. File systems that have no such thing say so, and are not asked for more than they can do.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()), // it may be written and not read
        synced => synced,
    }
}

fn write_whole(file: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let opened = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(file)?;
    let mut out = BufWriter::new(opened);
    write(&mut out)?;
    // A destructor would flush as well, and lose the error.
    out.into_inner().map_err(IntoInnerError::into_error)?.sync_all()
}

/// Removes `file` for good; one that is not there is no fault.
pub fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(folder_of(file)),
    }
}

/// Sets a damaged `file` aside, in the place of one that was set aside before, and returns its new name.
pub fn set_aside(file: &Path) -> io::Result<PathBuf> {
    let aside = named_after(file, "damaged");
    std::fs::rename(file, &aside)?;
    Ok(aside)
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn named_after(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
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

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        use std::os::unix::fs::MetadataExt as _;

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("made/state.json");
        let names = || std::fs::read_dir(file.parent().unwrap()).unwrap().count();
        replace(&file, |out| out.write_all(b"old")).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        let broken = replace(&file, |out| {
            out.write_all(b"new")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!((std::fs::read(&file).unwrap().as_slice(), names()), (&b"old"[..], 1));
        replace(&file, |out| out.write_all(b"new")).unwrap();
        assert_eq!((std::fs::read(&file).unwrap().as_slice(), names()), (&b"new"[..], 1));
        assert_eq!(set_aside(&file).unwrap(), file.with_file_name("state.json.damaged"));
        assert!(!file.exists());
        remove(&file).unwrap();
        replace(&file, |_| Ok(())).unwrap();
        remove(&file).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn an_error_of_the_last_flush_is_seen() {
        // Less than the buffer, so that nothing is written before the end. `/dev/full` takes nothing.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state.json");
        symlink("/dev/full", named_after(&file, "tmp")).unwrap();
        assert_eq!(
            replace(&file, |out| out.write_all(b"new")).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        assert!(!file.exists());
    }
}
