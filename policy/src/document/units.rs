//! Quantities, as an operator writes them: `"30s"`, `"1MB"`, `"5/min"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::from_toml_str;

/// The longest duration that may be written: ten years. The present time plus several of them does not overflow.
pub const LONGEST_SPAN: Duration = Duration::from_hours(10 * 8_766);

/// The largest size that may be written: `"1PB"`.
pub const LARGEST_SIZE: u64 = 1_000_000_000_000_000;

/// A duration: `"100ms"`, `"30s"`, `"5m"`, `"1h"`, `"7d"`; at most [`LONGEST_SPAN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text)
            .ok()
            .filter(|duration| *duration <= LONGEST_SPAN)
            .map(Self)
            .ok_or("a duration like \"100ms\", \"30s\", \"5m\" or \"7d\", at most \"10y\"")
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A number of bytes: `"1MB"` is a million, `"1MiB"` is 2²⁰; at most [`LARGEST_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        bytesize::ByteSize::from_str(text)
            .ok()
            .filter(|size| size.0 <= LARGEST_SIZE)
            .map(|size| Self(size.0))
            .ok_or("a size like \"64KB\" or \"1MiB\", at most \"1PB\"")
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).display().si().fmt(f)
    }
}

/// A number of requests in a unit of time: `"10/s"`, `"5/min"`, `"3/h"`, `"1000/day"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests, from one to a million.
    pub count: u32,
    /// One second, minute, hour or day.
    pub per: Duration,
}

impl Rate {
    const UNITS: [(&str, u64); 4] = [("s", 1), ("min", 60), ("h", 3_600), ("day", 86_400)];
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = "N/s, N/min, N/h or N/day with N from 1 to 1000000";
        let (count, unit) = text.split_once('/').ok_or(allowed)?;
        let count = count.parse().ok().filter(|count| (1..=1_000_000).contains(count)).ok_or(allowed)?;
        let (_, seconds) = Self::UNITS.into_iter().find(|(name, _)| *name == unit).ok_or(allowed)?;
        Ok(Self { count, per: Duration::from_secs(seconds) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = Self::UNITS.into_iter().find(|(_, seconds)| *seconds == self.per.as_secs());
        write!(f, "{}/{}", self.count, unit.map_or("s", |(name, _)| name))
    }
}

from_toml_str!(Span, Bytes, Rate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_they_are_written() {
        assert_eq!("5/min".parse(), Ok(Rate { count: 5, per: Duration::from_mins(1) }));
        assert_eq!("5/min".parse::<Rate>().unwrap().to_string(), "5/min");
        assert_eq!("1MB".parse(), Ok(Bytes(1_000_000)));
        assert_eq!("64KiB".parse(), Ok(Bytes(65_536)));
        assert_eq!("1h".parse(), Ok(Span(Duration::from_hours(1))));
    }

    #[test]
    fn anything_that_is_not_a_quantity_is_refused() {
        for text in ["0/s", "5/minute", "5", "/s", "-1/s", "1000001/s", "1.5/s", "5 / s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for text in ["fast", "", "-1s", "300000000000y", "10y 1s", "99999999999999999999s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert_eq!("10y".parse(), Ok(Span(LONGEST_SPAN)));
        for text in ["big", "-1", "1000001GB", "99999999999999999999", "1e300PB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
