//! The logs that a program of ours writes, and who is told of lines that are dropped.

use std::fmt;
use std::sync::OnceLock;

/// The most bytes of one log that wait to be written.
pub const QUEUE_BYTES: usize = 4 << 20;

/// A log, as metrics and settings name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// What a program says of itself.
    General,
    /// One line a request.
    Access,
    /// One line a change.
    Audit,
}

impl Log {
    /// Every log.
    pub const ALL: [Self; 3] = [Self::General, Self::Access, Self::Audit];

    /// The name in metrics and settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::General => "general",
            Self::Access => "access",
            Self::Audit => "audit",
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

type Report = Box<dyn Fn(Log) + Send + Sync>;

static REPORT: OnceLock<Report> = OnceLock::new();

/// Has `report` called for every line that is dropped from now on; only the first call counts. It must not log.
pub fn report_drops(report: impl Fn(Log) + Send + Sync + 'static) {
    let _ = REPORT.set(Box::new(report));
}

pub(crate) fn dropped(log: Log) {
    if let Some(report) = REPORT.get() {
        report(log);
    }
}
