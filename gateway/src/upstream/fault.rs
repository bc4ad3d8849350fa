//! Which rule an upstream's answer broke: a word for the metric and a sentence for the logs. Both come from one table,
//! so no part of an answer is ever quoted. Clients see neither.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pingora_core::{Error, ErrorType, ImmutStr};
use tokio::time::Instant;
use tracing::warn;

/// The longest text of a fault in the log, in bytes. A failed connection has the longest texts: they name addresses and
/// certificates.
const LONGEST: usize = 300;

/// The shortest time between two log lines about one kind of fault at one upstream.
const QUIET: Duration = Duration::from_secs(10);

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $word:literal $says:literal;)+) => {
        /// The rule that an answer broke.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum UpstreamFault { $($(#[$doc])* $name,)+ }

        impl UpstreamFault {
            const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word in the metric.
            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }

            /// The sentence in the logs.
            pub(crate) const fn says(self) -> &'static str {
                match self { $(Self::$name => $says,)+ }
            }
        }
    };
}

faults! {
    /// No connection, or no TLS on it, could be made.
    Connect = "connect" "no connection could be made";
    /// Nothing arrived in time.
    Timeout = "timeout" "nothing arrived from the upstream in time";
    /// It stopped reading the request.
    WriteTimeout = "write_timeout" "it read nothing of the request in time";
    /// It closed before the first byte.
    NoAnswer = "no_answer" "the connection ended before the first byte of an answer";
    /// It closed within the header.
    HeaderCut = "header_cut" "the connection ended within the answer's header";
    /// It closed within the body.
    BodyCut = "body_cut" "the connection ended before the answer's body did";
    /// The status line.
    StatusLine = "status_line" "the answer does not begin with the status line of HTTP/1.0 or HTTP/1.1";
    /// The name of a field.
    FieldName = "field_name" "the name of a field in the answer's header breaks the grammar";
    /// The value of a field.
    FieldValue = "field_value" "the value of a field in the answer's header breaks the grammar";
    /// The end of a line.
    LineEnd = "line_end" "a line of the answer's header ends in a carriage return without a line feed";
    /// Too many fields.
    TooManyFields = "too_many_fields" "the answer's header has too many fields";
    /// Too many bytes.
    HeaderTooLarge = "header_too_large" "the answer's header, or its trailers, have too many bytes";
    /// No length.
    LengthMalformed = "length_malformed" "the answer's Content-Length is not a number";
    /// More than one length.
    LengthsDiffer = "lengths_differ" "the answer has two different Content-Lengths";
    /// Both framings.
    LengthAndChunks = "length_and_chunks" "the answer has both Content-Length and Transfer-Encoding";
    /// Another coding.
    TransferEncoding = "transfer_encoding" "the answer's Transfer-Encoding is not one `chunked` of HTTP/1.1";
    /// The chunks.
    Chunks = "chunks" "the answer's body breaks the grammar of chunks";
    /// The bytes around the chunks.
    ChunkOverhead = "chunk_overhead" "the answer's chunk extensions and trailers have too many bytes";
    /// The trailers.
    Trailers = "trailers" "the answer's trailers break the grammar";
    /// 101 as the answer to a request that was not a handshake.
    Upgrade = "upgrade" "the answer changes to a protocol that was not asked for";
    /// HTTP/2 itself.
    Http2 = "http2" "the answer breaks the rules of HTTP/2, or its stream was reset";
    /// HTTP/2 was required and not agreed on.
    Http2Refused = "http2_refused" "the upstream does not speak HTTP/2 on this connection";
    /// Any other fault.
    Other = "other" "the answer cannot be passed on";
}

impl UpstreamFault {
    /// The error for an answer that breaks this rule.
    #[expect(clippy::unnecessary_box_returns, reason = "pingora's errors are boxed wherever they go")]
    pub(crate) fn error(self) -> Box<Error> {
        let kind = match self {
            Self::NoAnswer | Self::HeaderCut | Self::BodyCut => ErrorType::ConnectionClosed,
            Self::Chunks | Self::ChunkOverhead => ErrorType::ReadError,
            Self::Timeout => ErrorType::ReadTimedout,
            Self::WriteTimeout => ErrorType::WriteTimedout,
            _ => ErrorType::InvalidHTTPHeader,
        };
        Error::explain(kind, self.says()).into_up()
    }

    /// The rule that `fault` is about.
    pub(crate) fn of(fault: &Error) -> Self {
        use ErrorType::{
            BindError, ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout, ConnectionClosed,
            H2Downgrade, H2Error, InvalidCert, InvalidH2, ReadError, ReadTimedout, SocketError,
            TLSHandshakeFailure, TLSHandshakeTimedout, WriteTimedout,
        };
        let said = match &fault.context {
            Some(ImmutStr::Static(said)) => Self::ALL.iter().find(|known| known.says() == *said),
            _ => None,
        };
        let kind = || match fault.etype() {
            BindError | ConnectError | ConnectNoRoute | ConnectRefused | ConnectTimedout | InvalidCert
            | SocketError | TLSHandshakeFailure | TLSHandshakeTimedout => Self::Connect,
            ReadTimedout => Self::Timeout,
            WriteTimedout => Self::WriteTimeout,
            ConnectionClosed => Self::BodyCut,
            H2Downgrade => Self::Http2Refused,
            H2Error | InvalidH2 | ReadError => Self::Http2,
            _ => Self::Other,
        };
        said.copied().unwrap_or_else(kind)
    }

    /// The text of `fault` for the log. A failed connection is described in full, because the upstream has not answered
    /// anything that could be quoted.
    pub(crate) fn text(self, fault: &Error) -> String {
        let reason = fault.cause.as_ref().and_then(|cause| cause.downcast_ref::<h2::Error>()?.reason());
        match (self, reason) {
            (Self::Connect, _) => fault.to_string().chars().take(LONGEST).collect(),
            (Self::Http2, Some(reason)) => format!("{}: {}", self.says(), reason.description()),
            _ => self.says().to_owned(),
        }
    }
}

/// When a kind of fault at an upstream was last logged, and how often it came since.
#[derive(Default)]
pub struct FaultLog(Mutex<HashMap<(Arc<str>, UpstreamFault), Said>>);

#[derive(Default)]
struct Said {
    last: Option<Instant>,
    unsaid: u64,
}

impl FaultLog {
    /// Logs a fault, unless one of the same kind was logged a moment ago.
    pub(crate) fn note(&self, upstream: &Arc<str>, fault: UpstreamFault, text: &str, request_id: &str) {
        let now = Instant::now();
        let unsaid = {
            let mut all = self.0.lock();
            let said = all.entry((Arc::clone(upstream), fault)).or_default();
            if said.last.is_some_and(|last| now - last < QUIET) {
                said.unsaid += 1;
                return;
            }
            said.last = Some(now);
            std::mem::take(&mut said.unsaid)
        };
        warn!(
            upstream = &**upstream,
            fault = fault.word(),
            detail = text,
            request_id,
            not_logged_since_the_last = unsaid,
            "an upstream failed a request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_rule_is_told_apart_and_nothing_is_quoted() {
        let all = UpstreamFault::ALL;
        assert_eq!(all.iter().map(|fault| fault.word()).collect::<HashSet<_>>().len(), all.len());
        assert_eq!(all.iter().map(|fault| fault.says()).collect::<HashSet<_>>().len(), all.len());
        for fault in all {
            assert_eq!(UpstreamFault::of(&fault.error()), *fault);
        }
        let quoting = Error::explain(ErrorType::InvalidHTTPHeader, "an answer".to_owned());
        let fault = UpstreamFault::of(&quoting);
        assert_eq!(
            (fault, fault.text(&quoting)),
            (UpstreamFault::Other, UpstreamFault::Other.says().to_owned())
        );
        let refused = Error::explain(ErrorType::ConnectRefused, "127.0.0.1:1".to_owned());
        assert!(UpstreamFault::of(&refused).text(&refused).contains("127.0.0.1:1"));
    }
}
