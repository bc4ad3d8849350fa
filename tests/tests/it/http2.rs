//! Clients that take HTTP/2 too far, frame by frame.

use std::time::Duration;

use tests::eventually;
use tests::frames::{
    CONTINUATION, DATA, END_STREAM_AND_HEADERS, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, frame, frames,
    get, open,
};
use tests::stack::Gateway;
use tests::upstream::RawUpstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const POLICY: &str = r#"
version = 1
[requests]
header_timeout = "1s"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
"#;

/// What a server says to a client that is to calm down.
const ENHANCE_YOUR_CALM: u8 = 0xb;

/// All that comes until the connection ends; a PING is answered, as clients do.
async fn until_it_ends(stream: &mut TcpStream) -> Vec<(u8, u32, Vec<u8>)> {
    let (mut bytes, mut answered) = (Vec::new(), false);
    while tokio::time::timeout(tests::PATIENCE, stream.read_buf(&mut bytes)).await.expect("it ends").unwrap()
        > 0
    {
        let ping = frames(&bytes).into_iter().find(|(kind, ..)| *kind == PING);
        if let Some((.., payload)) = ping.filter(|_| !answered) {
            stream.write_all(&frame(PING, 1, 0, &payload)).await.unwrap();
            answered = true;
        }
    }
    frames(&bytes)
}

/// The GOAWAY with which a connection ended: its code and its text; `None` if it ended without one.
async fn ending(stream: &mut TcpStream) -> Option<(u8, String)> {
    let mut bytes = Vec::new();
    let _ =
        tokio::time::timeout(tests::PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it is closed");
    let goaway = frames(&bytes).into_iter().find(|(kind, ..)| *kind == GOAWAY);
    goaway.map(|(_, _, payload)| (payload[7], String::from_utf8_lossy(&payload[8..]).into_owned()))
}

async fn ended(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("palisade_http2_connections_ended_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn a_client_that_asks_only_to_take_it_back_is_ended_and_hurts_nobody() {
    let upstream = RawUpstream::start(Vec::new(), false).await;
    let gateway = Gateway::start(upstream.address, POLICY, &[]).await;
    let mut stream = open(gateway.client()).await;
    let mut asked = 0;
    while ended(&gateway, "resets").await < 0.5 {
        assert!(asked < 1_000, "it goes on and on");
        let id = asked * 2 + 1;
        let _ = stream.write_all(&frame(HEADERS, END_STREAM_AND_HEADERS, id, &get("/a"))).await;
        asked += 1;
        // In the service's hands it is more than HTTP/2's own bookkeeping that is kept busy.
        eventually("it is asked, or the end has come", || async {
            upstream.received().len() == asked as usize || ended(&gateway, "resets").await > 0.5
        })
        .await;
        let _ = stream.write_all(&frame(RST_STREAM, 0, id, &[0, 0, 0, 8])).await;
    }
    assert!((200..400).contains(&asked), "{asked}, with those that time has earned it");
    let (code, why) = ending(&mut stream).await.expect("it is told why");
    assert_eq!((code, why.as_str()), (ENHANCE_YOUR_CALM, "too many requests were reset"));
    let other = gateway.client().at([127, 0, 0, 9]).raw(b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 405 "), "{other}");
}

#[tokio::test]
async fn a_client_that_only_makes_work_gets_enhance_your_calm() {
    let upstream = RawUpstream::start(Vec::new(), false).await;
    let gateway = Gateway::start(upstream.address, POLICY, &[]).await;
    for busywork in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut stream = open(gateway.client()).await;
        let _ = stream.write_all(&busywork.repeat(5_000)).await;
        let (code, why) = ending(&mut stream).await.expect("it is told why");
        assert_eq!((code, why.as_str()), (ENHANCE_YOUR_CALM, "too many frames that ask for nothing"));
    }
    assert!(ended(&gateway, "idle_frames").await > 1.5);
}

#[tokio::test]
async fn a_header_that_trickles_has_a_deadline_over_http2_too() {
    let upstream = RawUpstream::start(Vec::new(), false).await;
    let gateway = Gateway::start(upstream.address, POLICY, &[]).await;
    let mut stream = open(gateway.client()).await;
    stream.write_all(&frame(HEADERS, 1, 1, &get("/a"))).await.unwrap();
    // It continues in a frame of which the bytes come one by one.
    let rest = frame(CONTINUATION, 0, 1, &[0; 16_000]);
    let mut within = open(gateway.client()).await;
    within.write_all(&frame(HEADERS, 1, 1, &get("/a"))[..20]).await.unwrap();
    for byte in rest {
        let _ = stream.write_all(&[byte]).await;
        if ended(&gateway, "slow_header").await > 1.5 {
            break;
        }
    }
    assert!(ended(&gateway, "slow_header").await > 1.5, "both are ended");
    let (code, why) = ending(&mut within).await.expect("it is told why");
    assert_eq!((code, why.as_str()), (ENHANCE_YOUR_CALM, "a request's header did not arrive in time"));
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn a_gateway_that_drains_says_so_and_answers_what_is_in_flight() {
    let answer: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let upstream = RawUpstream::start(vec![(Duration::from_millis(700), answer)], false).await;
    let mut gateway = Gateway::start(upstream.address, POLICY, &[]).await;
    let (mut busy, mut idle) = (open(gateway.client()).await, open(gateway.client()).await);
    busy.write_all(&frame(HEADERS, END_STREAM_AND_HEADERS, 1, &get("/a"))).await.unwrap();
    eventually("it is in flight", || async { upstream.received().len() == 1 }).await;
    gateway.program.signal("TERM");
    let seen = until_it_ends(&mut busy).await;
    assert!(seen.contains(&(DATA, 1, b"ok".to_vec())), "what was in flight is answered: {seen:?}");
    let no_error = |seen: &[(u8, u32, Vec<u8>)]| {
        seen.iter().filter(|frame| frame.0 == GOAWAY).all(|frame| frame.2[4..8] == [0; 4])
            && seen.iter().any(|frame| frame.0 == GOAWAY)
    };
    assert!(no_error(&seen), "{seen:?}");
    assert!(no_error(&until_it_ends(&mut idle).await), "and who asked for nothing is told, too");
    assert!(gateway.program.ended().await.success());
}
