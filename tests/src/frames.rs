//! HTTP/2 frame by frame: for clients that do what a library does not.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::client::Client;

/// The kind of a DATA frame.
pub const DATA: u8 = 0;
/// The kind of a HEADERS frame.
pub const HEADERS: u8 = 1;
/// The kind of a `RST_STREAM` frame.
pub const RST_STREAM: u8 = 3;
/// The kind of a SETTINGS frame.
pub const SETTINGS: u8 = 4;
/// The kind of a PING frame.
pub const PING: u8 = 6;
/// The kind of a GOAWAY frame.
pub const GOAWAY: u8 = 7;
/// The kind of a CONTINUATION frame.
pub const CONTINUATION: u8 = 9;
/// The flags of a HEADERS frame that is a whole request.
pub const END_STREAM_AND_HEADERS: u8 = 5;

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head, &stream.to_be_bytes()[..], payload].concat()
}

/// The header block of GET `path` from the host `h`.
pub fn get(path: &str) -> Vec<u8> {
    block(&[(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", path)])
}

/// A header block in literals that no table stores; none is longer than 16 KiB.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let length = if let Ok(length @ 0..127) = u8::try_from(text.len()) {
            vec![length]
        } else {
            let [low, high] = u16::try_from(text.len() - 127).unwrap().to_le_bytes();
            vec![127, low | 0x80, high << 1 | low >> 7]
        };
        [&length, text.as_bytes()].concat()
    };
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A connection that has begun to speak HTTP/2.
pub async fn open(client: Client) -> TcpStream {
    let mut stream = client.connect().await;
    let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
    stream.write_all(&begin).await.unwrap();
    stream
}

/// The frames in `bytes`: kind, stream and payload.
pub fn frames(bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let (mut rest, mut all) = (bytes, Vec::new());
    while let [a, b, c, kind, _flags, s, t, u, v, more @ ..] = rest {
        let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap();
        if more.len() < length {
            break; // its end is not there yet
        }
        all.push((*kind, u32::from_be_bytes([*s, *t, *u, *v]), more[..length].to_vec()));
        rest = &more[length..];
    }
    all
}
