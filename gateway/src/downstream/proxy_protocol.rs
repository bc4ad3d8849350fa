//! PROXY protocol, versions 1 and 2 (`proxy-protocol.txt` of `HAProxy`): who is behind a trusted balancer. Nothing is
//! read beyond its header, because TLS may follow.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ppp::v1::Addresses as Text;
use ppp::v2::Addresses as Binary;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest header of version 1, with its end of line.
const LONGEST_LINE: usize = 107;

/// The fixed part of version 2, and the most bytes that may follow it. Extensions are read and ignored.
const FIXED: usize = 16;
const LONGEST_REST: usize = 4 * 1024;

/// Reads a header. Returns the client that it names, or `None` when the balancer connects on its own behalf.
pub(crate) async fn read(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut header = vec![socket.read_u8().await?];
    if header[0] == b'P' {
        while !header.ends_with(b"\r\n") && header.len() < LONGEST_LINE {
            header.push(socket.read_u8().await?);
        }
        return text(&header);
    }
    header.resize(FIXED, 0);
    socket.read_exact(&mut header[1..]).await?;
    let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if rest > LONGEST_REST {
        return Err(malformed());
    }
    header.resize(FIXED + rest, 0);
    socket.read_exact(&mut header[FIXED..]).await?;
    binary(&header)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "no PROXY protocol header, which `server.proxy_protocol` expects here",
    )
}

fn text(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    let header = ppp::v1::Header::try_from(header).map_err(|_| malformed())?;
    Ok(match header.addresses {
        Text::Tcp4(ends) => Some((IpAddr::V4(ends.source_address), ends.source_port).into()),
        Text::Tcp6(ends) => Some((IpAddr::V6(ends.source_address), ends.source_port).into()),
        Text::Unknown => None,
    })
}

fn binary(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    let header = ppp::v2::Header::try_from(header).map_err(|_| malformed())?;
    if header.command == ppp::v2::Command::Local {
        return Ok(None);
    }
    Ok(match header.addresses {
        Binary::IPv4(ends) => Some((IpAddr::V4(ends.source_address), ends.source_port).into()),
        Binary::IPv6(ends) => Some((IpAddr::V6(ends.source_address), ends.source_port).into()),
        Binary::Unspecified | Binary::Unix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn client(bytes: &[u8]) -> Result<Option<String>, ()> {
        let mut stream = bytes;
        let read = read(&mut stream).await.map_err(|_| ())?;
        assert!(stream == b"GET" || read.is_none(), "nothing beyond the header is read");
        Ok(read.map(|address| address.to_string()))
    }

    #[tokio::test]
    async fn both_versions_name_the_client() {
        let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\nGET";
        assert_eq!(client(line).await, Ok(Some("192.0.2.7:4711".to_owned())));
        assert_eq!(client(b"PROXY UNKNOWN\r\nGET").await, Ok(None));
        let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        binary.extend([192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 0, 80]);
        binary.extend(b"GET");
        assert_eq!(client(&binary).await, Ok(Some("192.0.2.7:4711".to_owned())));
        binary[12] = 0x20; // LOCAL
        assert_eq!(client(&binary).await, Ok(None));
    }

    #[tokio::test]
    async fn what_is_none_is_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.777 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
            &[b'P'; 200],
        ] {
            assert_eq!(client(bytes).await, Err(()), "{bytes:?}");
        }
    }
}
