//! The client's side of a relay: what it is told and what is heard of it, both at once.

use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use pingora_core::protocols::http::{HttpTask, ServerSession as Session};
use pingora_core::{Error, ErrorType, Result};

use crate::request::failure::{connection, is_http2};

/// What is heard of a client.
pub(super) enum FromClient {
    /// It has taken what was told.
    Took,
    /// A piece of the request's body, or its end.
    Sent(Option<Bytes>),
}

/// What is listened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Listens {
    /// More of the request's body.
    ForBody,
    /// That a client leaves which has sent everything.
    ForEnd,
    /// Nothing that would have to be read.
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

/// Gives a client what it was told, and listens to it meanwhile: one that takes nothing before it has sent everything is
/// not waited for. Over HTTP/2 there is nothing left to give. Nothing is lost when this is dropped before it is done.
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
            // What the client sends stays where it is: only its leaving is heard.
            return pin!(session.read_body_or_idle(true)).poll(cx).map_ok(FromClient::Sent);
        }
        Poll::Pending
    })
    .await
    .map_err(Error::into_down)
}

/// Tells a client something: it takes it when it is [listened to](client_event), over HTTP/2 at once.
pub(super) async fn send_to_client(session: &mut Session, task: HttpTask) -> Result<()> {
    if session.supports_proxy_task_api() {
        session.send_downstream_proxy_task(task);
        return Ok(());
    }
    session.response_duplex_vec(vec![task]).await.map(drop).map_err(Error::into_down)
}
