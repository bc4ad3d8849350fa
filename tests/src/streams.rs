//! An upstream of long streams: a body as large as one likes either way, and events that continue.
//!
//! `GET /down/BYTES` sends so many, `POST /up` counts what it is sent, `PUT /echo` sends it back as it comes, `PUT /both` sends
//! as much while it reads on, `GET /events/COUNT`
//! sends an event a second.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A policy that lets bodies of a gigabyte pass.
pub const LARGE_BODIES: &str = r#"
version = 1
[requests]
max_body = "2GB"
request_timeout = "5m"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
"#;

/// The length of the large bodies, in bytes.
pub const GIGABYTE: u64 = 1_000_000_000;

/// Starts one, until the test ends.
pub async fn streams() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// The path and the announced length of the next request; `None`: there is none.
async fn read_head(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, u64)>> {
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_ascii_lowercase();
        if path.is_empty() {
            line.split(' ').nth(1).unwrap_or_default().clone_into(&mut path);
        } else if let Some(announced) = line.strip_prefix("content-length: ") {
            length = announced.parse().unwrap();
        } else if line.is_empty() {
            return Ok(Some((path, length)));
        }
    }
}

async fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(256 * 1024, stream);
    while let Some((path, mut length)) = read_head(&mut stream).await? {
        let number = path.rsplit('/').next().and_then(|last| last.parse::<u64>().ok()).unwrap_or(0);
        if path.starts_with("/down/") {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {number}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            let source = tokio::io::repeat(b'x').take(number);
            tokio::io::copy_buf(&mut BufReader::with_capacity(64 * 1024, source), &mut stream).await?;
        } else if path == "/echo" {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            let mut piece = vec![0; 64 * 1024];
            while length > 0 {
                let count = stream.read(&mut piece).await?;
                if count == 0 {
                    return Ok(());
                }
                stream.write_all(&piece[..count]).await?;
                length -= count as u64;
            }
        } else if path == "/both" {
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let taking =
                async { tokio::io::copy(&mut (&mut read).take(length), &mut tokio::io::sink()).await };
            let giving = async {
                write
                    .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes())
                    .await?;
                tokio::io::copy(&mut tokio::io::repeat(b'x').take(length), &mut write).await
            };
            tokio::try_join!(taking, giving)?;
        } else if path.starts_with("/events/") {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await?;
            for event in 0..number {
                let data = format!("data: {event}\n\n");
                stream.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes()).await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_secs(1)).await; // what the path asks for
            }
            stream.write_all(b"0\r\n\r\n").await?;
        } else {
            let got = tokio::io::copy_buf(&mut (&mut stream).take(length), &mut tokio::io::sink()).await?;
            let body = got.to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(head.as_bytes()).await?;
        }
        stream.flush().await?;
    }
    Ok(())
}
