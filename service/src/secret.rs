//! A secret, which nothing prints.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;

/// The shortest secret of ours, in bytes.
const SHORTEST: usize = 32;

/// The largest file of a secret, in bytes.
const LARGEST_FILE: u64 = 64 << 10;

/// Text that no log, error or debug print ever shows.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

/// How long a secret has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// At least 32 characters: it is ours.
    Ours,
    /// Another server decides which passwords are good.
    Theirs,
}

impl Secret {
    /// A secret of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Reads the text of the secret `name`, which may be base64 behind `base64:`; `place` says in an error where it was found.
    pub fn decode(name: &str, text: &str, place: &str, length: Length) -> anyhow::Result<Self> {
        let text = text.trim_end_matches(['\r', '\n']);
        let bytes = match text.strip_prefix("base64:") {
            Some(encoded) => STANDARD
                .decode(encoded)
                .map_err(|_| anyhow!("{name} {place}: what follows `base64:` is not base64"))?,
            None => text.as_bytes().to_vec(),
        };
        if bytes.len() < SHORTEST && length == Length::Ours {
            bail!("{name} {place}: at least {SHORTEST} characters (got {})", bytes.len());
        }
        Ok(Self(bytes))
    }

    /// Reads the file `name` in `dir`; `None` when it is not there.
    pub fn in_dir(dir: &Path, name: &str, length: Length) -> anyhow::Result<Option<Self>> {
        let file = dir.join(name);
        if !file.try_exists().unwrap_or(true) {
            return Ok(None);
        }
        let text = crate::files::read_text(&file, LARGEST_FILE).with_context(|| name.to_owned())?;
        Self::decode(name, &text, &format!("in `{}`", file.display()), length).map(Some)
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Compares in constant time.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.0.ct_eq(candidate).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}
