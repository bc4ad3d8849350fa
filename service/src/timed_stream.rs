//! A stream that gives up when the other side takes too long: for a header, between requests, for taking an answer.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::http::StatusCode;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::last_answer::last_answer;

/// What the connections of a listener may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Whose connections they are, as the log says it.
    pub bound: &'static str,
    /// Connections at a time; a further one is answered 503 and closed.
    pub max_connections: usize,
    /// For a whole header: from the accept, or from the first byte of a later request. Then 408, and closed.
    pub header_timeout: Duration,
    /// For a whole body, however it trickles in. Then 408, and closed.
    pub request_timeout: Duration,
    /// Between an answer and the next request, and for a client that takes nothing of an answer.
    pub idle_timeout: Duration,
}

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A first byte after the accept.
    Opened,
    /// The rest of a header.
    Header,
    /// Our own work. A body has a deadline of its own.
    Serving,
    /// The client: that it takes the answer, or sends another request.
    Idle,
}

/// How far a connection has come; known to its stream and to whoever answers.
#[derive(Debug)]
pub(crate) struct Progress {
    limits: Limits,
    state: Mutex<(Phase, Instant)>,
    timed_out: Mutex<Option<&'static str>>,
    /// Who read while we worked, to whom no deadline applied.
    reader: Mutex<Option<Waker>>,
}

impl Progress {
    /// A connection that was just accepted.
    pub(crate) fn new(limits: Limits) -> Self {
        let state = Mutex::new((Phase::Opened, Instant::now() + limits.header_timeout));
        Self { limits, state, timed_out: Mutex::default(), reader: Mutex::default() }
    }

    /// A header is whole, and its request is worked on.
    pub(crate) fn serving(&self) {
        self.state.lock().0 = Phase::Serving;
    }

    /// There is an answer.
    pub(crate) fn answered(&self) {
        *self.state.lock() = (Phase::Idle, Instant::now() + self.limits.idle_timeout);
        // It looks at the clock from now on. hyper does not read again by itself where a read was pending.
        if let Some(reader) = self.reader.lock().take() {
            reader.wake();
        }
    }

    /// What took too long, when that is why the connection ended.
    pub(crate) fn timed_out(&self) -> Option<&'static str> {
        *self.timed_out.lock()
    }

    fn read(&self) {
        let mut state = self.state.lock();
        match state.0 {
            // From the accept on, not from the first byte: silence is no way to more time.
            Phase::Opened => state.0 = Phase::Header,
            Phase::Idle => *state = (Phase::Header, Instant::now() + self.limits.header_timeout),
            Phase::Header | Phase::Serving => {}
        }
    }

    fn wrote(&self) {
        let mut state = self.state.lock();
        if state.0 == Phase::Idle {
            state.1 = Instant::now() + self.limits.idle_timeout;
        }
    }
}

/// A stream with deadlines.
pub(crate) struct TimedStream<S> {
    inner: S,
    progress: Arc<Progress>,
    timer: Pin<Box<Sleep>>,
    /// Read already, see [`TimedStream::first_byte`].
    first: Option<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TimedStream<S> {
    pub(crate) fn new(inner: S, progress: Arc<Progress>) -> Self {
        let timer = Box::pin(tokio::time::sleep_until(progress.state.lock().1));
        Self { inner, progress, timer, first: None }
    }

    /// Waits for the first byte, without a buffer; false when the other side closes instead.
    pub(crate) async fn first_byte(&mut self) -> io::Result<bool> {
        let mut byte = [0];
        let came = self.read(&mut byte).await? > 0;
        self.first = came.then_some(byte[0]);
        Ok(came)
    }

    /// Waits for the deadline, where there is one.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let (phase, deadline) = *self.progress.state.lock();
        if phase == Phase::Serving {
            *self.progress.reader.lock() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // A deadline mostly moves on: the timer is set again when it rings too early, not each time.
        if self.timer.deadline() > deadline || self.timer.is_elapsed() {
            self.timer.as_mut().reset(deadline);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(self.give_up(phase, cx));
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn give_up(&mut self, phase: Phase, cx: &mut Context<'_>) -> io::Error {
        let word = if phase == Phase::Idle { "idle" } else { "header" };
        *self.progress.timed_out.lock() = Some(word);
        if phase == Phase::Header {
            let detail = "the header did not come in time";
            let said = last_answer(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail);
            // As far as the socket takes it at once.
            let _ = Pin::new(&mut self.inner).poll_write(cx, said.as_bytes());
        }
        io::ErrorKind::TimedOut.into()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buffer.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                if buffer.filled().len() > before {
                    self.progress.read();
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_deadline(cx).map(Err),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TimedStream<S> {
    fn wrote(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if result.is_pending() {
            return self.poll_deadline(cx).map(Err);
        }
        self.progress.wrote();
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wrote(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, pieces);
        self.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;

    const LIMITS: Limits = Limits {
        bound: "these",
        max_connections: 1,
        header_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(75),
    };

    fn stream(room: usize) -> (TimedStream<tokio::io::DuplexStream>, tokio::io::DuplexStream, Arc<Progress>) {
        let (ours, theirs) = duplex(room);
        let progress = Arc::new(Progress::new(LIMITS));
        (TimedStream::new(ours, Arc::clone(&progress)), theirs, progress)
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_trickles_gets_408_and_silence_only_an_end() {
        let begun = Instant::now();
        let (mut quiet, _keep, progress) = stream(1024);
        assert_eq!(quiet.first_byte().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!((begun.elapsed(), progress.timed_out()), (LIMITS.header_timeout, Some("header")));

        let (mut slow, mut client, _progress) = stream(1024);
        let begun = Instant::now();
        let trickle = async {
            loop {
                client.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let mut all = [0; 64];
        let given_up = async { while slow.read(&mut all).await.is_ok() {} };
        tokio::select! { () = trickle => {}, () = given_up => {} }
        assert_eq!(begun.elapsed(), LIMITS.header_timeout);
        let mut said = [0; 12];
        client.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"HTTP/1.1 408");
    }

    #[tokio::test(start_paused = true)]
    async fn work_has_no_deadline_here_and_the_pause_after_it_has() {
        let (mut stream, mut client, progress) = stream(8);
        client.write_all(b"x").await.unwrap();
        assert!(stream.first_byte().await.unwrap());
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        progress.serving();
        let pause = tokio::time::timeout(Duration::from_hours(1), stream.read(&mut byte)).await;
        assert!(pause.is_err(), "it is we who take long");
        // A read that began while we worked ends as well.
        let begun = Instant::now();
        let (read, ()) = tokio::join!(stream.read(&mut byte), async { progress.answered() });
        assert!(read.is_err());
        assert_eq!((begun.elapsed(), progress.timed_out()), (LIMITS.idle_timeout, Some("idle")));
        // Nor is it waited for one that does not take its answer.
        progress.answered();
        let begun = Instant::now();
        assert!(stream.write_all(&[0; 64]).await.is_err());
        assert_eq!(begun.elapsed(), LIMITS.idle_timeout);
    }
}
