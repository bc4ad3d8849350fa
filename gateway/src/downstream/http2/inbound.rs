//! Prepares what an HTTP/2 client sends for the `h2` crate, which manages the streams and their windows.
//!
//! Header blocks are read here and not by `h2`, for two reasons: `h2` resets a stream whose header it refuses, so that
//! we could not answer with a reason, and it accepts fewer targets than HTTP/1.1 does. Instead of a block, `h2`
//! receives a dummy block, and the header waits until its stream is accepted. The trailers of a request are checked and
//! end its body.

use std::sync::Arc;

use bytes::{Buf as _, BytesMut};

use super::excess::Excess;
use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FRAME_HEADER, Frame, HEADERS, PADDED, PREFACE, PRIORITY,
};
use super::head::{self, FieldList, HeadBounds};
use super::hpack::Decoder;
use super::waiting::Waiting;

/// The largest frame that a client may send (RFC 9113, 4.2): we allow no larger ones, and `h2` refuses them.
const LARGEST_FRAME: usize = 16_384;

/// The least bound of a block in bytes, before it is decoded; more where the policy allows a header more than half of
/// it. A block that is too large for the policy is still read to its end, so that the refusal can name the reason.
const LARGEST_BLOCK: usize = 128 * 1024;

/// GET of `/` over `http`, all from the static table: `h2` accepts a stream for it.
const NOTHING_SAID: [u8; 3] = [0x82, 0x86, 0x84];

/// A field of index 0, which is an error for every reader of blocks.
const UNREADABLE: [u8; 1] = [0x80];

/// Bytes of a stream's priority (RFC 9113, 6.2).
const PRIORITY_LENGTH: usize = 5;

/// Turns the bytes of the socket into those that `h2` reads.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// So many bytes pass unchanged: the preface, or the rest of a frame.
    passing: usize,
    decoder: Decoder,
    block: Option<Block>,
    /// The highest stream number that the client has begun.
    last_stream: u32,
    bounds: HeadBounds,
    waiting: Arc<Waiting>,
}

/// A header block whose end is still to come.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends_stream: bool,
    priority: Option<[u8; PRIORITY_LENGTH]>,
    bytes: Vec<u8>,
}

impl Inbound {
    /// Begins with the client's preface. Headers that are read go to `waiting`.
    pub(crate) fn new(bounds: HeadBounds, waiting: Arc<Waiting>) -> Self {
        Self { passing: PREFACE, decoder: Decoder::default(), block: None, last_stream: 0, bounds, waiting }
    }

    /// So many bytes may pass without being looked at.
    pub(crate) fn passes_unseen(&self) -> u64 {
        self.passing as u64
    }

    /// Notes that so many of them have passed.
    pub(crate) fn passed(&mut self, count: u64) {
        self.passing = self.passing.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
    }

    /// Turns what arrived into what `h2` reads, at most about `room` bytes.
    pub(crate) fn pass(
        &mut self,
        inbox: &mut BytesMut,
        outbox: &mut BytesMut,
        room: usize,
    ) -> Result<(), Excess> {
        loop {
            let count = self.passing.min(inbox.len()).min(room.saturating_sub(outbox.len()));
            outbox.extend_from_slice(&inbox.split_to(count));
            self.passing -= count;
            if self.passing > 0 || outbox.len() >= room {
                return Ok(());
            }
            let Some(frame) = Frame::read(inbox) else { return Ok(()) };
            let continues = self.block.as_ref().is_some_and(|block| {
                frame.kind == CONTINUATION && frame.stream == block.stream && frame.length <= LARGEST_FRAME
            });
            let begins = self.block.is_none()
                && frame.kind == HEADERS
                && frame.stream % 2 == 1
                && frame.length <= LARGEST_FRAME;
            if !begins && !continues {
                self.give_up_block(outbox);
                self.passing = FRAME_HEADER + frame.length;
                continue;
            }
            if inbox.len() < FRAME_HEADER + frame.length {
                return Ok(());
            }
            let payload = &inbox[FRAME_HEADER..FRAME_HEADER + frame.length];
            let fine = if begins { self.begin(&frame, payload) } else { self.go_on(payload)? };
            if !fine {
                self.passing = FRAME_HEADER + frame.length; // `h2` says what is wrong with it
                continue;
            }
            inbox.advance(FRAME_HEADER + frame.length);
            if frame.ends_headers {
                self.end(outbox)?;
            }
        }
    }

    /// Begins a block; `false` when the frame is malformed.
    fn begin(&mut self, frame: &Frame, payload: &[u8]) -> bool {
        let mut rest = payload;
        if frame.flags & PADDED != 0 {
            let Some((padding, more)) = rest.split_first() else { return false };
            let Some(length) = more.len().checked_sub(usize::from(*padding)) else { return false };
            rest = &more[..length];
        }
        let mut priority = None;
        if frame.flags & PRIORITY != 0 {
            let Some((first, more)) = rest.split_first_chunk::<PRIORITY_LENGTH>() else { return false };
            (priority, rest) = (Some(*first), more);
        }
        let ends_stream = frame.ends_stream;
        self.block = Some(Block { stream: frame.stream, ends_stream, priority, bytes: rest.to_vec() });
        true
    }

    fn go_on(&mut self, payload: &[u8]) -> Result<bool, Excess> {
        let Some(block) = &mut self.block else { return Ok(false) };
        if block.bytes.len() + payload.len() > LARGEST_BLOCK.max(self.bounds.bytes.saturating_mul(2)) {
            return Err(Excess::LargeHeader);
        }
        block.bytes.extend_from_slice(payload);
        Ok(true)
    }

    /// Another frame arrived before the end of a block. `h2` receives the unfinished block and then that frame, and
    /// reports the error.
    fn give_up_block(&mut self, outbox: &mut BytesMut) {
        if let Some(block) = self.block.take() {
            put(outbox, HEADERS, 0, block.stream, &NOTHING_SAID);
        }
    }

    /// A block is complete.
    fn end(&mut self, outbox: &mut BytesMut) -> Result<(), Excess> {
        let Some(Block { stream, ends_stream, priority, bytes }) = self.block.take() else { return Ok(()) };
        let mut fields = FieldList::new(self.bounds);
        if self.decoder.decode(&bytes, |name, value| fields.push(name, value)).is_err() {
            put(outbox, HEADERS, END_HEADERS, stream, &UNREADABLE);
            return Ok(());
        }
        if stream <= self.last_stream {
            if let Err(fault) = head::check_trailers(&fields, ends_stream) {
                self.waiting.note_fault(stream, fault);
            }
            put(outbox, DATA, END_STREAM, stream, &[]);
            return Ok(());
        }
        self.last_stream = stream;
        self.waiting.put(stream, head::request(&fields, ends_stream))?;
        let flags = END_HEADERS | if ends_stream { END_STREAM } else { 0 };
        match priority {
            Some(priority) => {
                let payload = [&priority[..], &NOTHING_SAID].concat();
                put(outbox, HEADERS, flags | PRIORITY, stream, &payload);
            }
            None => put(outbox, HEADERS, flags, stream, &NOTHING_SAID),
        }
        Ok(())
    }
}

/// Writes a short frame.
fn put(outbox: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    outbox.extend_from_slice(&[0, 0, payload.len().to_le_bytes()[0], kind, flags]);
    outbox.extend_from_slice(&stream.to_be_bytes());
    outbox.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[length[1], length[2], length[3], kind, flags], &stream.to_be_bytes()[..], payload].concat()
    }

    fn literal(fields: &[(&str, &str)]) -> Vec<u8> {
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
    }

    fn get(path: &str) -> Vec<u8> {
        literal(&[(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", path)])
    }

    /// What `h2` reads when `bytes` arrive in pieces of `piece`, and the headers that wait.
    fn pass(bytes: &[u8], piece: usize) -> (Vec<u8>, Arc<Waiting>) {
        let waiting = Arc::<Waiting>::default();
        let mut inbound = Inbound::new(HeadBounds { fields: 100, bytes: 64_000 }, Arc::clone(&waiting));
        inbound.passed(PREFACE as u64);
        let (mut inbox, mut passed) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            inbox.extend_from_slice(piece);
            let mut outbox = BytesMut::new();
            inbound.pass(&mut inbox, &mut outbox, usize::MAX).unwrap();
            passed.extend_from_slice(&outbox);
        }
        (passed, waiting)
    }

    #[test]
    fn a_header_is_read_however_it_is_cut_and_h2_gets_one_that_says_nothing() {
        let block = get("/a?\"{|`%\\");
        let bytes = [
            frame(4, 0, 0, &[]),
            frame(HEADERS, PADDED | PRIORITY, 1, &[&[2, 0, 0, 0, 0, 9][..], &block[..7], &[0, 0]].concat()),
            frame(CONTINUATION, 0, 1, &block[7..20]),
            frame(CONTINUATION, END_HEADERS, 1, &block[20..]),
            frame(DATA, END_STREAM, 1, b"a body"),
        ]
        .concat();
        let expected = [
            frame(4, 0, 0, &[]),
            frame(HEADERS, END_HEADERS | PRIORITY, 1, &[0, 0, 0, 0, 9, 0x82, 0x86, 0x84]),
            frame(DATA, END_STREAM, 1, b"a body"),
        ]
        .concat();
        for piece in [1, 2, 5, 1_000] {
            let (passed, waiting) = pass(&bytes, piece);
            assert_eq!(passed, expected);
            let header = waiting.take(1).unwrap();
            assert_eq!(header.raw_path(), b"/a?%22%7B%7C%60%25%5C");
            assert_eq!(header.headers["host"], "h");
        }
    }

    #[test]
    fn what_breaks_the_framing_of_headers_is_left_to_h2() {
        let begun = frame(HEADERS, 0, 1, &get("/"));
        let (passed, waiting) = pass(&[begun, frame(6, 0, 0, &[0; 8])].concat(), 1_000);
        assert_eq!(passed, [frame(HEADERS, 0, 1, &NOTHING_SAID), frame(6, 0, 0, &[0; 8])].concat());
        assert!(waiting.take(1).is_none());
        for unread in [
            frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 1, 2]),
            frame(HEADERS, END_HEADERS | PRIORITY, 1, &[1, 2]),
            frame(HEADERS, END_HEADERS, 2, &get("/")),
            frame(CONTINUATION, END_HEADERS, 1, &get("/")),
            frame(HEADERS, END_HEADERS, 1, &vec![0; LARGEST_FRAME + 1]),
        ] {
            assert_eq!(pass(&unread, 1_000).0, unread);
        }
        let (passed, _) = pass(&frame(HEADERS, END_HEADERS, 1, &[0xbe]), 1_000);
        assert_eq!(passed, frame(HEADERS, END_HEADERS, 1, &UNREADABLE));
    }

    #[test]
    fn trailers_end_the_body_and_are_checked() {
        let request = frame(HEADERS, END_HEADERS, 1, &get("/"));
        for (trailers, flags, sound) in [
            (literal(&[("x-sum", "1")]), END_HEADERS | END_STREAM, true),
            (literal(&[(":path", "/b")]), END_HEADERS | END_STREAM, false),
            (literal(&[("x-\u{e9}", "1")]), END_HEADERS | END_STREAM, false),
            (literal(&[("x-sum", "1")]), END_HEADERS, false),
        ] {
            let (passed, waiting) = pass(&[request.clone(), frame(HEADERS, flags, 1, &trailers)].concat(), 9);
            assert!(passed.ends_with(&frame(DATA, END_STREAM, 1, &[])));
            assert_eq!(waiting.take_fault(1).is_none(), sound, "{trailers:?}");
        }
    }

    #[test]
    fn a_block_without_end_ends_the_connection() {
        let mut inbound = Inbound::new(HeadBounds { fields: 100, bytes: 64_000 }, Arc::default());
        inbound.passed(PREFACE as u64);
        let mut inbox = BytesMut::from(&frame(HEADERS, 0, 1, &get("/"))[..]);
        let ended = (0..100).find(|_| {
            inbox.extend_from_slice(&frame(CONTINUATION, 0, 1, &[0; 16_000]));
            inbound.pass(&mut inbox, &mut BytesMut::new(), usize::MAX) == Err(Excess::LargeHeader)
        });
        assert_eq!(ended, Some(LARGEST_BLOCK / 16_000));
    }
}
