//! Relays a WebSocket after its handshake: bytes in both directions.

use std::pin::pin;
use std::time::Duration;

use pingora_core::protocols::http::{HttpTask, ServerSession as Session};
use pingora_core::{Error, ErrorType, Result};
use tokio::time::{self, sleep};

use super::client::{FromClient, Listens, client_event, send_to_client};
use crate::engine::websockets::Open;
use crate::upstream::connection::{Event, UpstreamConnection};

/// A WebSocket is closed after so long without a byte.
const QUIET: Duration = Duration::from_hours(1);

/// How long the upstream may still send after its client has ended.
const HALF_CLOSED: Duration = Duration::from_secs(5);

/// Relays bytes until either side ends it, or until its admission is withdrawn.
pub(super) async fn relay_websocket(
    session: &mut Session,
    connection: &mut UpstreamConnection,
    open: Option<&Open>,
) -> Result<()> {
    let closed = async {
        match open {
            Some(open) => open.closed().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        passed = pass_both_ways(session, connection) => passed,
        () = closed => Err(Error::new_down(ErrorType::ConnectionClosed)),
    }
}

async fn pass_both_ways(session: &mut Session, connection: &mut UpstreamConnection) -> Result<()> {
    let (mut listens, mut patience) = (true, QUIET);
    let mut alarm = pin!(sleep(patience));
    loop {
        let flushed = !session.has_pending_downstream_proxy_tasks();
        let listens_now = if listens && !connection.is_sending() { Listens::ForBody } else { Listens::No };
        tokio::select! {
            event = connection.next(flushed), if connection.is_sending() || flushed => match event? {
                Event::Piece(piece, _) => send_to_client(session, HttpTask::UpgradedBody(Some(piece), false)).await?,
                Event::End(_) => {
                    session.response_duplex_vec(vec![HttpTask::Done]).await.map_err(Error::into_down)?;
                    return Ok(());
                }
                Event::Sent | Event::Head(..) => {}
            },
            event = client_event(session, listens_now) => match event? {
                FromClient::Took => {}
                FromClient::Sent(Some(piece)) => connection.send(piece, false),
                FromClient::Sent(None) => {
                    connection.close_sending();
                    (listens, patience) = (false, HALF_CLOSED);
                }
            },
            () = &mut alarm => return Ok(()), // this is not a failure
        }
        alarm.as_mut().reset(time::Instant::now() + patience);
    }
}
