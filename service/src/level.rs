//! Which events are logged. The level of the settings counts for our own code; what a library says below `info` is never
//! logged, because at `debug` and `trace` libraries write down bodies, header fields and passwords.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use tracing::Metadata;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::Filter;

/// The targets of our own code.
const OWN: [&str; 5] = ["access", "backend_sqlite", "gateway", "policy", "service"];

/// What the exporter of traces says of itself, with each batch that it loses: [`crate::telemetry`] says it once. That its
/// queue is full nobody else says.
const EXPORTER: &str = "opentelemetry";
const QUEUE_IS_FULL: &str = "SpanDroppingStarted";

/// `log.level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum Level {
    /// What has to be looked at.
    Error,
    /// What may have to be.
    Warn,
    /// What happens.
    #[default]
    Info,
    /// How it happens.
    Debug,
    /// In every detail.
    Trace,
}

/// A word that is no level.
#[derive(Debug, thiserror::Error)]
#[error("error, warn, info, debug or trace (got {0:?})")]
pub struct LevelFault(String);

impl Level {
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    const fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }

    /// The events that are logged at this level.
    pub fn events<S>(self) -> impl Filter<S> {
        let is_wanted: fn(&Metadata<'_>) -> bool =
            |event| !event.target().starts_with(EXPORTER) || event.name().contains(QUEUE_IS_FULL);
        self.targets().and(filter_fn(is_wanted))
    }

    fn targets(self) -> Targets {
        let others = self.min(Self::Info).filter();
        let own = OWN.map(|target| (target, self.filter()));
        Targets::new().with_default(others).with_targets(own).with_target(EXPORTER, LevelFilter::WARN)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Level {
    type Err = LevelFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|level| level.as_str() == text);
        found.ok_or_else(|| LevelFault(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for Level {
    type Error = LevelFault;

    fn try_from(text: String) -> Result<Self, LevelFault> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused_with_those_that_are() {
        assert_eq!("trace".parse::<Level>().unwrap(), Level::Trace);
        for word in ["warning", "inof", "", "INFO", "gateway=trace", "off"] {
            let fault = word.parse::<Level>().unwrap_err().to_string();
            assert_eq!(fault, format!("error, warn, info, debug or trace (got {word:?})"));
        }
    }

    #[test]
    fn libraries_are_logged_from_info_on_whatever_the_level() {
        let logs =
            |level: Level, target: &str, event: tracing::Level| level.targets().would_enable(target, &event);
        assert!(logs(Level::Trace, "gateway::downstream", tracing::Level::TRACE));
        assert!(logs(Level::Trace, "h2::codec", tracing::Level::INFO));
        for library in
            ["h2::codec", "hyper", "rustls", "redis", "lettre", "log", "pingora_core::protocols", "tower"]
        {
            assert!(!logs(Level::Trace, library, tracing::Level::DEBUG), "{library}");
        }
        assert!(
            !logs(Level::Error, "h2", tracing::Level::INFO)
                && !logs(Level::Info, "gateway", tracing::Level::DEBUG)
        );
    }
}
