//! The `WebSocket`s that are open, and what each was let in by.

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

/// A token's end is looked for at least so often: the wall clock may be set.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// The open ones.
pub struct WebSockets {
    open: Mutex<HashMap<u64, Arc<WebSocket>>>,
    next: AtomicU64,
    /// Woken when they should be judged again.
    pub judge_again: Arc<Notify>,
}

/// What one was let in by: its handshake, proof and all.
pub struct Handshake {
    /// The address at the other end of the connection.
    pub peer: IpAddr,
    /// The normal path.
    pub path: String,
    /// Its header.
    pub header: RequestHeader,
    /// Its request id.
    pub request_id: String,
    /// Who was let in.
    pub subject: Subject,
}

/// One that is open.
pub struct WebSocket {
    /// What it was let in by.
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

/// An open one, until this is dropped.
pub struct Open {
    all: Arc<WebSockets>,
    number: u64,
    /// Woken when it has to be closed.
    pub cut: Arc<Notify>,
    ends: Option<Timestamp>,
}

impl Open {
    /// Notes a WebSocket that was let in.
    pub fn new(all: &Arc<WebSockets>, handshake: Handshake) -> Self {
        let (cut, ends) = (Arc::new(Notify::new()), handshake.subject.ends());
        let websocket = WebSocket { handshake, cut: Arc::clone(&cut), closed: AtomicBool::new(false) };
        let number = all.next.fetch_add(1, Ordering::Relaxed);
        all.open.lock().insert(number, Arc::new(websocket));
        all.judge_again.notify_one(); // what was taken back while it was let in is found now
        Self { all: Arc::clone(all), number, cut, ends }
    }

    /// Waits until it has to be closed, and has it judged again when its token ends.
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
    /// None yet; `judge_again` is woken when they should be judged again.
    pub fn new(judge_again: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), next: AtomicU64::new(0), judge_again })
    }

    /// Those that are open.
    pub fn all(&self) -> Vec<Arc<WebSocket>> {
        self.open.lock().values().map(Arc::clone).collect()
    }

    /// Open ones.
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
