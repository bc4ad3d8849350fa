//! One client connection as pingora sees it: a stream that holds one message at a time.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use http::HeaderMap;
use parking_lot::Mutex;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use pingora_http::ResponseHeader;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::body::{BodyFault, Gate};
use super::head::{Framing, Head};
use super::http2::excess::Excess;
use super::http2::{Frames, Inbound, Waiting};
use super::socket::Socket;

/// The size of a read from the socket, and of the buffer that gathers an answer. Both buffers are freed after use: an
/// idle connection holds none.
const PIECE: usize = 8 * 1024;

/// How pingora ends a body in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How long the rest of a request is read after an early answer.
const LINGER: Duration = Duration::from_secs(1);

/// How long a client may take none of the bytes that are written to it.
#[derive(Debug)]
struct Stall {
    most: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// The result of a write. A write that waits for longer fails.
    fn watch<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.alarm = None;
            return written;
        }
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.most)));
        alarm.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// What an HTTP/2 connection has besides.
#[derive(Debug)]
struct Http2 {
    /// Counts the frames of the client.
    frames: Frames,
    /// Reads the client's frames.
    inbound: Inbound,
}

/// A client connection.
#[derive(Debug)]
pub struct Connection {
    /// `None` only in `drop`.
    socket: Option<Socket>,
    digest: Arc<SocketDigest>,
    /// Present if a balancer uses the connection for its own requests, not for a client.
    balancer_mark: Option<Arc<ProxyDigest>>,
    /// Read from the socket, not yet let through.
    pub(crate) inbox: BytesMut,
    /// Let through, not yet read.
    outbox: BytesMut,
    gate: Gate,
    fault: Option<BodyFault>,
    /// The deadline of the body, and its timer, which runs while the body is awaited.
    body_deadline: Mutex<Option<Instant>>,
    /// The most bytes that the chunks of the body may announce.
    body_limit: AtomicU64,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Trailers of the answer, as lines, until the last chunk is sent.
    trailers: Mutex<Option<BytesMut>>,
    /// Written, not yet sent.
    answer: BytesMut,
    /// Present once the connection speaks HTTP/2.
    http2: Option<Box<Http2>>,
    excess: Arc<OnceLock<Excess>>,
    stall: Stall,
}

impl Connection {
    pub(crate) fn new(socket: Socket, peer: SocketAddr) -> Self {
        use std::os::fd::AsRawFd as _;
        let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
        // pingora would ask the socket later, but a socket that was reset does not know its address any more.
        let _ = digest.peer_addr.set(Some(pingora_core::protocols::l4::socket::SocketAddr::Inet(peer)));
        let digest = Arc::new(digest);
        Self {
            socket: Some(socket),
            digest,
            balancer_mark: None,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            gate: Gate::Length(0),
            fault: None,
            body_deadline: Mutex::new(None),
            body_limit: AtomicU64::new(u64::MAX),
            alarm: None,
            trailers: Mutex::default(),
            answer: BytesMut::new(),
            http2: None,
            excess: Arc::default(),
            stall: Stall { most: Duration::MAX, alarm: None },
        }
    }

    /// Marks the connection as a balancer's own (`PROXY UNKNOWN`, `LOCAL`). Every request on it sees the mark.
    pub(crate) fn mark_as_balancers_own(&mut self) {
        if let Ok(header) = ResponseHeader::build(200, None) {
            self.balancer_mark = Some(Arc::new(ProxyDigest::new(Box::new(header), None)));
        }
    }

    /// Sets how long a client may take nothing before its connection is closed.
    pub(crate) fn set_write_timeout(&mut self, most: Duration) {
        self.stall.most = most;
    }

    /// Sets the deadline of the whole body, however slowly its bytes arrive.
    pub fn set_body_deadline(&self, deadline: Instant) {
        *self.body_deadline.lock() = Some(deadline);
    }

    /// Sets the most bytes that the chunks of the body may announce.
    pub fn set_body_limit(&self, bytes: u64) {
        self.body_limit.store(bytes, Ordering::Relaxed);
    }

    /// Sends these trailers after the last chunk of the answer, when only that chunk is left to send. pingora 0.9.1 has
    /// no trailers in HTTP/1.
    pub fn set_trailers(&self, trailers: &HeaderMap) {
        let mut lines = BytesMut::new();
        for (name, value) in trailers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                lines.extend_from_slice(part);
            }
        }
        *self.trailers.lock() = Some(lines);
    }

    /// Wakes the reader when the body, or a header of HTTP/2, is late. An error when it is late already.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = match (&self.http2, &self.gate) {
            (Some(http2), _) => http2.frames.header_deadline(),
            (None, Gate::Open) => None,
            (None, gate) => self.body_deadline.lock().filter(|_| !gate.is_done()),
        };
        let Some(deadline) = deadline else { return Poll::Pending };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        alarm.as_mut().poll(cx).map(|()| io::ErrorKind::TimedOut.into())
    }

    /// Takes the header from the inbox and sets the gate for its body.
    pub(crate) fn begin(&mut self, head_length: usize, framing: Framing, overhead: usize) -> BytesMut {
        self.gate = Gate::new(framing, overhead);
        *self.body_limit.get_mut() = u64::MAX;
        self.fault = None;
        self.inbox.split_to(head_length)
    }

    /// What is wrong with the part of the body that arrived together with `head`.
    pub(crate) fn foresee(&self, head: &Head, overhead: usize) -> Option<BodyFault> {
        let mut body = BytesMut::from(&self.inbox[head.length..]);
        Gate::new(head.framing, overhead).pass(&mut body, &mut BytesMut::new(), usize::MAX).err()
    }

    /// Switches to HTTP/2: headers go to `waiting`. The returned value holds why the connection was ended, if the
    /// client misused it.
    pub(crate) fn open_http2(
        &mut self,
        inbound: Inbound,
        waiting: Arc<Waiting>,
        header_timeout: Duration,
    ) -> Arc<OnceLock<Excess>> {
        self.open();
        let mut frames = Frames::new(header_timeout, waiting, Instant::now());
        let counted = frames.received(&self.inbox, Instant::now());
        self.http2 = Some(Box::new(Http2 { frames, inbound }));
        if let Err(excess) = counted {
            self.end(excess);
        }
        Arc::clone(&self.excess)
    }

    /// Ends an HTTP/2 connection, and sends the reason to the client where that is possible.
    fn end(&mut self, why: Excess) -> io::Error {
        if let Some(lingering_close) = self.http2.as_ref().and_then(|http2| http2.frames.closing_frame(why)) {
            self.answer.extend_from_slice(&lingering_close);
        }
        let _ = self.excess.set(why);
        io::Error::other(why)
    }

    /// Lets every byte pass from now on.
    pub(crate) fn open(&mut self) {
        self.gate = Gate::Open;
    }

    /// Whether the connection can take another request: the body of this one has passed, or there was none.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.gate.is_done() && self.outbox.is_empty() && self.fault.is_none()
    }

    /// Waits until the client resets the connection, without reading from it.
    pub async fn reset(&self) {
        if let Some(socket) = &self.socket {
            let _ = socket.tcp().ready(Interest::ERROR).await;
        }
    }

    /// What was wrong with the body, if the reader met a fault.
    pub fn fault(&self) -> Option<BodyFault> {
        self.fault
    }

    /// Reads more of the header; 0 bytes when the client has closed.
    pub(crate) async fn read_more(&mut self) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Drops what only a request in progress needs.
    pub(crate) fn rested(mut self: Box<Self>) -> Box<Self> {
        if self.inbox.is_empty() {
            self.inbox = BytesMut::new();
        }
        self.gate = Gate::Length(0);
        self.outbox = BytesMut::new();
        self.alarm = None;
        *self.body_deadline.get_mut() = None;
        *self.trailers.get_mut() = None;
        self
    }

    fn socket(&mut self) -> io::Result<Pin<&mut Socket>> {
        self.socket.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut piece = [0; PIECE];
        let mut piece = ReadBuf::new(&mut piece);
        ready!(self.socket()?.poll_read(cx, &mut piece))?;
        self.inbox.extend_from_slice(piece.filled());
        self.count(piece.filled())?;
        Poll::Ready(Ok(piece.filled().len()))
    }

    /// Counts what an HTTP/2 client sent.
    fn count(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(http2) = &mut self.http2 else { return Ok(()) };
        http2.frames.received(bytes, Instant::now()).map_err(|excess| self.end(excess))
    }

    /// Lets bytes pass from the inbox to the outbox.
    fn let_through(&mut self) -> io::Result<()> {
        let Self { gate, inbox, outbox, http2, body_limit, .. } = self;
        if let Some(http2) = http2 {
            return http2.inbound.pass(inbox, outbox, PIECE).map_err(|excess| self.end(excess));
        }
        gate.limit(*body_limit.get_mut());
        gate.pass(inbox, outbox, PIECE).map_err(|fault| {
            self.fault = Some(fault);
            io::Error::new(io::ErrorKind::InvalidData, fault)
        })
    }

    /// Reads more bytes. They go directly to their destination if none of them has to be checked.
    fn poll_through(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let unseen = self
            .http2
            .as_ref()
            .map_or_else(|| self.gate.passes_unseen(), |http2| http2.inbound.passes_unseen());
        let free = if self.inbox.is_empty() { unseen } else { 0 };
        if free == 0 {
            return self.poll_fill(cx);
        }
        let count = into.remaining().min(usize::try_from(free).unwrap_or(usize::MAX));
        let mut room = ReadBuf::new(into.initialize_unfilled_to(count));
        ready!(self.socket()?.poll_read(cx, &mut room))?;
        let filled = room.filled().len();
        let before = into.filled().len();
        into.advance(filled);
        match &mut self.http2 {
            Some(http2) => http2.inbound.passed(filled as u64),
            None => self.gate.passed(filled as u64),
        }
        self.count(&into.filled()[before..])?;
        Poll::Ready(Ok(filled))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.answer.is_empty() {
            let Some(socket) = &mut self.socket else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            let written = Pin::new(socket).poll_write(cx, &self.answer);
            let sent = ready!(self.stall.watch(written, cx))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.answer.advance(sent);
        }
        self.answer = BytesMut::new();
        match &mut self.socket {
            Some(socket) if socket.is_encrypted() => {
                let flushed = Pin::new(socket).poll_flush(cx);
                self.stall.watch(flushed, cx)
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // When we wait for the client, we have nothing more to write now. So what is gathered is sent at once.
        if let Poll::Ready(sent) = this.poll_send(cx) {
            sent?;
        }
        loop {
            if let Some(excess) = this.excess.get() {
                return Poll::Ready(Err(io::Error::other(*excess)));
            }
            if this.outbox.is_empty() {
                this.let_through()?;
            }
            if !this.outbox.is_empty() {
                let count = this.outbox.len().min(into.remaining());
                into.put_slice(&this.outbox.split_to(count));
                return Poll::Ready(Ok(()));
            }
            // The message is over and the next one is here already: the reader is not woken until this one is answered.
            if this.gate.is_done() && !this.inbox.is_empty() {
                return Poll::Pending;
            }
            let before = into.filled().len();
            match this.poll_through(cx, into) {
                Poll::Ready(filled) => {
                    if filled? == 0 {
                        return Poll::Ready(Ok(())); // the client has closed
                    }
                    if into.filled().len() > before {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Pending => {
                    let late = ready!(this.poll_deadline(cx));
                    if this.http2.is_some() {
                        return Poll::Ready(Err(this.end(Excess::SlowHeader)));
                    }
                    this.fault = Some(BodyFault::LATE);
                    return Poll::Ready(Err(late));
                }
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.answer.len() + bytes.len() > PIECE {
            ready!(this.poll_send(cx))?;
        }
        let taken = if bytes.len() >= PIECE {
            let written = this.socket()?.poll_write(cx, bytes);
            ready!(this.stall.watch(written, cx))?
        } else if bytes == LAST_CHUNK
            && let Some(trailers) = this.trailers.get_mut().take()
        {
            for part in [&LAST_CHUNK[..3], &trailers, &LAST_CHUNK[3..]] {
                this.answer.extend_from_slice(part);
            }
            bytes.len()
        } else {
            this.answer.extend_from_slice(bytes);
            bytes.len()
        };
        if let Some(http2) = &mut this.http2 {
            http2.frames.wrote(&bytes[..taken]);
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        this.socket()?.poll_shutdown(cx)
    }
}

impl Drop for Connection {
    /// When a socket is closed while the client still sends, the system resets it, and the client may lose the answer
    /// that says why. So what the client sends is read for a while and dropped.
    fn drop(&mut self) {
        let unfinished = !self.gate.is_done() || self.fault.is_some() || !self.answer.is_empty();
        let Some(mut socket) = self.socket.take().filter(|_| unfinished) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let answer = std::mem::take(&mut self.answer);
        let lingering_close = async move {
            socket.write_all(&answer).await?;
            AsyncWriteExt::shutdown(&mut socket).await?;
            let mut rest = [0; 1024];
            while socket.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        runtime.spawn(tokio::time::timeout(LINGER, lingering_close));
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        use std::os::fd::AsRawFd as _;
        self.socket.as_ref().map_or(-1, Socket::as_raw_fd)
    }
}

impl Ssl for Connection {
    /// Says that there is TLS; no caller needs more.
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        let encrypted = self.socket.as_ref().is_some_and(Socket::is_encrypted);
        encrypted.then(|| Arc::new(SslDigest::new("", "", None, None, Vec::new())))
    }

    /// Over TLS pingora does not look for the preface of HTTP/2; it asks which protocol ALPN agreed on.
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.http2.is_some().then_some(ALPN::H2)
    }
}

#[async_trait]
impl Peek for Connection {
    /// Looks at bytes without consuming them; the accept loop has done that already.
    async fn try_peek(&mut self, into: &mut [u8]) -> io::Result<bool> {
        let seen = self.inbox.get(..into.len());
        if let Some(seen) = seen {
            into.copy_from_slice(seen);
        }
        Ok(seen.is_some())
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.balancer_mark.clone()
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}
