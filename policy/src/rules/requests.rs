//! `[requests]`: the bounds of every request.

use std::time::Duration;

use crate::document::Section;
use crate::document::units::{Bytes, Span};
use crate::values::path::EncodedSlash;
use crate::words;

/// The bounds of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRule {
    /// The largest body, in bytes.
    pub max_body: u64,
    /// The most header fields.
    pub max_headers: usize,
    /// The most bytes of request line and header fields together.
    pub header_bytes: usize,
    /// The most connections from one client address.
    pub max_connections: u32,
    /// The time for the whole header, even if it arrives slowly but steadily.
    pub header_timeout: Duration,
    /// The time for the whole body, even if it arrives slowly but steadily.
    pub request_timeout: Duration,
    /// The time between two requests on one connection.
    pub idle_timeout: Duration,
    /// The connection is closed when the client reads nothing for this time.
    pub write_timeout: Duration,
    /// What happens to `%2F` and `%5C` in a path.
    pub encoded_slash: EncodedSlash,
    /// The time for the upstream to answer.
    pub upstream_timeout: Duration,
}

/// The fixed size of the parser's table of header fields, and so the largest `max_headers`.
pub const MAX_HEADERS: u32 = 256;

impl Default for RequestRule {
    fn default() -> Self {
        Self {
            max_body: 1_000_000,
            max_headers: 100,
            header_bytes: 64_000,
            max_connections: 100,
            header_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(1),
            write_timeout: Duration::from_secs(30),
            encoded_slash: EncodedSlash::Refuse,
            upstream_timeout: Duration::from_secs(30),
        }
    }
}

impl RequestRule {
    pub(crate) fn read(section: Option<Section<'_>>) -> Self {
        let defaults = Self::default();
        let Some(section) = section else { return defaults };
        let timeout = |key: &'static str, default: Duration| {
            section
                .get_checked(key, Span(default), |span| {
                    (!span.0.is_zero()).then_some(()).ok_or("longer than 0s (got 0s)".to_owned())
                })
                .0
        };
        let max_headers = section.get_checked("max_headers", 100, |number| {
            (1..=MAX_HEADERS)
                .contains(number)
                .then_some(())
                .ok_or(format!("from 1 to {MAX_HEADERS} (got {number})"))
        });
        let header_bytes = section.get_checked("header_bytes", Bytes(64_000), |size| {
            (1_000..=1_000_000).contains(&size.0).then_some(()).ok_or(format!("from 1KB to 1MB (got {size})"))
        });
        let rule = Self {
            max_body: section.get_or("max_body", Bytes(defaults.max_body)).0,
            max_headers: usize::try_from(max_headers).unwrap_or(defaults.max_headers),
            header_bytes: usize::try_from(header_bytes.0).unwrap_or(defaults.header_bytes),
            max_connections: section.get_checked("max_connections", defaults.max_connections, |number| {
                (*number > 0).then_some(()).ok_or("at least 1 (got 0)".to_owned())
            }),
            header_timeout: timeout("header_timeout", defaults.header_timeout),
            request_timeout: timeout("request_timeout", defaults.request_timeout),
            idle_timeout: timeout("idle_timeout", defaults.idle_timeout),
            write_timeout: timeout("write_timeout", defaults.write_timeout),
            encoded_slash: section.get_or("encoded_slash", EncodedSlash::Refuse),
            upstream_timeout: timeout("upstream_timeout", defaults.upstream_timeout),
        };
        section.finish();
        rule
    }
}

words! { EncodedSlash { "refuse" => Refuse, "keep" => Keep } or "refuse or keep" }
