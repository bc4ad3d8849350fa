//! The gate for the body of one message: pingora sees the bytes of this message and none of the next request.
//!
//! Chunks are read strictly and passed on in their plainest form: sizes without leading zeros, no extensions, no
//! trailers. So what the upstream receives does not depend on how other programs read the rest.

use bytes::BytesMut;

use super::head::Framing;
use crate::http::chunked::{ChunkFault, Chunks, Part};

/// What may still pass.
#[derive(Debug)]
pub(super) enum Gate {
    /// So many bytes of this message.
    Length(u64),
    /// Chunks until the last one.
    Chunked {
        /// The position in the chunks.
        chunks: Chunks,
        /// Bytes that the chunks have announced so far.
        announced: u64,
        /// The most bytes that the chunks may announce.
        most: u64,
    },
    /// Everything: HTTP/2, or a WebSocket after its handshake.
    Open,
}

/// What is wrong with a message's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BodyFault(pub &'static str);

impl From<ChunkFault> for BodyFault {
    fn from(fault: ChunkFault) -> Self {
        Self(fault.0)
    }
}

impl BodyFault {
    /// The whole body did not arrive in time.
    pub const LATE: Self = Self("the request's body did not arrive in time");
    /// The body announces more bytes than it may have.
    pub const TOO_LARGE: Self = Self("the request's body is too large");
}

impl Gate {
    /// The gate for a message framed like this; extensions and trailers may have `overhead` bytes together.
    pub(super) fn new(framing: Framing, overhead: usize) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked { chunks: Chunks::new(overhead), announced: 0, most: u64::MAX },
        }
    }

    /// Sets the most bytes of a body in chunks. Bytes that were announced before count, too.
    pub(super) fn limit(&mut self, bytes: u64) {
        if let Self::Chunked { most, .. } = self {
            *most = bytes;
        }
    }

    /// Whether the whole message has passed.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked { chunks, .. } => chunks.is_done(),
            Self::Open => false,
        }
    }

    /// So many bytes may pass without being looked at.
    pub(super) fn passes_unseen(&self) -> u64 {
        match self {
            Self::Length(left) => *left,
            Self::Chunked { .. } => 0,
            Self::Open => u64::MAX,
        }
    }

    /// Notes that so many of them have passed.
    pub(super) fn passed(&mut self, count: u64) {
        if let Self::Length(left) = self {
            *left -= count;
        }
    }

    /// Lets bytes pass from `inbox` to `outbox`, at most about `room`.
    pub(super) fn pass(
        &mut self,
        inbox: &mut BytesMut,
        outbox: &mut BytesMut,
        room: usize,
    ) -> Result<(), BodyFault> {
        match self {
            Self::Open => {
                let count = inbox.len().min(room);
                outbox.extend_from_slice(&inbox.split_to(count));
            }
            Self::Length(left) => {
                let count = inbox.len().min(room).min(usize::try_from(*left).unwrap_or(usize::MAX));
                outbox.extend_from_slice(&inbox.split_to(count));
                *left -= count as u64;
            }
            Self::Chunked { chunks, announced, most } => {
                if *announced > *most {
                    return Err(BodyFault::TOO_LARGE);
                }
                while outbox.len() < room
                    && let Some(part) = chunks.next(inbox, room)?
                {
                    match part {
                        Part::Size(size) => {
                            *announced = announced.saturating_add(size);
                            if *announced > *most {
                                return Err(BodyFault::TOO_LARGE);
                            }
                            outbox.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                        }
                        Part::Data(data) => outbox.extend_from_slice(&data),
                        Part::ChunkEnd => outbox.extend_from_slice(b"\r\n"),
                        Part::End => outbox.extend_from_slice(b"0\r\n\r\n"),
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes of `text`, given in pieces of `piece` bytes, and what is left for the next message.
    fn pass(text: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<u8>), BodyFault> {
        let mut gate = Gate::new(Framing::Chunked, 64);
        let (mut inbox, mut passed) = (BytesMut::new(), Vec::new());
        for piece in text.chunks(piece) {
            inbox.extend_from_slice(piece);
            let mut outbox = BytesMut::new();
            gate.pass(&mut inbox, &mut outbox, usize::MAX)?;
            passed.extend_from_slice(&outbox);
        }
        assert!(gate.is_done(), "{passed:?}");
        Ok((passed, inbox.to_vec()))
    }

    #[test]
    fn chunks_pass_in_their_plainest_form_and_the_next_request_stays_behind() {
        let body =
            b"0005;name=value\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Trailer: y\r\n\r\nGET / HTTP/1.1\r\n";
        for piece in [1, 2, 7, 1000] {
            let (passed, left) = pass(body, piece).unwrap();
            assert_eq!(passed, b"5\r\nhello\r\na\r\n0123456789\r\n0\r\n\r\n");
            assert_eq!(left, b"GET / HTTP/1.1\r\n");
        }
    }

    #[test]
    fn a_chunk_that_is_announced_beyond_the_limit_is_too_large_before_it_comes() {
        let mut gate = Gate::new(Framing::Chunked, 64);
        let pass = |gate: &mut Gate, text: &[u8]| {
            gate.pass(&mut BytesMut::from(text), &mut BytesMut::new(), usize::MAX)
        };
        gate.limit(10);
        assert_eq!(pass(&mut gate, b"5\r\nhello\r\n5\r\n"), Ok(()));
        assert_eq!(pass(&mut gate, b"hello\r\n1\r\n"), Err(BodyFault::TOO_LARGE));
        let mut early = Gate::new(Framing::Chunked, 64);
        assert_eq!(pass(&mut early, b"ffffffffffffffff\r\n"), Ok(()), "nobody knows its limit yet");
        early.limit(10);
        assert_eq!(pass(&mut early, b"x"), Err(BodyFault::TOO_LARGE));
    }

    #[test]
    fn a_length_lets_through_no_byte_more() {
        let mut gate = Gate::new(Framing::Length(3), 0);
        let (mut inbox, mut outbox) = (BytesMut::from(&b"abcdef"[..]), BytesMut::new());
        gate.pass(&mut inbox, &mut outbox, 100).unwrap();
        assert_eq!((&outbox[..], &inbox[..], gate.is_done()), (&b"abc"[..], &b"def"[..], true));
    }
}
