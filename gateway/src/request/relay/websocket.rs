//! A WebSocket after its handshake: bytes both ways.

use std::pin::pin;
use std::time::Duration;

use pingora_core::protocols::http::{HttpTask, ServerSession as Session};
use pingora_core::{Error, ErrorType, Result};
use tokio::time::{self, sleep};

use super::client::{FromClient, Listens, client_event, tell};
use crate::engine::websockets::Open;
use crate::upstream::connection::{Event, Hop};

/// One through which nothing passes for so long is closed.
const QUIET: Duration = Duration::from_hours(1);

/// For what an upstream still says whose client says nothing more.
const HALF_CLOSED: Duration = Duration::from_secs(5);

/// Passes bytes until either side ends it or what let it in is taken back.
pub(super) async fn tunnel(session: &mut Session, hop: &mut Hop, open: Option<&Open>) -> Result<()> {
    let closed = async {
        match open {
            Some(open) => open.closed().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        passed = pass_both_ways(session, hop) => passed,
        () = closed => Err(Error::new_down(ErrorType::ConnectionClosed)),
    }
}

async fn pass_both_ways(session: &mut Session, hop: &mut Hop) -> Result<()> {
    let (mut listens, mut patience) = (true, QUIET);
    let mut alarm = pin!(sleep(patience));
    loop {
        let told = !session.has_pending_downstream_proxy_tasks();
        let listens_now = if listens && !hop.is_sending() { Listens::ForBody } else { Listens::No };
        tokio::select! {
            event = hop.next(told), if hop.is_sending() || told => match event? {
                Event::Piece(piece, _) => tell(session, HttpTask::UpgradedBody(Some(piece), false)).await?,
                Event::End(_) => {
                    session.response_duplex_vec(vec![HttpTask::Done]).await.map_err(Error::into_down)?;
                    return Ok(());
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
            () = &mut alarm => return Ok(()), // nobody has failed
        }
        alarm.as_mut().reset(time::Instant::now() + patience);
    }
}
