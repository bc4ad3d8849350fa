//! `backend-sqlite healthcheck`: a container without a shell asks its own service whether it is ready.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// For the whole answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Succeeds when `/health/ready` at `listen` answers 200.
pub(crate) fn run(listen: &str) -> anyhow::Result<()> {
    let answer = if let Some(path) = listen.strip_prefix("unix:") {
        let stream = UnixStream::connect(path).with_context(|| format!("nothing answers at `{listen}`"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        ask(stream)?
    } else {
        let address = listen.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:");
        let stream =
            TcpStream::connect(&address).with_context(|| format!("nothing answers at `{address}`"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        ask(stream)?
    };
    match answer.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some(status) => bail!("not ready: status {status}"),
        None => bail!("not ready: no HTTP answer"),
    }
}

fn ask(mut stream: impl Read + Write) -> anyhow::Result<String> {
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = vec![0; 64];
    let read = stream.read(&mut answer).context("no answer")?;
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}
