//! A listener's connections: how many there may be, and how long each may take for what it does next.
//!
//! A connection costs a task and a socket until its first byte comes, and two buffers of 8 KiB from then on. What may
//! take time ends by a deadline: the header, the body, the pause between requests, and taking an answer.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tower_service::Service as _;
use tracing::{debug, warn};

use crate::last_answer::last_answer;
use crate::timed_stream::{Progress, TimedStream};

pub use crate::timed_stream::Limits;

/// The largest head of a request, in bytes; a larger one is answered 431.
const MAX_HEAD: usize = 64 * 1024;

/// How often the log says that connections are refused, at most.
const SAY_AGAIN: Duration = Duration::from_mins(1);

/// What a listener counts.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Connections that are open.
    pub open: IntGauge,
    /// Connections beyond the bound.
    pub refused: IntCounter,
    /// Connections that ended by a deadline; the label is the phase.
    pub timed_out: IntCounterVec,
}

/// When the body of a request has to be here; among the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct BodyDeadline(pub Instant);

/// Accepts until `stop`, then lets requests in flight finish.
pub async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    limits: Limits,
    counters: Counters,
    stop: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let stopping = watch::Sender::new(false);
    let mut said: Option<Instant> = None;
    let mut stop = pin!(stop);
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            counters.refused.inc();
            if said.is_none_or(|said| said.elapsed() > SAY_AGAIN) {
                said = Some(Instant::now());
                let Limits { bound, max_connections, .. } = limits;
                warn!(max_connections, "connections are refused: all of {bound} are taken");
            }
            refuse(stream).await;
            continue;
        };
        let (router, counters, stopping) = (router.clone(), counters.clone(), stopping.subscribe());
        tokio::spawn(async move {
            counters.open.inc();
            answer(stream, router, limits, &counters, stopping).await;
            counters.open.dec();
            drop(place);
        });
    }
    drop(listener);
    stopping.send_replace(true);
    stopping.closed().await; // when the last connection has let go of it
}

/// Says why, as far as the socket takes it at once, and closes.
async fn refuse(mut stream: impl AsyncWrite + Unpin) {
    let said =
        last_answer(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", "all connections are taken");
    // Nobody is waited for here: the other connections would wait, too.
    let _ = timeout(Duration::ZERO, async {
        stream.write_all(said.as_bytes()).await?;
        stream.shutdown().await
    })
    .await;
}

/// Answers the requests of one connection.
async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    router: Router,
    limits: Limits,
    counters: &Counters,
    mut stopping: watch::Receiver<bool>,
) {
    let progress = Arc::new(Progress::new(limits));
    let mut stream = TimedStream::new(stream, Arc::clone(&progress));
    let stop = async |stopping: &mut watch::Receiver<bool>| drop(stopping.wait_for(|stop| *stop).await);
    // Until there is something to read, no buffer is made.
    let begun = tokio::select! {
        begun = stream.first_byte() => begun,
        () = stop(&mut stopping) => return,
    };
    let served = match begun {
        Ok(true) => {
            let service = service_fn(|mut request: hyper::Request<Incoming>| {
                progress.serving();
                request.extensions_mut().insert(BodyDeadline(Instant::now() + limits.request_timeout));
                let (mut router, progress) = (router.clone(), Arc::clone(&progress));
                async move {
                    let answer = router.call(Request::from(request)).await;
                    progress.answered();
                    Ok::<_, Infallible>(answer.unwrap_or_else(|never| match never {}))
                }
            });
            let mut builder = http1::Builder::new();
            builder.max_buf_size(MAX_HEAD).header_read_timeout(None);
            let mut connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                served = connection.as_mut() => served.map_err(io::Error::other),
                () = stop(&mut stopping) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await.map_err(io::Error::other)
                }
            }
        }
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    if let Some(phase) = progress.timed_out() {
        counters.timed_out.with_label_values(&[phase]).inc();
    } else if let Err(error) = served {
        debug!(error = error.to_string(), "a connection broke off");
    }
}
