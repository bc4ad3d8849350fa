//! A TCP proxy that can be cut: what goes through it stops, and nobody can connect, until it is mended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy to one address.
pub struct FaultProxy {
    address: SocketAddr,
    cut: watch::Sender<bool>,
    refused: Arc<AtomicUsize>,
}

impl FaultProxy {
    /// A proxy to `target` on a port of its own.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, state) = watch::channel(false);
        let refused = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&refused);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut state, count) = (state.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    if *state.borrow() {
                        count.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = state.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Self { address, cut, refused }
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection and takes no new one.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// How many connections came while it was cut.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Works again.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}
