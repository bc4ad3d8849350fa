//! One request and its answer over HTTP/2, as a pingora session.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::Stream as Messages;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, DATE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Response};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session;
use pingora_core::protocols::http::date::get_cached_date;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::{Error, ErrorType, OrErr as _, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::timeout;

use crate::downstream::http2::Waiting;
use crate::http::body_fault::BODY_MALFORMED;

/// The most bytes of a request's body that are stored for a retry.
const KEPT: usize = 64 * 1024;

/// A stream.
pub(super) struct Stream {
    header: Box<RequestHeader>,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    number: u32,
    waiting: Arc<Waiting>,
    digest: Arc<Digest>,
    /// The length that the client announced, and how much of it has arrived.
    announced: Option<u64>,
    received: u64,
    kept: Kept,
    /// The answer's header, once it is sent, and the sender of its body.
    written: Option<Box<ResponseHeader>>,
    sender: Option<SendStream<Bytes>>,
    ended: bool,
    sent: usize,
    /// Parts of the answer that are still to be sent.
    tasks: VecDeque<HttpTask>,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
}

/// The stored part of a request's body.
enum Kept {
    Nothing,
    All(BytesMut),
    TooLarge,
}

impl Stream {
    pub(super) fn new(
        header: Box<RequestHeader>,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        waiting: Arc<Waiting>,
        digest: Arc<Digest>,
    ) -> Self {
        let announced = header.headers.get("content-length");
        let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        Self {
            number: respond.stream_id().as_u32(),
            header,
            body,
            respond,
            waiting,
            digest,
            announced,
            received: 0,
            kept: Kept::Nothing,
            written: None,
            sender: None,
            ended: false,
            sent: 0,
            tasks: VecDeque::new(),
            write_timeout: None,
            drain_timeout: None,
        }
    }

    /// Reads a piece of the body; `None` at its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let Some(piece) = ready!(self.body.poll_data(cx)) else {
            return Poll::Ready(self.check_end().map(|()| None));
        };
        let piece =
            piece.or_err(ErrorType::ReadError, "reading the request's body").map_err(Error::into_down)?;
        let _ = self.body.flow_control().release_capacity(piece.len());
        self.received += piece.len() as u64;
        if self.announced.is_some_and(|length| self.received > length) {
            return Poll::Ready(malformed("the body is longer than Content-Length says"));
        }
        if self.body.is_end_stream() {
            self.check_end()?;
        }
        self.keep(&piece);
        Poll::Ready(Ok(Some(piece)))
    }

    /// Checks, at the end of the body, that its length is as announced and that its trailers are valid.
    fn check_end(&self) -> Result<()> {
        if self.announced.is_some_and(|length| self.received < length) {
            return malformed("the body is shorter than Content-Length says");
        }
        self.waiting.take_fault(self.number).map_or(Ok(()), |fault| malformed(fault.detail))
    }

    fn keep(&mut self, piece: &[u8]) {
        let Kept::All(kept) = &mut self.kept else { return };
        if kept.len() + piece.len() > KEPT {
            self.kept = Kept::TooLarge;
        } else {
            kept.extend_from_slice(piece);
        }
    }

    /// Waits until the client ends the stream.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let left = match &mut self.sender {
            Some(sender) => ready!(sender.poll_reset(cx)),
            None => ready!(self.respond.poll_reset(cx)),
        };
        let reason = left.map_or_else(|error| error.to_string(), |reason| reason.to_string());
        Poll::Ready(Err(Error::explain(ErrorType::H2Error, reason).into_down()))
    }

    fn send_header(&mut self, mut header: Box<ResponseHeader>, end: bool) -> Result<()> {
        if self.ended || self.written.is_some() {
            return Ok(());
        }
        for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
            header.remove_header(&name);
        }
        if header.status.is_informational() {
            let hint = Response::from_parts(header.as_owned_parts(), ());
            return self.respond.send_informational(hint).or_err(ErrorType::WriteError, "sending a hint");
        }
        if !header.headers.contains_key(DATE) {
            header.insert_header(DATE, get_cached_date())?;
        }
        // RFC 9110, 6.4.1: such an answer has no body, from the upstream or from the gateway.
        let end = end || self.header.method == Method::HEAD || matches!(header.status.as_u16(), 204 | 304);
        let response = Response::from_parts(header.as_owned_parts(), ());
        let sender = self.respond.send_response(response, end);
        self.sender = Some(sender.or_err(ErrorType::WriteError, "sending the answer's header")?);
        self.written = Some(header);
        self.ended = end;
        Ok(())
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        let Some(sender) = self.sender.as_mut().filter(|_| !self.ended) else { return Ok(()) };
        self.ended = true;
        sender.send_trailers(trailers).or_err(ErrorType::WriteError, "sending trailers")
    }

    fn send_end(&mut self) -> Result<()> {
        let Some(sender) = self.sender.as_mut().filter(|_| !self.ended) else { return Ok(()) };
        self.ended = true;
        sender.send_data(Bytes::new(), true).or_err(ErrorType::WriteError, "ending the answer")
    }

    /// Sends as much of `data` as the client accepts; ready when all of it is sent.
    fn poll_send(&mut self, data: &mut Bytes, end: bool, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(sender) = self.sender.as_mut().filter(|_| !self.ended) else {
            return Poll::Ready(Ok(())); // an answer without a body
        };
        while !data.is_empty() {
            if sender.capacity() == 0 {
                sender.reserve_capacity(data.len());
                match ready!(sender.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        return Poll::Ready(Error::e_because(
                            ErrorType::WriteError,
                            "sending the answer",
                            error,
                        ));
                    }
                    None => {
                        return Poll::Ready(Error::e_explain(ErrorType::WriteError, "the stream is over"));
                    }
                }
            }
            let piece = data.split_to(sender.capacity().min(data.len()));
            self.sent += piece.len();
            let last = end && data.is_empty();
            sender.send_data(piece, last).or_err(ErrorType::WriteError, "sending the answer")?;
            self.ended = last;
        }
        if end && !self.ended {
            self.send_end()?;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends the pending parts; ready when all are sent. Nothing is lost when the caller stops polling.
    fn poll_tasks(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool>> {
        while let Some(task) = self.tasks.pop_front() {
            match task {
                HttpTask::Header(header, end) => self.send_header(header, end)?,
                HttpTask::Body(Some(mut data), end) => {
                    if self.poll_send(&mut data, end, cx)?.is_pending() {
                        self.tasks.push_front(HttpTask::Body(Some(data), end));
                        return Poll::Pending;
                    }
                }
                HttpTask::Body(None, false) => {}
                HttpTask::Trailer(Some(trailers)) => self.send_trailers(*trailers)?,
                HttpTask::Body(None, true) | HttpTask::Trailer(None) | HttpTask::Done => self.send_end()?,
                HttpTask::UpgradedBody(..) => {
                    return Poll::Ready(Error::e_explain(ErrorType::InternalError, "HTTP/2 has no upgrades"));
                }
                HttpTask::Failed(fault) => return Poll::Ready(Err(fault)),
            }
        }
        Poll::Ready(Ok(self.ended))
    }

    async fn drain(&mut self) -> Result<()> {
        while poll_fn(|cx| self.poll_body(cx)).await?.is_some() {}
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.waiting.forget(self.number);
    }
}

fn malformed<T>(detail: &'static str) -> Result<T> {
    Err(Error::explain(BODY_MALFORMED, detail).into_down())
}

fn late<T>() -> Result<T> {
    Err(Error::new_down(ErrorType::WriteTimedout))
}

#[async_trait]
impl Session for Stream {
    fn req_header(&self) -> &RequestHeader {
        &self.header
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.header
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_body(cx)).await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        let most = self.drain_timeout.unwrap_or(Duration::MAX);
        timeout(most, self.drain()).await.unwrap_or_else(|_| Err(Error::new_down(ErrorType::ReadTimedout)))
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.send_header(header, end)
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, end: bool) -> Result<()> {
        self.send_header(Box::new(header.clone()), end)
    }

    async fn write_body(&mut self, mut data: Bytes, end: bool) -> Result<()> {
        let most = self.write_timeout.unwrap_or(Duration::MAX);
        let sent = timeout(most, poll_fn(|cx| self.poll_send(&mut data, end, cx))).await;
        sent.unwrap_or_else(|_| late()).map_err(Error::into_down)
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.send_trailers(trailers)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.tasks.extend(tasks);
        let most = self.write_timeout.unwrap_or(Duration::MAX);
        let sent = timeout(most, poll_fn(|cx| self.poll_tasks(cx))).await;
        sent.unwrap_or_else(|_| late()).map_err(Error::into_down)
    }

    fn proxy_tasks_enabled(&self) -> bool {
        true
    }

    fn send_proxy_task(&mut self, task: HttpTask) {
        self.tasks.push_back(task);
    }

    fn has_pending_proxy_tasks(&self) -> bool {
        !self.tasks.is_empty()
    }

    async fn write_proxy_tasks(&mut self) -> Result<bool> {
        poll_fn(|cx| self.poll_tasks(cx)).await
    }

    fn set_read_timeout(&mut self, _: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.drain_timeout = timeout;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    fn request_summary(&self) -> String {
        self.header.method.to_string()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    async fn shutdown(&mut self, _: u32, _: &str) {
        if !self.ended {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    /// Whether the whole body has been read and has the announced length. If not, the next read reports the fault.
    fn is_body_done(&mut self) -> bool {
        self.body.is_end_stream()
            && self.announced.is_none_or(|length| length == self.received)
            && !self.waiting.has_fault(self.number)
    }

    async fn finish(&mut self) -> Result<()> {
        self.send_end()
    }

    fn is_body_empty(&mut self) -> bool {
        self.received == 0 && (self.announced == Some(0) || self.is_body_done())
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let idle = no_body_expected || self.is_body_done();
        poll_fn(|cx| if idle { self.poll_left(cx) } else { self.poll_body(cx) }).await
    }

    fn body_bytes_sent(&self) -> usize {
        self.sent
    }

    fn body_bytes_read(&self) -> usize {
        usize::try_from(self.received).unwrap_or(usize::MAX)
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Arc::get_mut(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {
        if matches!(self.kept, Kept::Nothing) {
            self.kept = Kept::All(BytesMut::new());
        }
    }

    fn retry_buffer_truncated(&self) -> bool {
        matches!(self.kept, Kept::TooLarge)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        match &self.kept {
            Kept::All(kept) if !kept.is_empty() => Some(Bytes::copy_from_slice(kept)),
            _ => None,
        }
    }

    async fn finish_custom(&mut self) -> Result<()> {
        self.send_end()
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Messages<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _: Box<dyn Messages<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
