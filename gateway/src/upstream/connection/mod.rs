//! A connection to an upstream: one request and its answer.
//!
//! Both directions move at once. The answer is read even while a body waits for the upstream, so an upstream that
//! answers while it reads does not block. One piece of an answer is read at a time, and the next one after the client
//! has taken it: a client that does not read costs the memory of one piece and no more.

mod answer_head;
mod http1;
mod http2;
mod pool;

use bytes::Bytes;
use http::HeaderMap;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v2::client::Http2Session;
use pingora_core::{Error, ErrorType, Result, RetryType};
use pingora_http::{RequestHeader, ResponseHeader};

use http1::Http1;
use http2::Http2;
pub use pool::Pool;

/// What happens on an upstream connection.
#[derive(Debug)]
pub(crate) enum Event {
    /// The piece was sent, or it cannot be sent.
    Sent,
    /// A header, informational or not, and whether nothing follows it.
    Head(Box<ResponseHeader>, bool),
    /// A piece of the answer's body, and whether it is the last.
    Piece(Bytes, bool),
    /// The end of the answer.
    End(Option<HeaderMap>),
}

/// One request and its answer on one connection.
pub(crate) struct UpstreamConnection {
    wire: Wire,
    /// Whether the connection served other requests before.
    reused: bool,
}

enum Wire {
    Http1(Box<Http1>),
    Http2(Box<Http2>),
}

impl UpstreamConnection {
    fn http1(stream: Stream, reused: bool) -> Self {
        Self { wire: Wire::Http1(Box::new(Http1::new(stream))), reused }
    }

    fn http2(stream: Http2Session, reused: bool) -> Self {
        Self { wire: Wire::Http2(Box::new(Http2::new(stream))), reused }
    }

    /// Whether it uses HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.wire, Wire::Http2(_))
    }

    /// Begins with the request's header; `ends` if there is no body, not even an empty one.
    pub(crate) fn begin(&mut self, request: Box<RequestHeader>, scheme: &str, ends: bool) -> Result<()> {
        match &mut self.wire {
            Wire::Http1(connection) => {
                connection.begin(&request)?;
                if ends {
                    connection.send(Bytes::new(), true);
                }
                Ok(())
            }
            Wire::Http2(connection) => connection.begin(request, scheme, ends),
        }
    }

    /// Sends a piece of the request's body. The piece before must be [sent](Event::Sent).
    pub(crate) fn send(&mut self, piece: Bytes, end: bool) {
        match &mut self.wire {
            Wire::Http1(connection) => connection.send(piece, end),
            Wire::Http2(connection) => connection.send(piece, end),
        }
    }

    /// Whether something waits to be sent.
    pub(crate) fn is_sending(&self) -> bool {
        match &self.wire {
            Wire::Http1(connection) => connection.is_sending(),
            Wire::Http2(connection) => connection.is_sending(),
        }
    }

    /// Whether the upstream still reads the request. It may answer even if it does not.
    pub(crate) fn takes_more(&self) -> bool {
        match &self.wire {
            Wire::Http1(connection) => connection.takes_more(),
            Wire::Http2(connection) => connection.takes_more(),
        }
    }

    /// Sends and receives until the next event. Reads the answer only if there is `room` for more of it. Nothing is
    /// lost when this future is dropped early.
    pub(crate) async fn next(&mut self, room: bool) -> Result<Event> {
        std::future::poll_fn(|cx| match &mut self.wire {
            Wire::Http1(connection) => connection.poll_next(cx, room),
            Wire::Http2(connection) => connection.poll_next(cx, room),
        })
        .await
    }

    /// Closes the sending side of a WebSocket.
    pub(crate) fn close_sending(&mut self) {
        if let Wire::Http1(connection) = &mut self.wire {
            connection.close_sending();
        }
    }

    /// Whether `fault` most likely means that the upstream closed a reused connection at the moment when the request
    /// was sent.
    pub(crate) fn is_stale(&self, fault: &Error) -> bool {
        self.reused
            && match &self.wire {
                Wire::Http1(connection) => {
                    !connection.received_any() && *fault.etype() == ErrorType::ConnectionClosed
                }
                Wire::Http2(_) => matches!(fault.retry, RetryType::ReusedOnly),
            }
    }

    /// Whether `fault` says that the upstream did not process the request (RFC 9113, 6.8 and 8.7).
    pub(crate) fn is_untouched(&self, fault: &Error) -> bool {
        let says_so = *fault.etype() == ErrorType::H2Error && matches!(fault.retry, RetryType::Decided(true));
        self.is_http2() && says_so
    }
}

/// For [`crate::fuzz`]: the length of an answer's head is within the bytes.
pub fn fuzz_answer_head(bytes: &[u8]) {
    for head_only in [false, true] {
        if let Ok(Some(head)) = answer_head::parse(bytes, head_only) {
            assert!(head.length <= bytes.len(), "the length is the head's");
        }
    }
}
