//! The strict reading of a body in chunks (RFC 9112, 7.1), of requests and of answers alike.

use bytes::{Buf as _, BytesMut};

/// A body that breaks the grammar of chunks, or whose extensions and trailers are too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChunkFault(pub &'static str);

impl ChunkFault {
    /// Extensions and trailers have too many bytes.
    pub(crate) const TOO_LARGE: Self = Self("chunk extensions and trailers are too large");
}

const MALFORMED: ChunkFault = ChunkFault("the chunked body is malformed");

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A chunk of so many bytes begins.
    Size(u64),
    /// Bytes of a chunk.
    Data(BytesMut),
    /// The chunk ends.
    ChunkEnd,
    /// The body ends.
    End,
}

/// Where in a body we are.
#[derive(Debug)]
pub(crate) struct Chunks {
    state: State,
    /// Bytes of extensions and trailers that are still allowed.
    overhead: usize,
    trailers: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size { digits: u8, size: u64 },
    SizeBlank { size: u64 },
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

impl Chunks {
    /// The start of a body; extensions and trailers may have `overhead` bytes together.
    pub(crate) fn new(overhead: usize) -> Self {
        Self { state: State::Size { digits: 0, size: 0 }, overhead, trailers: None }
    }

    /// Likewise, of a body whose trailers are wanted.
    pub(crate) fn keeping_trailers(overhead: usize) -> Self {
        Self { trailers: Some(Vec::new()), ..Self::new(overhead) }
    }

    /// Whether the last chunk and the trailers are read.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The trailers that were kept, as lines that end with CR LF; nothing of them breaks the grammar.
    pub(crate) fn trailers(&self) -> &[u8] {
        self.trailers.as_deref().unwrap_or_default()
    }

    /// Reads on, at most `room` bytes of data; `None` when there is too little to tell, and after the end.
    pub(crate) fn next(&mut self, inbox: &mut BytesMut, room: usize) -> Result<Option<Part>, ChunkFault> {
        while !inbox.is_empty() && !self.is_done() {
            if let State::Data { left } = self.state {
                let count = inbox.len().min(room).min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - count as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                return Ok(Some(Part::Data(inbox.split_to(count))));
            }
            let byte = inbox[0];
            inbox.advance(1);
            let (state, part) = self.step(byte)?;
            self.state = state;
            if part.is_some() {
                return Ok(part);
            }
        }
        Ok(None)
    }

    fn step(&mut self, byte: u8) -> Result<(State, Option<Part>), ChunkFault> {
        // More digits than a 64-bit length needs are a way to hide one.
        const MAX_DIGITS: u8 = 16;
        let state = match self.state {
            State::Size { digits, size } => match (byte, char::from(byte).to_digit(16)) {
                (_, Some(digit)) if digits < MAX_DIGITS => {
                    State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) }
                }
                (b'\r', _) if digits > 0 => State::SizeEnd { size },
                (b';', _) if digits > 0 => State::Extension { size },
                (b' ' | b'\t', _) if digits > 0 => State::SizeBlank { size },
                _ => return Err(MALFORMED),
            },
            State::SizeBlank { size } => match byte {
                b';' => State::Extension { size },
                b' ' | b'\t' => {
                    self.count()?;
                    self.state
                }
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
                    return Ok((State::Data { left: size }, Some(Part::Size(size))));
                }
                State::TrailerStart
            }
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => {
                return Ok((State::Size { digits: 0, size: 0 }, Some(Part::ChunkEnd)));
            }
            State::TrailerStart if byte == b'\r' => State::LastLf,
            State::TrailerStart | State::TrailerName | State::TrailerValue | State::TrailerLf => {
                self.count()?;
                if let Some(trailers) = &mut self.trailers {
                    trailers.push(byte);
                }
                self.trailer(byte)?
            }
            State::LastLf if byte == b'\n' => return Ok((State::Done, Some(Part::End))),
            _ => return Err(MALFORMED),
        };
        Ok((state, None))
    }

    fn trailer(&self, byte: u8) -> Result<State, ChunkFault> {
        Ok(match (self.state, byte) {
            (State::TrailerName, b':') | (State::TrailerValue, b'\t' | b' '..=b'~') => State::TrailerValue,
            (State::TrailerStart | State::TrailerName, name) if is_token(name) => State::TrailerName,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            _ => return Err(MALFORMED),
        })
    }

    fn count(&mut self) -> Result<(), ChunkFault> {
        self.overhead = self.overhead.checked_sub(1).ok_or(ChunkFault::TOO_LARGE)?;
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

    /// The data of `text`, given in pieces of `piece` bytes, its trailers, and what is left for the next message.
    fn read(text: &[u8], piece: usize) -> Result<[Vec<u8>; 3], ChunkFault> {
        let mut chunks = Chunks::keeping_trailers(64);
        let (mut inbox, mut data) = (BytesMut::new(), Vec::new());
        for piece in text.chunks(piece) {
            inbox.extend_from_slice(piece);
            while let Some(part) = chunks.next(&mut inbox, 4)? {
                if let Part::Data(piece) = part {
                    assert!(piece.len() <= 4);
                    data.extend_from_slice(&piece);
                }
            }
        }
        assert!(chunks.is_done(), "{data:?}");
        Ok([data, chunks.trailers().to_vec(), inbox.to_vec()])
    }

    #[test]
    fn data_and_trailers_are_read_and_the_next_message_stays_behind() {
        let body = b"0005 \t;name=value\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Trailer: y\r\nZ:\r\n\r\nGET / HTTP/1.1\r\n";
        for piece in [1, 2, 7, 1000] {
            let [data, trailers, left] = read(body, piece).unwrap();
            assert_eq!(data, b"hello0123456789");
            assert_eq!(trailers, b"X-Trailer: y\r\nZ:\r\n");
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
            assert!(read(body, 3).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
        let long = format!("5;{}\r\n", "a".repeat(65));
        assert_eq!(read(long.as_bytes(), 9), Err(ChunkFault::TOO_LARGE));
    }
}
