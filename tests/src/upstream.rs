//! An upstream that says what a test wants it to say, byte by byte, and remembers what it was sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::PATIENCE;

/// Pieces of an answer, each after a wait.
pub type Script = Vec<(Duration, &'static [u8])>;

/// A scripted upstream.
pub struct RawUpstream {
    /// Where it listens.
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RawUpstream {
    /// Answers each connection's first header with `script`, then reads on, and echoes where `echo` says so.
    pub async fn start(script: Script, echo: bool) -> Self {
        Self::start_each(vec![script], echo).await
    }

    /// Answers the first connection with the first script, and so on; those beyond the last one with the last.
    pub async fn start_each(scripts: Vec<Script>, echo: bool) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").await.unwrap(), scripts, echo)
    }

    /// Answers at a port of one's choice.
    pub async fn start_at(port: u16, script: Script) -> Self {
        Self::listen(TcpListener::bind(("127.0.0.1", port)).await.unwrap(), vec![script], false)
    }

    fn listen(listener: TcpListener, scripts: Vec<Script>, echo: bool) -> Self {
        let address = listener.local_addr().unwrap();
        let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let all = Arc::clone(&received);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let all = Arc::clone(&all);
                let number = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let script = scripts[number.min(scripts.len() - 1)].clone();
                tokio::spawn(async move {
                    let (mut piece, mut answered) = ([0; 8192], false);
                    while let Ok(count @ 1..) = stream.read(&mut piece).await {
                        let whole = {
                            let mut all = all.lock().unwrap();
                            all[number].extend_from_slice(&piece[..count]);
                            all[number].windows(4).any(|four| four == b"\r\n\r\n")
                        };
                        if answered && echo {
                            let _ = stream.write_all(&piece[..count]).await;
                        }
                        if whole && !answered {
                            answered = true;
                            for (wait, piece) in &script {
                                tokio::time::sleep(*wait).await; // as the script says
                                let _ = stream.write_all(piece).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, received }
    }

    /// Waits until what each connection has sent is as it should be: an answer may be with the client before the end of the
    /// request is here.
    pub async fn receives(&self, is_right: impl Fn(&[String]) -> bool) {
        let begun = Instant::now();
        while !is_right(&self.received()) {
            assert!(begun.elapsed() < PATIENCE, "{:?}", self.received());
            tokio::time::sleep(Duration::from_millis(10)).await; // between two looks
        }
    }

    /// What each connection has sent so far.
    pub fn received(&self) -> Vec<String> {
        let received = self.received.lock().unwrap();
        received.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}
