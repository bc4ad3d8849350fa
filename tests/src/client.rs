//! Clients: HTTP from any loopback address, and raw sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::PATIENCE;

/// A client with an address; all of 127/8 is this machine.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    from: Ipv4Addr,
    to: SocketAddr,
    host: &'static str,
}

/// An answer, read whole.
pub struct Answer {
    /// Status and fields.
    pub head: http::response::Parts,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// An answer over HTTP/1.1 whose body has an announced length or ends with the connection.
    pub fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let (status, fields) = head.split_once("\r\n").unwrap_or((head, ""));
        let mut answer = http::Response::builder().status(status.get(9..12).unwrap_or_default());
        for (name, value) in fields.lines().filter_map(|field| field.split_once(':')) {
            answer = answer.header(name, value.trim());
        }
        Self { head: answer.body(()).unwrap().into_parts().0, body: body.to_owned().into() }
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    /// A field's value, or an empty text.
    pub fn field(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }

    /// The `code` of a problem, after checking what every problem has.
    pub fn code(&self) -> String {
        assert_eq!(self.field("content-type"), "application/problem+json", "{:?}", self.body);
        let problem = self.json();
        assert_eq!(problem["status"], self.status());
        for key in ["title", "detail", "request_id", "stage"] {
            assert!(problem[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {problem}");
        }
        assert_eq!(problem["request_id"], self.field("x-request-id"));
        problem["code"].as_str().unwrap().to_owned()
    }
}

impl Client {
    /// A client of `to` at 127.0.0.1.
    pub fn of(to: SocketAddr) -> Self {
        Self { from: Ipv4Addr::LOCALHOST, to, host: "palisade.test" }
    }

    /// The same client, which asks for another host.
    #[must_use]
    pub fn of_host(self, host: &'static str) -> Self {
        Self { host, ..self }
    }

    /// The same client at another loopback address.
    #[must_use]
    pub fn at(self, from: [u8; 4]) -> Self {
        Self { from: from.into(), ..self }
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.from.into()
    }

    /// A connection of its own.
    pub async fn connect(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(self.from.into(), 0)).unwrap();
        socket.connect(self.to).await.unwrap()
    }

    /// Sends a request on a connection of its own.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let exchange = async {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(self.from.into(), 0))?;
            let stream = socket.connect(self.to).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let (head, body) = sender.send_request(request).await?.into_parts();
            anyhow::Ok(Answer { head, body: body.collect().await?.to_bytes() })
        };
        tokio::time::timeout(PATIENCE, exchange).await?
    }

    /// `METHOD target` with fields and a body.
    pub async fn ask(
        &self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(target).header("host", self.host);
        for (name, value) in fields {
            crate::secrets::note_field(name, value);
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        self.send(request).await.unwrap_or_else(|error| panic!("{method} {target}: {error:#}"))
    }

    /// `GET target`, with a token or without.
    pub async fn get(&self, target: &str, token: Option<&str>) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let fields: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        self.ask("GET", target, &fields, "").await
    }

    /// A JSON body, with a token or without.
    pub async fn json(&self, method: &str, target: &str, token: Option<&str>, body: &Value) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut fields = vec![("content-type", "application/json")];
        fields.extend(bearer.iter().map(|bearer| ("authorization", bearer.as_str())));
        self.ask(method, target, &fields, body.to_string()).await
    }

    /// Sends bytes as they are and reads until the other side closes or is quiet for a moment.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        // A busy machine may be quiet for long before an answer begins, and rarely within one.
        let _ = tokio::time::timeout(PATIENCE, stream.readable()).await.expect("an answer or an end");
        read_for(&mut stream, Duration::from_millis(300)).await
    }
}

/// Asks on a keep-alive connection: the answer's status, and whether the connection ends with it.
pub async fn ask_on(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<(u16, bool)> {
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        anyhow::ensure!(stream.read_buf(&mut answer).await? > 0, "closed");
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        if answer.len() >= end + 4 + length.trim().parse::<usize>()? {
            let status = head.get(9..12).unwrap_or_default().parse()?;
            return Ok((status, head.contains("\r\nconnection: close")));
        }
    }
}

/// What comes until `wanted` is in it.
pub async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains(wanted) {
        let read = tokio::time::timeout(crate::PATIENCE, stream.read_buf(&mut bytes)).await;
        assert!(read.expect("it comes").unwrap() > 0, "closed after {:?}", String::from_utf8_lossy(&bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What comes within `quiet` of silence.
pub async fn read_for(stream: &mut TcpStream, quiet: Duration) -> String {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(quiet, stream.read(&mut piece)).await {
        text.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether the other side closes within the patience.
pub async fn closes(stream: &mut TcpStream) -> bool {
    let mut piece = [0; 4096];
    let end = async { while stream.read(&mut piece).await.is_ok_and(|count| count > 0) {} };
    tokio::time::timeout(PATIENCE, end).await.is_ok()
}
