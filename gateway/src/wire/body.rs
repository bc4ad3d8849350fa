//! The gate behind which one message's body stands: pingora sees its bytes and none of the next request's.
//!
//! Chunks are read strictly and handed on in their plainest form: sizes without leading zeros, no extensions, no
//! trailers. So what the upstream is sent does not depend on how anybody reads the rest.

use bytes::{Buf as _, BytesMut};

use super::head::Framing;

/// What may still pass.
#[derive(Debug)]
pub(super) enum Gate {
    /// So many bytes of this message.
    Length(u64),
    /// Chunks until the last one.
    Chunked(Chunks),
    /// Everything: HTTP/2, or a WebSocket after its handshake.
    Open,
}

/// A message whose body breaks the grammar of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BodyFault(pub &'static str);

impl BodyFault {
    /// It is not all there in time.
    pub const LATE: Self = Self("the request's body did not arrive in time");
}

impl Gate {
    /// The gate for a message framed like this; extensions and trailers may have `overhead` bytes together.
    pub(super) fn new(framing: Framing, overhead: usize) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks { state: State::Size { digits: 0, size: 0 }, overhead }),
        }
    }

    /// Whether the message has been let through whole.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => matches!(chunks.state, State::Done),
            Self::Open => false,
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
            Self::Chunked(chunks) => chunks.pass(inbox, outbox, room)?,
        }
        Ok(())
    }
}

/// Where in a chunked body we are.
#[derive(Debug)]
pub(super) struct Chunks {
    state: State,
    /// Bytes of extensions and trailers that are still allowed.
    overhead: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Done,
}

const MALFORMED: BodyFault = BodyFault("the chunked body is malformed");

impl Chunks {
    fn pass(&mut self, inbox: &mut BytesMut, outbox: &mut BytesMut, room: usize) -> Result<(), BodyFault> {
        while !inbox.is_empty() && outbox.len() < room {
            if let State::Data { left } = self.state {
                let count = inbox.len().min(room).min(usize::try_from(left).unwrap_or(usize::MAX));
                outbox.extend_from_slice(&inbox.split_to(count));
                let left = left - count as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                continue;
            }
            if matches!(self.state, State::Done) {
                break;
            }
            let byte = inbox[0];
            inbox.advance(1);
            self.state = self.step(byte, outbox)?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8, outbox: &mut BytesMut) -> Result<State, BodyFault> {
        // More digits than a 64-bit length needs are a way to hide one.
        const MAX_DIGITS: u8 = 16;
        Ok(match self.state {
            State::Size { digits, size } => match (byte, char::from(byte).to_digit(16)) {
                (_, Some(digit)) if digits < MAX_DIGITS => {
                    State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) }
                }
                (b'\r', _) if digits > 0 => State::SizeEnd { size },
                (b';', _) if digits > 0 => State::Extension { size },
                _ => return Err(MALFORMED),
            },
            State::Extension { size } => match byte {
                b'\r' => State::SizeEnd { size },
                b'\t' | b' '..=b'~' => {
                    self.count()?;
                    State::Extension { size }
                }
                _ => return Err(MALFORMED),
            },
            State::SizeEnd { size } if byte == b'\n' => {
                if size > 0 {
                    outbox.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                    State::Data { left: size }
                } else {
                    State::TrailerStart
                }
            }
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => {
                outbox.extend_from_slice(b"\r\n");
                State::Size { digits: 0, size: 0 }
            }
            State::TrailerStart if byte == b'\r' => State::LastLf,
            State::TrailerStart | State::TrailerName => {
                self.count()?;
                match byte {
                    b':' if matches!(self.state, State::TrailerName) => State::TrailerValue,
                    name if is_token(name) => State::TrailerName,
                    _ => return Err(MALFORMED),
                }
            }
            State::TrailerValue => match byte {
                b'\r' => State::TrailerLf,
                b'\t' | b' '..=b'~' => {
                    self.count()?;
                    State::TrailerValue
                }
                _ => return Err(MALFORMED),
            },
            State::TrailerLf if byte == b'\n' => State::TrailerStart,
            State::LastLf if byte == b'\n' => {
                outbox.extend_from_slice(b"0\r\n\r\n");
                State::Done
            }
            _ => return Err(MALFORMED),
        })
    }

    fn count(&mut self) -> Result<(), BodyFault> {
        self.overhead =
            self.overhead.checked_sub(1).ok_or(BodyFault("chunk extensions and trailers are too large"))?;
        Ok(())
    }
}

/// RFC 9110, 5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
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
    fn what_is_no_chunk_is_refused() {
        for body in [
            &b"\r\n"[..],
            b"5\nhello\r\n",
            b"0x5\r\nhello",
            b"+5\r\n",
            b" 5\r\n",
            b"5 \r\n",
            b"5;\0\r\n",
            b"5;a\nb\r\n",
            b"5\r\nhelloXX",
            b"5\r\nhello\n",
            b"11111111111111111\r\n",
            b"0\r\nno colon\r\n",
            b"0\r\n: no name\r\n",
            b"0\r\nA: b\r\n folded\r\n",
            b"0\r\nA: b\nB: c\r\n",
        ] {
            assert!(pass(body, 3).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
        let long = format!("5;{}\r\n", "a".repeat(65));
        assert_eq!(pass(long.as_bytes(), 9), Err(BodyFault("chunk extensions and trailers are too large")));
    }

    #[test]
    fn a_length_lets_through_no_byte_more() {
        let mut gate = Gate::new(Framing::Length(3), 0);
        let (mut inbox, mut outbox) = (BytesMut::from(&b"abcdef"[..]), BytesMut::new());
        gate.pass(&mut inbox, &mut outbox, 100).unwrap();
        assert_eq!((&outbox[..], &inbox[..], gate.is_done()), (&b"abc"[..], &b"def"[..], true));
    }
}
