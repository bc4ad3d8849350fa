//! An upstream connection in HTTP/1.1 (RFC 9112), on a pingora stream.

use std::collections::VecDeque;
use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v1::client::http_req_header_to_wire;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};

use super::Event;
use super::answer_head::{self, AnswerHead, Body};
use crate::http::chunked::{ChunkFault, Chunks, Part};
use crate::upstream::fault::UpstreamFault;

/// The size of a read of an answer, in bytes: at first, and when bytes arrive quickly.
const FIRST_PIECE: usize = 4 * 1024;
const PIECE: usize = 32 * 1024;

/// The most bytes of chunk extensions and trailers in an answer.
const OVERHEAD: usize = 64 * 1024;

/// One request and its answer.
pub(super) struct Http1 {
    stream: Stream,
    /// Bytes that are not sent yet.
    outgoing: VecDeque<Bytes>,
    /// Whether the request's body is sent in chunks.
    chunked: bool,
    sending: bool,
    /// Whether the whole request is sent.
    sent: bool,
    /// Whether sending is closed.
    closes: bool,
    /// The error that ended sending.
    broken: Option<io::Error>,
    head_only: bool,
    /// Bytes that are read and not parsed yet.
    inbox: BytesMut,
    /// The size of the next read.
    piece: usize,
    reading: Reading,
    /// Whether any byte of an answer arrived.
    received_any: bool,
    /// Whether the upstream allows another request on the connection.
    keeps: bool,
}

enum Reading {
    Head,
    Length(u64),
    Chunks(Chunks),
    UntilClose,
    Upgraded,
    Over,
}

impl Http1 {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            outgoing: VecDeque::new(),
            chunked: false,
            sending: false,
            sent: false,
            closes: false,
            broken: None,
            head_only: false,
            inbox: BytesMut::new(),
            piece: FIRST_PIECE,
            reading: Reading::Head,
            received_any: false,
            keeps: false,
        }
    }

    pub(super) fn begin(&mut self, request: &RequestHeader) -> Result<()> {
        let head = http_req_header_to_wire(request);
        let head = head.ok_or_else(|| Error::new_down(ErrorType::InvalidHTTPHeader))?;
        self.chunked = request.headers.contains_key("transfer-encoding");
        self.head_only = request.method == http::Method::HEAD;
        self.outgoing.push_back(head.freeze());
        self.sending = true;
        Ok(())
    }

    pub(super) fn send(&mut self, piece: Bytes, end: bool) {
        if self.broken.is_some() {
            return;
        }
        if self.chunked && !piece.is_empty() {
            self.outgoing.push_back(format!("{:x}\r\n", piece.len()).into());
        }
        let ends_chunk = self.chunked && !piece.is_empty();
        if !piece.is_empty() {
            self.outgoing.push_back(piece);
        }
        match (ends_chunk, self.chunked && end) {
            (true, true) => self.outgoing.push_back(Bytes::from_static(b"\r\n0\r\n\r\n")),
            (true, false) => self.outgoing.push_back(Bytes::from_static(b"\r\n")),
            (false, true) => self.outgoing.push_back(Bytes::from_static(b"0\r\n\r\n")),
            (false, false) => {}
        }
        self.sending = true;
        self.sent = end;
    }

    pub(super) fn is_sending(&self) -> bool {
        self.sending
    }

    pub(super) fn takes_more(&self) -> bool {
        self.broken.is_none()
    }

    pub(super) fn close_sending(&mut self) {
        (self.closes, self.sending) = (true, true);
    }

    /// Whether any byte of an answer arrived.
    pub(super) fn received_any(&self) -> bool {
        self.received_any
    }

    /// The stream, if it can be used again.
    pub(super) fn into_kept(self) -> Option<Stream> {
        let over = matches!(self.reading, Reading::Over) && self.inbox.is_empty();
        (over && self.keeps && self.sent && !self.sending && self.broken.is_none()).then_some(self.stream)
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>, room: bool) -> Poll<Result<Event>> {
        if self.sending
            && let Poll::Ready(sent) = self.poll_send(cx)
        {
            // An upstream that stops reading a request may have answered already.
            if let Err(error) = sent {
                self.outgoing.clear();
                self.broken = Some(error);
            }
            self.sending = false;
            return Poll::Ready(Ok(Event::Sent));
        }
        if !room || matches!(self.reading, Reading::Over) {
            return Poll::Pending; // the rest of the request is still being sent
        }
        loop {
            if let Some(event) = self.understand()? {
                return Poll::Ready(Ok(event));
            }
            let filled = match ready!(self.poll_fill(cx)) {
                Ok(filled) => filled,
                Err(error) => return Poll::Ready(self.lost(error)),
            };
            if filled == 0 {
                return Poll::Ready(self.closed());
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(piece) = self.outgoing.front_mut() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, piece))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            piece.advance(sent);
            if piece.is_empty() {
                self.outgoing.pop_front();
            }
        }
        if self.closes {
            return Pin::new(&mut self.stream).poll_shutdown(cx);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.inbox.reserve(self.piece);
        let filled = ready!(pin!(self.stream.read_buf(&mut self.inbox)).poll(cx))?;
        if filled >= self.piece {
            self.piece = PIECE;
        }
        self.received_any |= filled > 0;
        Poll::Ready(Ok(filled))
    }

    /// Parses the bytes that are there, if they are enough for an event.
    fn understand(&mut self) -> Result<Option<Event>> {
        match &mut self.reading {
            Reading::Head => {
                let Some(AnswerHead { header, length, body, keeps }) =
                    answer_head::parse(&self.inbox, self.head_only)?
                else {
                    return Ok(None);
                };
                self.inbox.advance(length);
                self.keeps = keeps;
                self.reading = match body {
                    Body::Later => Reading::Head,
                    Body::None => Reading::Over,
                    Body::Length(length) => Reading::Length(length),
                    Body::Chunked => Reading::Chunks(Chunks::keeping_trailers(OVERHEAD)),
                    Body::UntilClose => Reading::UntilClose,
                    Body::Upgraded => {
                        // From here on it is not HTTP, in either direction.
                        (self.chunked, self.sent) = (false, false);
                        Reading::Upgraded
                    }
                };
                Ok(Some(Event::Head(Box::new(header), matches!(self.reading, Reading::Over))))
            }
            Reading::Length(left) => {
                if self.inbox.is_empty() {
                    return Ok(None);
                }
                let count = self.inbox.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                let end = *left == 0;
                if end {
                    self.reading = Reading::Over;
                }
                Ok(Some(Event::Piece(self.inbox.split_to(count).freeze(), end)))
            }
            Reading::Chunks(chunks) => loop {
                let part = chunks.next(&mut self.inbox, PIECE);
                match part.map_err(|fault| broken_rule(fault).error())? {
                    None => return Ok(None),
                    Some(Part::Data(data)) => return Ok(Some(Event::Piece(data.freeze(), false))),
                    Some(Part::End) => {
                        let trailers = trailers(chunks.trailers());
                        let trailers = trailers.map_err(UpstreamFault::error)?;
                        self.reading = Reading::Over;
                        return Ok(Some(Event::End(trailers)));
                    }
                    Some(Part::Size(_) | Part::ChunkEnd) => {}
                }
            },
            Reading::UntilClose | Reading::Upgraded => {
                let piece = self.inbox.split().freeze();
                Ok((!piece.is_empty()).then_some(Event::Piece(piece, false)))
            }
            // Bytes after an answer belong to no request.
            Reading::Over => Ok(None),
        }
    }

    /// The upstream has closed.
    fn closed(&mut self) -> Result<Event> {
        match self.reading {
            Reading::UntilClose | Reading::Upgraded => {
                self.reading = Reading::Over;
                Ok(Event::End(None))
            }
            _ => self.lost(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The connection ended before the answer did. The first error is the cause.
    fn lost(&mut self, error: io::Error) -> Result<Event> {
        let rule = match self.reading {
            _ if !self.received_any => UpstreamFault::NoAnswer,
            Reading::Head => UpstreamFault::HeaderCut,
            _ => UpstreamFault::BodyCut,
        };
        let why = self.broken.take().unwrap_or(error);
        Err(Error::because(ErrorType::ConnectionClosed, rule.says(), why).into_up())
    }
}

/// The rule that a body in chunks breaks.
fn broken_rule(fault: ChunkFault) -> UpstreamFault {
    if fault == ChunkFault::TOO_LARGE { UpstreamFault::ChunkOverhead } else { UpstreamFault::Chunks }
}

/// The trailers of an answer, if they follow the grammar.
fn trailers(lines: &[u8]) -> Result<Option<HeaderMap>, UpstreamFault> {
    if lines.is_empty() {
        return Ok(None);
    }
    let mut trailers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some((name, value)) =
            line.iter().position(|byte| *byte == b':').and_then(|colon| line.split_at_checked(colon))
        else {
            continue;
        };
        let name = http::HeaderName::from_bytes(name).map_err(|_| UpstreamFault::Trailers)?;
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        trailers.append(name, http::HeaderValue::from_bytes(value).map_err(|_| UpstreamFault::Trailers)?);
    }
    Ok(Some(trailers))
}
