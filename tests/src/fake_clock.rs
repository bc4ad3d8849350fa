//! A wall clock that a test sets, for one program: Debian's libfaketime. The monotonic clock is left as it is, as it is
//! when a machine's clock is set.

use std::path::PathBuf;

use tempfile::TempDir;

/// The wall clock of the programs that were started with its environment.
pub struct FakeClock {
    library: String,
    dir: TempDir,
}

impl FakeClock {
    /// A clock that is right at first; `None` where libfaketime is not installed, which CI requires.
    pub fn new() -> Option<Self> {
        let library = |folder: std::fs::DirEntry| folder.path().join("faketime/libfaketimeMT.so.1");
        let found = std::fs::read_dir("/usr/lib").unwrap().flatten().map(library).find(|file| file.exists());
        assert!(found.is_some() || std::env::var_os("CI").is_none(), "CI requires libfaketime");
        let library = found?.to_str().unwrap().to_owned();
        let clock = Self { library, dir: tempfile::tempdir().unwrap() };
        clock.set("+0s");
        Some(clock)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }

    /// Sets it to the true time and `offset`, such as `-1h`.
    pub fn set(&self, offset: &str) {
        let beside = self.dir.path().join("next");
        std::fs::write(&beside, offset).unwrap();
        std::fs::rename(beside, self.file()).unwrap();
    }

    /// What a program is started with that is to have this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let file = self.file().to_str().unwrap().to_owned();
        [
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME_TIMESTAMP_FILE", file),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

/// The same as a program is started with it.
pub fn borrowed(environment: &[(String, String)]) -> Vec<(&str, &str)> {
    environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
