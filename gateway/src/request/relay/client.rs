//! The client's side of a relay: sending to the client and receiving from it, both at once.

use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use pingora_core::protocols::http::{HttpTask, ServerSession as Session};
use pingora_core::{Error, ErrorType, Result};

use crate::request::failure::{connection, is_http2};

/// What is received from a client.
pub(super) enum FromClient {
    /// It has taken what was sent.
    Took,
    /// A piece of the request's body, or its end.
    Sent(Option<Bytes>),
}

/// What to wait for from the client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Listens {
    /// More of the request's body.
    ForBody,
    /// The end of the connection, after the client has sent everything.
    ForEnd,
    /// Nothing that has to be read.
    No,
}

impl Listens {
    pub(super) const fn to(waits_for_body: bool, read_whole: bool) -> Self {
        match (waits_for_body, read_whole) {
            (true, _) => Self::ForBody,
            (false, true) => Self::ForEnd,
            (false, false) => Self::No,
        }
    }
}

/// Sends the pending parts of the answer and receives from the client at the same time, because a client may read
/// nothing before it has sent everything. Over HTTP/2 nothing is pending here. Nothing is lost when this future is
/// dropped early.
pub(super) async fn client_event(session: &mut Session, listens: Listens) -> Result<FromClient> {
    let flushed = !session.has_pending_downstream_proxy_tasks();
    if let (true, Listens::No, Some(connection)) = (flushed, listens, connection(session)) {
        connection.reset().await;
        return Err(Error::new_down(ErrorType::ConnectionClosed));
    }
    std::future::poll_fn(|cx| {
        if session.has_pending_downstream_proxy_tasks()
            && let Poll::Ready(taken) = pin!(session.write_downstream_proxy_tasks()).poll(cx)
        {
            return Poll::Ready(taken.map(|_| FromClient::Took));
        }
        if listens != Listens::No {
            let read = pin!(session.read_body_or_idle(listens == Listens::ForEnd)).poll(cx);
            return read.map_ok(FromClient::Sent);
        }
        if is_http2(session) {
            // The client's bytes are not read; only the end of the stream is noticed.
            return pin!(session.read_body_or_idle(true)).poll(cx).map_ok(FromClient::Sent);
        }
        Poll::Pending
    })
    .await
    .map_err(Error::into_down)
}

/// Sends a part of the answer. It is written by [`client_event`], and over HTTP/2 at once.
pub(super) async fn send_to_client(session: &mut Session, task: HttpTask) -> Result<()> {
    if session.supports_proxy_task_api() {
        session.send_downstream_proxy_task(task);
        return Ok(());
    }
    session.response_duplex_vec(vec![task]).await.map(drop).map_err(Error::into_down)
}
