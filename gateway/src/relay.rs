//! Passing a request on to its upstream and the answer back, as often as it takes.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora_core::protocols::http::{HttpTask, ServerSession as Session};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use tokio::time::{self, sleep, sleep_until};
use tracing::error;

use crate::again::try_again;
use crate::exchange::Exchange;
use crate::failure::{BODY_TOO_LARGE, BODY_TOO_SLOW, connection, understand};
use crate::forward;
use crate::hop::{Event, Hop};
use crate::proxy::Proxy;
use crate::tunnels::Open;

/// A WebSocket through which nothing passes for so long is closed.
const QUIET_TUNNEL: Duration = Duration::from_hours(1);

/// For the rest of a request whose answer is whole, while the upstream takes nothing.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// For what an upstream still says through a tunnel whose client says nothing more.
const HALF_CLOSED: Duration = Duration::from_secs(5);

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    Answered,
    Again,
}

impl Proxy {
    /// Sends an admitted request to its upstream, again where the policy says so, and the client the answer.
    pub(crate) async fn relay(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        session.enable_retry_buffering();
        session.set_proxy_tasks_enabled(true);
        loop {
            let peer = self.next_peer(exchange).await?;
            let tried = self.try_once(session, exchange, &peer).await;
            if tried.as_ref().is_ok_and(|tried| *tried == Try::Answered) {
                return Ok(());
            }
            exchange.upstream_is_done();
            let Err(fault) = tried else { continue };
            let again = understand(session, &fault).is_some_and(|(_, outcome)| {
                exchange.tell_address(outcome);
                try_again(&self.gateway, session, exchange, outcome, None)
            });
            if !again {
                return Err(fault);
            }
        }
    }

    /// Where the next try goes, when it is time for it.
    async fn next_peer(&self, exchange: &mut Exchange) -> Result<HttpPeer> {
        let internal = || Error::explain(ErrorType::InternalError, "not admitted");
        let admission = exchange.admission.as_ref().ok_or_else(internal)?;
        let route = Arc::clone(&admission.route);
        if let Some(wait) = exchange.begin_try() {
            tokio::time::sleep(wait).await;
        }
        if let Some(rule) = route.retry.as_deref().filter(|_| exchange.tries == 1) {
            self.gateway.retry_budgets.pay_in(&route.upstream, rule);
        }
        let last = exchange.turn.take().map(|turn| turn.member());
        let found = self.upstreams.peer(&route.upstream, exchange.try_timeout(), last).await;
        exchange.asked_upstream = Some(Instant::now());
        let (mut peer, turn) = found.map_err(|error| {
            error!(upstream = &*route.upstream, error = format!("{error:#}"), "no address");
            Error::new_up(ErrorType::ConnectError)
        })?;
        exchange.turn = Some(turn);
        if exchange.handshake {
            peer.options.set_http_version(1, 1); // HTTP/2 has no such upgrade
        }
        Ok(peer)
    }

    /// One try. A kept connection that was closed meanwhile is nobody's failure: the request goes over a new one.
    async fn try_once(&self, session: &mut Session, exchange: &mut Exchange, peer: &HttpPeer) -> Result<Try> {
        let mut fresh = false;
        loop {
            let mut hop = self.pool.connect(peer, fresh).await.map_err(Error::into_up)?;
            let carried = self.carry(session, exchange, &mut hop, peer).await;
            let Err(fault) = &carried else {
                self.pool.release(hop, peer, false);
                return carried;
            };
            let unfit = self.pool.learn(peer, fault);
            let repeatable = session.req_header().method.is_idempotent();
            let unheard = hop.is_untouched(fault) || ((unfit || hop.is_stale(fault)) && repeatable);
            self.pool.release(hop, peer, is_timeout(fault));
            if fresh || !unheard || session.retry_buffer_truncated() {
                return carried;
            }
            (fresh, exchange.received) = (true, 0);
        }
    }

    /// Carries the request's body up and the answer down, both at once.
    async fn carry(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        hop: &mut Hop,
        peer: &HttpPeer,
    ) -> Result<Try> {
        let read_before = session.get_retry_buffer();
        let mut read_whole = session.is_body_done();
        let (signer, has_body) = (self.signer.as_ref(), !session.is_body_empty());
        let request = forward::outgoing(session.req_header(), exchange, signer, hop.is_http2(), has_body)?;
        let scheme = if peer.is_tls() { "https" } else { "http" };
        hop.begin(request, scheme, read_whole && read_before.is_none())?;
        if let Some(piece) = exchange.take_in(read_before)? {
            hop.send(piece, read_whole);
        }
        let patience = exchange.try_timeout();
        let body_deadline = time::Instant::from_std(exchange.started + exchange.request_timeout());
        let mut alarm = pin!(sleep_until(body_deadline));
        let mut answered = false;
        loop {
            let told = !session.has_pending_downstream_proxy_tasks();
            let sent = !hop.takes_more() || (read_whole && !hop.is_sending());
            if answered && told && sent {
                return Ok(Try::Answered);
            }
            let waits_for_body = !read_whole && hop.takes_more() && !hop.is_sending();
            alarm.as_mut().reset(match (waits_for_body, answered) {
                (true, _) => body_deadline,
                (false, false) => time::Instant::now() + patience,
                (false, true) => time::Instant::now() + AFTERWARDS.min(patience),
            });
            let listens = match (waits_for_body, read_whole) {
                (true, _) => Listens::ForBody,
                (false, true) => Listens::ForEnd,
                (false, false) => Listens::No,
            };
            tokio::select! {
                event = hop.next(told), if hop.is_sending() || (told && !answered) => match event? {
                    Event::Sent => {}
                    Event::Head(mut header, false) if is_informational(&header) => {
                        forward::clean_hint(&mut header);
                        session.write_response_header(header).await.map_err(Error::into_down)?;
                    }
                    Event::Head(mut header, end) => {
                        if !self.take_head(session, exchange, &mut header, end)? {
                            return Ok(Try::Again);
                        }
                        if self.is_leaving() {
                            session.set_keepalive(None);
                        }
                        let upgraded = header.status == StatusCode::SWITCHING_PROTOCOLS;
                        tell(session, HttpTask::Header(header, end)).await?;
                        if upgraded {
                            return tunnel(session, hop, exchange.tunnel.as_ref()).await;
                        }
                        answered = end;
                    }
                    Event::Piece(piece, end) => {
                        self.take_piece(exchange, &piece, end);
                        tell(session, HttpTask::Body(Some(piece), end)).await?;
                        answered = end;
                    }
                    Event::End(trailers) => {
                        self.take_piece(exchange, &Bytes::new(), true);
                        end_answer(session, exchange, trailers).await?;
                        answered = true;
                    }
                },
                event = client_event(session, listens) => {
                    let taken = match event {
                        Ok(FromClient::Took) => continue,
                        Ok(FromClient::Sent(piece)) => exchange.take_in(piece),
                        Err(fault) => Err(fault),
                    };
                    let piece = match taken {
                        Err(_) if answered && told => return Ok(Try::Answered),
                        taken => taken?,
                    };
                    read_whole = piece.is_none() || session.is_body_done();
                    let piece = piece.unwrap_or_default();
                    if !piece.is_empty() || read_whole {
                        hop.send(piece, read_whole);
                    }
                }
                // While a client is slow to take its answer, an upstream may be slow as well.
                () = &mut alarm, if told || waits_for_body => {
                    // Whoever has the whole answer has lost nothing.
                    return if answered && told { Ok(Try::Answered) } else { late(hop, waits_for_body) };
                }
            }
        }
    }
}

/// A tunnel, until either side ends it or what let it in is taken back.
async fn tunnel(session: &mut Session, hop: &mut Hop, open: Option<&Open>) -> Result<Try> {
    let cut = open.map(|open| Arc::clone(&open.cut)).unwrap_or_default();
    tokio::select! {
        passed = pass_both_ways(session, hop) => passed,
        () = cut.notified() => Err(Error::new_down(ErrorType::ConnectionClosed)),
    }
}

async fn pass_both_ways(session: &mut Session, hop: &mut Hop) -> Result<Try> {
    let (mut listens, mut patience) = (true, QUIET_TUNNEL);
    let mut alarm = pin!(sleep(patience));
    loop {
        let told = !session.has_pending_downstream_proxy_tasks();
        let listens_now = if listens && !hop.is_sending() { Listens::ForBody } else { Listens::No };
        tokio::select! {
            event = hop.next(told), if hop.is_sending() || told => match event? {
                Event::Piece(piece, _) => tell(session, HttpTask::UpgradedBody(Some(piece), false)).await?,
                Event::End(_) => {
                    session.response_duplex_vec(vec![HttpTask::Done]).await.map_err(Error::into_down)?;
                    return Ok(Try::Answered);
                }
                Event::Sent | Event::Head(..) => {}
            },
            event = client_event(session, listens_now) => match event? {
                FromClient::Took => {}
                FromClient::Sent(Some(piece)) => hop.send(piece, false),
                FromClient::Sent(None) => {
                    hop.close_sending();
                    (listens, patience) = (false, HALF_CLOSED);
                }
            },
            () = &mut alarm => return Ok(Try::Answered), // nobody has failed
        }
        alarm.as_mut().reset(time::Instant::now() + patience);
    }
}

/// What is heard of a client.
enum FromClient {
    /// It has taken what was told.
    Took,
    /// A piece of the request's body, or its end.
    Sent(Option<Bytes>),
}

/// What is listened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listens {
    /// More of the request's body.
    ForBody,
    /// That a client leaves which has sent everything.
    ForEnd,
    /// Nothing that would have to be read.
    No,
}

/// Gives a client what it was told, and listens to it meanwhile: one that takes nothing before it has sent everything is
/// not waited for. Over HTTP/2 there is nothing left to give. Nothing is lost when this is dropped before it is done.
async fn client_event(session: &mut Session, listens: Listens) -> Result<FromClient> {
    let has_taken_all = !session.has_pending_downstream_proxy_tasks();
    if listens == Listens::No
        && has_taken_all
        && let Some(connection) = connection(session)
    {
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
        let Some(left) = session.watch_h2_stream_close() else { return Poll::Pending };
        pin!(left).poll(cx).map(|_| Err(Error::new(ErrorType::ConnectionClosed)))
    })
    .await
    .map_err(Error::into_down)
}

/// Ends the answer, with its trailers where the client can be told of them.
async fn end_answer(
    session: &mut Session,
    exchange: &mut Exchange,
    trailers: Option<HeaderMap>,
) -> Result<()> {
    let mut trailers = trailers.unwrap_or_default();
    Proxy::take_trailers(exchange, &mut trailers);
    if trailers.is_empty() {
        return tell(session, HttpTask::Done).await;
    }
    if let Some(connection) = connection(session) {
        connection.set_trailers(&trailers);
    }
    tell(session, HttpTask::Trailer(Some(Box::new(trailers)))).await
}

/// Tells a client something: it takes it when it is [listened to](client_event), over HTTP/2 at once.
async fn tell(session: &mut Session, task: HttpTask) -> Result<()> {
    if session.supports_proxy_task_api() {
        session.send_downstream_proxy_task(task);
        return Ok(());
    }
    session.response_duplex_vec(vec![task]).await.map(drop).map_err(Error::into_down)
}

/// Informational, and not the last word.
fn is_informational(header: &ResponseHeader) -> bool {
    header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS
}

/// Nothing moved for too long. Who was to move: an upstream that waits for a body which does not come has not failed.
fn late(hop: &Hop, waits_for_body: bool) -> Result<Try> {
    Err(if waits_for_body {
        Error::new_down(BODY_TOO_SLOW)
    } else if hop.is_sending() {
        Error::new_up(ErrorType::WriteTimedout)
    } else {
        Error::new_up(ErrorType::ReadTimedout)
    })
}

fn is_timeout(fault: &Error) -> bool {
    matches!(fault.etype(), ErrorType::WriteTimedout | ErrorType::ReadTimedout)
        && *fault.esource() == pingora_core::ErrorSource::Upstream
}

impl Exchange {
    /// Takes in a piece of the request's body, if there is one more.
    fn take_in(&mut self, piece: Option<Bytes>) -> Result<Option<Bytes>> {
        let Some(piece) = piece else { return Ok(None) };
        self.received += piece.len() as u64;
        if self.received > self.max_body() {
            return Err(Error::new_down(BODY_TOO_LARGE));
        }
        if !piece.is_empty() && self.started.elapsed() > self.request_timeout() {
            return Err(Error::new_down(BODY_TOO_SLOW));
        }
        Ok(Some(piece))
    }
}
