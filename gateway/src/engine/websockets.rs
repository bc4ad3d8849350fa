//! The open `WebSocket`s, and the handshake that admitted each of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pingora_http::RequestHeader;
use policy::rules::authenticate::Subject;
use policy::values::time::Timestamp;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::clock;

/// How often the end of a token is checked at least, because the wall clock may be set.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// The open `WebSocket`s.
pub struct WebSockets {
    open: Mutex<HashMap<u64, Arc<WebSocket>>>,
    next: AtomicU64,
    /// Woken when all of them should be judged again.
    pub judge_again: Arc<Notify>,
}

/// The handshake that admitted a `WebSocket`, with its token or API key.
pub struct Handshake {
    /// The address at the other end of the connection.
    pub peer: IpAddr,
    /// The normal path.
    pub path: String,
    /// Its header.
    pub header: RequestHeader,
    /// Its request id.
    pub request_id: String,
    /// Who was admitted.
    pub subject: Subject,
}

/// An open `WebSocket`.
pub struct WebSocket {
    /// The handshake that admitted it.
    pub handshake: Handshake,
    cut: Arc<Notify>,
    closed: AtomicBool,
}

impl WebSocket {
    /// Closes it; `false` when it was closed before.
    pub fn close(&self) -> bool {
        let first = !self.closed.swap(true, Ordering::Relaxed);
        if first {
            self.cut.notify_one();
        }
        first
    }
}

/// Registers an open `WebSocket` until this is dropped.
pub struct Open {
    all: Arc<WebSockets>,
    number: u64,
    /// Woken when the `WebSocket` has to be closed.
    pub cut: Arc<Notify>,
    ends: Option<Timestamp>,
}

impl Open {
    /// Registers a WebSocket that was admitted.
    pub fn new(all: &Arc<WebSockets>, handshake: Handshake) -> Self {
        let (cut, ends) = (Arc::new(Notify::new()), handshake.subject.ends());
        let websocket = WebSocket { handshake, cut: Arc::clone(&cut), closed: AtomicBool::new(false) };
        let number = all.next.fetch_add(1, Ordering::Relaxed);
        all.open.lock().insert(number, Arc::new(websocket));
        all.judge_again.notify_one(); // so a revocation that came during the admission takes effect now
        Self { all: Arc::clone(all), number, cut, ends }
    }

    /// Waits until it has to be closed. Starts judging again when its token ends.
    pub async fn closed(&self) {
        let ended = async {
            let Some(ends) = self.ends else { return std::future::pending().await };
            loop {
                let left = ends.since(clock::wall());
                sleep(left.clamp(Duration::from_millis(1), LONGEST_WAIT)).await;
                if clock::wall() >= ends {
                    self.all.judge_again.notify_one();
                    sleep(LONGEST_WAIT).await;
                }
            }
        };
        tokio::select! {
            () = self.cut.notified() => {}
            () = ended => {}
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.all.open.lock().remove(&self.number);
    }
}

impl WebSockets {
    /// Begins without any; `judge_again` is woken when all of them should be judged again.
    pub fn new(judge_again: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), next: AtomicU64::new(0), judge_again })
    }

    /// All that are open.
    pub fn all(&self) -> Vec<Arc<WebSocket>> {
        self.open.lock().values().map(Arc::clone).collect()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
