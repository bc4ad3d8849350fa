//! Counts the frames of an HTTP/2 client as they pass, to bound what costs us work (RFC 9113, 10.5).
//!
//! Some frames cost the client nothing and us work: requests that are reset before they are answered (CVE-2023-44487),
//! pings, settings, window updates of one byte, empty frames (CVE-2019-9512 to 9518). A client that also sends requests
//! and bodies and reads answers may send such frames as often as normal clients do. Beyond that its connection ends
//! with `ENHANCE_YOUR_CALM`. A header that arrives slowly has the same deadline as over HTTP/1.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::excess::Excess;
use super::waiting::Waiting;

/// Requests that the client resets before they are answered. A client starts with [`RESETS`] points. Each reset costs
/// [`RESET_COSTS`]; each request and each tenth of a second earns one. So half of all requests may be reset, and five a
/// second besides, without limit.
const RESETS: u32 = 200;
const RESET_COSTS: u32 = 2;
const RESETS_PER_SECOND: u32 = 10;

/// Frames that ask for nothing: so many at the start, and so many more for each second, each request, each piece of a
/// body and each piece of an answer. Clients answer a piece with window updates, and some with a ping.
const IDLE: u32 = 1_000;
const IDLE_PER_SECOND: u32 = 10;
const IDLE_PER_REQUEST: u32 = 10;
const IDLE_PER_PIECE: u32 = 2;
const IDLE_PER_PIECE_TAKEN: u32 = 4;
const IDLE_PER_KIB: u32 = 2;

/// The frames of one connection, both ways.
#[derive(Debug)]
pub(crate) struct Frames {
    from_client: Walk,
    to_client: Walk,
    header_timeout: std::time::Duration,
    /// The deadline of a header that has begun to arrive.
    header_deadline: Option<Instant>,
    /// The highest stream number that the client has begun.
    last_stream: u32,
    resets: u32,
    idle: u32,
    counted_at: Instant,
    sent: u64,
    /// Streams whose answer has begun and continues; at most as many as may be open.
    answered: BTreeSet<u32>,
    /// Headers of streams that are not accepted yet.
    waiting: Arc<Waiting>,
}

impl Frames {
    /// The frames that follow the client's preface.
    pub(crate) fn new(header_timeout: std::time::Duration, waiting: Arc<Waiting>, now: Instant) -> Self {
        Self {
            from_client: Walk { skip: PREFACE, ..Walk::default() },
            to_client: Walk::default(),
            header_timeout,
            header_deadline: None,
            last_stream: 0,
            resets: RESETS,
            idle: IDLE,
            counted_at: now,
            sent: 0,
            answered: BTreeSet::new(),
            waiting,
        }
    }

    /// The deadline of the header that is arriving.
    pub(crate) fn header_deadline(&self) -> Option<Instant> {
        self.header_deadline
    }

    /// Counts what the client sent.
    pub(crate) fn received(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Excess> {
        let seconds = now.saturating_duration_since(self.counted_at).as_secs();
        if seconds > 0 {
            let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
            self.earn(seconds.saturating_mul(IDLE_PER_SECOND));
            self.resets = self.resets.saturating_add(seconds.saturating_mul(RESETS_PER_SECOND)).min(RESETS);
            self.counted_at = now;
        }
        loop {
            self.from_client.skip(&mut bytes);
            if self.from_client.is_between_headers() {
                self.header_deadline = None;
            }
            let Some(frame) = self.from_client.next(&mut bytes) else { break };
            self.count(frame)?;
        }
        // A frame has begun that may be a header. It must be complete by this deadline.
        if !self.from_client.is_between_headers() {
            self.header_deadline.get_or_insert(now + self.header_timeout);
        }
        Ok(())
    }

    /// Notes what was sent to the client.
    pub(crate) fn wrote(&mut self, mut bytes: &[u8]) {
        self.sent += bytes.len() as u64;
        if self.sent >= 1024 {
            self.earn(u32::try_from(self.sent / 1024).unwrap_or(u32::MAX).saturating_mul(IDLE_PER_KIB));
            self.sent %= 1024;
        }
        while let Some(frame) = self.to_client.next(&mut bytes) {
            match frame.kind {
                DATA => self.earn(IDLE_PER_PIECE_TAKEN),
                HEADERS => {
                    self.answered.insert(frame.stream);
                }
                _ => {}
            }
            if frame.kind == RST_STREAM {
                self.waiting.forget(frame.stream);
            }
            if frame.kind == RST_STREAM || (matches!(frame.kind, DATA | HEADERS) && frame.ends_stream) {
                self.answered.remove(&frame.stream);
            }
        }
    }

    /// The frame with which the connection ends; `None` in the middle of another frame.
    pub(crate) fn closing_frame(&self, why: Excess) -> Option<Vec<u8>> {
        let reason = why.to_string();
        let length = u8::try_from(8 + reason.len()).ok()?;
        let mut frame = vec![0, 0, length, GOAWAY, 0, 0, 0, 0, 0];
        frame.extend(self.last_stream.to_be_bytes());
        frame.extend(ENHANCE_YOUR_CALM.to_be_bytes());
        frame.extend(reason.as_bytes());
        self.to_client.is_between_frames().then_some(frame)
    }

    fn earn(&mut self, more: u32) {
        self.idle = self.idle.saturating_add(more).min(IDLE);
    }

    fn count(&mut self, frame: Frame) -> Result<(), Excess> {
        match frame.kind {
            HEADERS if frame.stream > self.last_stream => {
                self.last_stream = frame.stream;
                self.resets = (self.resets + 1).min(RESETS);
                self.earn(IDLE_PER_REQUEST);
            }
            // A padded frame may hold nothing but padding.
            DATA if frame.length > 0 && !frame.padded => self.earn(IDLE_PER_PIECE),
            // A client may reset a request whose answer has begun.
            RST_STREAM if self.answered.remove(&frame.stream) => {}
            RST_STREAM => {
                // The request that is reset has earned a point, too.
                self.resets = self.resets.checked_sub(RESET_COSTS).ok_or(Excess::Resets)?;
            }
            _ => self.idle = self.idle.checked_sub(1).ok_or(Excess::Idle)?,
        }
        Ok(())
    }
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITY: u8 = 0x20;
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// Bytes of the client's preface (RFC 9113, 3.4).
pub(crate) const PREFACE: usize = 24;

/// Bytes of a frame's header (RFC 9113, 4.1).
pub(crate) const FRAME_HEADER: usize = 9;

/// The header of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    /// Bytes of its payload.
    pub(crate) length: usize,
    pub(crate) ends_headers: bool,
    padded: bool,
    pub(crate) ends_stream: bool,
}

impl Frame {
    /// The header at the start of `bytes`, once it is complete.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(Self::of)
    }

    fn of(header: &[u8; FRAME_HEADER]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *header;
        Self {
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            ends_headers: flags & END_HEADERS != 0,
            padded: flags & PADDED != 0,
            ends_stream: flags & END_STREAM != 0,
        }
    }
}

/// Walks from frame to frame through bytes that arrive in pieces of any size.
#[derive(Debug, Default)]
struct Walk {
    header: [u8; FRAME_HEADER],
    have: usize,
    /// Bytes of the payload, or of the preface, that are still to come.
    skip: usize,
    last: Option<Frame>,
}

impl Walk {
    /// Moves to the end of the frame.
    fn skip(&mut self, bytes: &mut &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        *bytes = &bytes[skipped..];
    }

    /// The next frame that begins in `bytes`, once its header is complete.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        self.skip(bytes);
        let taken = (FRAME_HEADER - self.have).min(bytes.len());
        self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        self.have += taken;
        *bytes = &bytes[taken..];
        if self.have < FRAME_HEADER {
            return None;
        }
        self.have = 0;
        let frame = Frame::of(&self.header);
        self.skip = frame.length;
        self.last = Some(frame);
        Some(frame)
    }

    fn is_between_frames(&self) -> bool {
        self.have == 0 && self.skip == 0
    }

    /// Whether no header, and nothing that may become one, has arrived only in part.
    fn is_between_headers(&self) -> bool {
        let in_block = self.last.is_some_and(|last| {
            let carries = matches!(last.kind, HEADERS | CONTINUATION);
            carries && (!last.ends_headers || self.skip > 0)
        });
        self.have == 0 && !in_block
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn opened(now: Instant) -> Frames {
        let mut frames = Frames::new(TIMEOUT, Arc::default(), now);
        frames.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now).unwrap();
        frames
    }

    fn request(number: u32) -> Vec<u8> {
        frame(HEADERS, END_HEADERS, number * 2 + 1, b"abc")
    }

    #[test]
    fn half_of_all_requests_may_be_reset_and_no_more() {
        let now = Instant::now();
        let mut frames = opened(now);
        for number in 0..10_000 {
            frames.received(&request(number), now).unwrap();
            if number % 2 == 0 {
                frames.received(&frame(RST_STREAM, 0, number * 2 + 1, &[0; 4]), now).unwrap();
            }
        }
        let mut frames = opened(now);
        let ended = (0..10_000).find(|number| {
            frames.received(&request(*number), now).unwrap();
            frames.received(&frame(RST_STREAM, 0, number * 2 + 1, &[0; 4]), now) == Err(Excess::Resets)
        });
        assert_eq!(ended, Some(RESETS - 1), "a client that resets all that it asks");
        assert_eq!(frames.last_stream, (RESETS - 1) * 2 + 1);
        let mut frames = opened(now);
        for second in 0..10_000 {
            let later = now + Duration::from_secs(u64::from(second));
            frames.received(&request(second), later).unwrap();
            frames.received(&frame(RST_STREAM, 0, second * 2 + 1, &[0; 4]), later).unwrap();
        }
    }

    #[test]
    fn an_answer_that_has_begun_may_be_ended_at_any_time() {
        let now = Instant::now();
        let mut frames = opened(now);
        for number in 0..10_000 {
            let stream = number * 2 + 1;
            frames.received(&request(number), now).unwrap();
            frames.wrote(&frame(HEADERS, END_HEADERS, stream, b"a"));
            frames.wrote(&frame(DATA, 0, stream, b"first"));
            frames.received(&frame(RST_STREAM, 0, stream, &[0; 4]), now).unwrap();
        }
        frames.wrote(&frame(HEADERS, END_HEADERS, 1, b"a"));
        frames.wrote(&frame(DATA, END_STREAM, 1, b"all"));
        assert!(frames.answered.is_empty(), "nothing is remembered of what is over");
    }

    #[test]
    fn frames_that_ask_for_nothing_have_a_bound_that_grows_with_what_is_asked_and_taken() {
        let now = Instant::now();
        let ping = frame(6, 0, 0, &[0; 8]);
        let count = |frames: &mut Frames, now| {
            (0..100_000).find(|_| frames.received(&ping, now) == Err(Excess::Idle)).unwrap()
        };
        let mut frames = opened(now);
        assert_eq!(count(&mut frames, now), IDLE);
        let later = now + Duration::from_secs(7);
        assert_eq!(count(&mut frames, later), 7 * IDLE_PER_SECOND);
        frames.wrote(&frame(DATA, 0, 1, &[0; 16_384]));
        let earned = 16 * IDLE_PER_KIB + IDLE_PER_PIECE_TAKEN;
        assert_eq!(count(&mut frames, later), earned, "window updates for what was taken");
        // A client that updates both windows after each small piece, and pings as well.
        let (update, mut frames) = (frame(8, 0, 0, &[0; 4]), opened(now));
        for _ in 0..100_000 {
            frames.wrote(&frame(DATA, 0, 1, b"small"));
            (0..2).for_each(|_| frames.received(&update, now).unwrap());
            frames.received(&ping, now).unwrap();
        }
        let (empty, mut frames) = (frame(DATA, 0, 1, b""), opened(now));
        let ended = (0..100_000).find(|_| frames.received(&empty, now) == Err(Excess::Idle));
        assert_eq!(ended, Some(IDLE));
        let (padding, mut frames) = (frame(DATA, PADDED, 1, &[0]), opened(now));
        let ended = (0..100_000).find(|_| frames.received(&padding, now) == Err(Excess::Idle));
        assert_eq!(ended, Some(IDLE));
    }

    #[test]
    fn a_header_must_be_whole_in_time_however_it_is_cut() {
        let now = Instant::now();
        let due = Some(now + TIMEOUT);
        let mut frames = opened(now);
        let bytes = [
            frame(HEADERS, 0, 1, b"abc"),
            frame(CONTINUATION, 0, 1, b"d"),
            frame(CONTINUATION, END_HEADERS, 1, b"e"),
        ]
        .concat();
        for (at, byte) in bytes.iter().enumerate() {
            let later = now + Duration::from_millis(at as u64);
            frames.received(&[*byte], later).unwrap();
            let expected = if at + 1 < bytes.len() { due } else { None };
            assert_eq!(frames.header_deadline(), expected, "after byte {at}");
        }
        frames.received(&frame(DATA, 0, 1, b"a body")[..12], now).unwrap();
        assert_eq!(frames.header_deadline(), None, "a body has a deadline of its own");
        let mut frames = opened(now);
        frames.received(&bytes[..20], now).unwrap();
        let (later, next) = (now + Duration::from_secs(5), request(9));
        frames.received(&[&bytes[20..], &next[..3]].concat(), later).unwrap();
        assert_eq!(frames.header_deadline(), Some(later + TIMEOUT), "the next header's own");
    }

    #[test]
    fn the_closing_frame_stands_between_frames() {
        let now = Instant::now();
        let mut frames = opened(now);
        frames.received(&request(3), now).unwrap();
        let answer = frame(DATA, 1, 7, b"hello");
        frames.wrote(&answer[..11]);
        assert_eq!(frames.closing_frame(Excess::Resets), None);
        frames.wrote(&answer[11..]);
        let closing = frames.closing_frame(Excess::Resets).unwrap();
        assert_eq!(closing[..17], [0, 0, 36, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0xb]);
        assert_eq!(&closing[17..], b"too many requests were reset");
    }
}
