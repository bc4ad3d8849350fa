//! Where an upstream is, as the settings name it.

use std::fmt;
use std::path::PathBuf;

use anyhow::bail;

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`
    Tcp(String),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl Address {
    /// Reads `HOST:PORT` or `unix:PATH`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            None if service::settings::is_host_port(text) && !text.ends_with(":0") => {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => bail!("HOST:PORT or unix:PATH (got {text:?})"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
