//! An upstream connection in HTTP/2: a stream of a pingora connection.

use std::future::Future as _;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::uri::{Authority, PathAndQuery, Uri};
use http::{HeaderValue, Method, Version};
use pingora_core::protocols::http::v2::client::Http2Session;
use pingora_core::{Error, ErrorType, OrErr as _, Result};
use pingora_http::RequestHeader;

use super::{Event, answer_head};
use crate::upstream::fault::UpstreamFault;

/// One request and its answer.
pub(super) struct Http2 {
    stream: Http2Session,
    body: Option<SendStream<Bytes>>,
    /// The piece that is not sent yet, and whether it is the last.
    outgoing: Bytes,
    ends: bool,
    sending: bool,
    /// Whether the whole request is sent.
    sent: bool,
    broken: bool,
    head_only: bool,
    reading: Reading,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Head,
    Body,
    Trailers,
    Over,
}

impl Http2 {
    pub(super) fn new(stream: Http2Session) -> Self {
        Self {
            stream,
            body: None,
            outgoing: Bytes::new(),
            ends: false,
            sending: false,
            sent: false,
            broken: false,
            head_only: false,
            reading: Reading::Head,
        }
    }

    /// Sends the header. If the request has no body, this ends it.
    pub(super) fn begin(&mut self, mut request: Box<RequestHeader>, scheme: &str, ends: bool) -> Result<()> {
        self.head_only = request.method == Method::HEAD;
        name_authority(&mut request, scheme).map_err(Error::into_down)?;
        self.stream.write_request_header(request, ends).map_err(Error::into_up)?;
        self.body = self.stream.take_request_body_writer();
        self.sent = ends;
        Ok(())
    }

    pub(super) fn send(&mut self, piece: Bytes, end: bool) {
        if !self.sent && !self.broken {
            (self.outgoing, self.ends, self.sending) = (piece, end, true);
        }
    }

    pub(super) fn is_sending(&self) -> bool {
        self.sending
    }

    pub(super) fn takes_more(&self) -> bool {
        !self.broken
    }

    /// Ends the stream and gives it back to its connection. A stream that has not finished is reset. A connection that
    /// timed out takes no further requests.
    pub(super) fn end(mut self, timed_out: bool) -> Http2Session {
        if !(self.sent && self.reading == Reading::Over)
            && let Some(body) = &mut self.body
        {
            body.send_reset(Reason::CANCEL);
        }
        if timed_out {
            self.stream.conn.mark_shutdown();
        }
        self.stream
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>, room: bool) -> Poll<Result<Event>> {
        if self.sending
            && let Poll::Ready(sent) = self.poll_send(cx)
        {
            // The error of the stream is reported when the answer is read.
            self.broken = sent.is_err();
            (self.sending, self.sent) = (false, self.ends && !self.broken);
            return Poll::Ready(Ok(Event::Sent));
        }
        if !room {
            return Poll::Pending; // the rest of the request is still being sent
        }
        loop {
            match self.reading {
                Reading::Head => {
                    let read = ready!(pin!(self.stream.read_response_header()).poll(cx));
                    read.map_err(Error::into_up)?;
                    let header = self.stream.response_header().cloned();
                    let header = header.filter(|header| !answer_head::is_too_large(&header.headers));
                    let mut header = header.ok_or_else(|| UpstreamFault::HeaderTooLarge.error())?;
                    answer_head::content_length(&mut header)?;
                    // Bytes after such an answer are not part of it.
                    let has_no_body = self.head_only || matches!(header.status.as_u16(), 204 | 304);
                    let end = self.is_over()? || has_no_body;
                    self.reading = if end { Reading::Over } else { Reading::Body };
                    return Poll::Ready(Ok(Event::Head(Box::new(header), end)));
                }
                Reading::Body => {
                    let read = ready!(pin!(self.stream.read_response_body()).poll(cx));
                    let Some(piece) = read.map_err(Error::into_up)? else {
                        self.reading = Reading::Trailers;
                        continue;
                    };
                    let end = self.is_over()?;
                    if end {
                        self.reading = Reading::Over;
                    }
                    if !piece.is_empty() || end {
                        return Poll::Ready(Ok(Event::Piece(piece, end)));
                    }
                }
                Reading::Trailers => {
                    let trailers =
                        ready!(pin!(self.stream.read_trailers()).poll(cx)).map_err(Error::into_up)?;
                    if trailers.as_ref().is_some_and(answer_head::is_too_large) {
                        return Poll::Ready(Err(UpstreamFault::HeaderTooLarge.error()));
                    }
                    self.reading = Reading::Over;
                    return Poll::Ready(Ok(Event::End(trailers)));
                }
                Reading::Over => return Poll::Pending,
            }
        }
    }

    fn is_over(&mut self) -> Result<bool> {
        self.stream.check_response_end_or_error().map_err(Error::into_up)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Err(())) };
        while !self.outgoing.is_empty() {
            if body.capacity() == 0 {
                body.reserve_capacity(self.outgoing.len());
                match ready!(body.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(Err(())),
                }
            }
            let piece = self.outgoing.split_to(body.capacity().min(self.outgoing.len()));
            let end = self.ends && self.outgoing.is_empty();
            body.send_data(piece, end).map_err(drop)?;
            if end {
                return Poll::Ready(Ok(()));
            }
        }
        if self.ends {
            body.send_data(Bytes::new(), true).map_err(drop)?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Moves `Host` to `:authority`.
fn name_authority(request: &mut RequestHeader, scheme: &str) -> Result<()> {
    let host = request.remove_header("host");
    let host = host.as_ref().map(HeaderValue::as_bytes).unwrap_or_default();
    let authority = Authority::try_from(host).or_err(ErrorType::InvalidHTTPHeader, "the host")?;
    let target =
        PathAndQuery::try_from(request.raw_path()).or_err(ErrorType::InvalidHTTPHeader, "the target")?;
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build();
    request.set_uri(uri.or_err(ErrorType::InvalidHTTPHeader, "the target")?);
    request.set_version(Version::HTTP_2);
    Ok(())
}
