//! The hop to an upstream: neither side waits for the other in a circle, and what the upstream did not process is sent again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use tests::PATIENCE;
use tests::answers::{HTTP2, ONE_THREAD, OPEN};
use tests::client::read_until;
use tests::policy_text::PolicyText;
use tests::stack::Gateway;
use tests::streams::streams;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// An upstream that closes its first connection on the second request, and answers every other one.
async fn forgetful() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&requests);
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = if std::mem::replace(&mut first, false) { 1 } else { usize::MAX };
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let (mut piece, mut number) = ([0; 4096], 0);
                while let Ok(read @ 1..) = stream.read(&mut piece).await {
                    if !piece[..read].windows(4).any(|four| four == b"\r\n\r\n") {
                        continue; // the body
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    if number >= answers {
                        return;
                    }
                    number += 1;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
            });
        }
    });
    (address, requests)
}

#[tokio::test]
async fn a_pooled_connection_that_was_closed_meanwhile_costs_no_request_that_may_be_repeated() {
    for (method, status, received) in [("PUT", 200, 3), ("POST", 502, 2)] {
        let (upstream, requests) = forgetful().await;
        let gateway = Gateway::start(upstream, OPEN, &[ONE_THREAD]).await;
        assert_eq!(gateway.client().get("/a", None).await.status(), 200);
        let answer = gateway.client().ask(method, "/a", &[], "the body").await;
        assert_eq!(answer.status(), status, "{method}");
        assert_eq!(requests.load(Ordering::Relaxed), received, "{method}");
    }
}

/// An upstream of HTTP/2 that refuses the first request, says so, and echoes the body of every other one.
async fn reluctant() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, first) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let first = Arc::clone(&first);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await?;
                while let Some(request) = connection.accept().await {
                    let (request, mut respond) = request?;
                    if first.fetch_add(1, Ordering::Relaxed) == 0 {
                        respond.send_reset(Reason::REFUSED_STREAM);
                        continue;
                    }
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        let mut whole = Vec::new();
                        while let Some(piece) = body.data().await {
                            whole.extend_from_slice(&piece?);
                        }
                        respond
                            .send_response(http::Response::new(()), false)?
                            .send_data(Bytes::from(whole), true)
                    });
                }
                Ok::<_, h2::Error>(())
            });
        }
    });
    address
}

#[tokio::test]
async fn a_request_that_the_upstream_says_it_did_not_look_at_is_sent_again() {
    let gateway = Gateway::start(reluctant().await, OPEN, &[HTTP2]).await;
    let answer = gateway.client().ask("POST", "/a", &[], "the body").await;
    assert_eq!((answer.status(), &answer.body[..]), (200, &b"the body"[..]));
}

#[tokio::test]
async fn a_whole_answer_is_no_failure_whatever_becomes_of_the_request() {
    // The upstream reads the header, answers, and reads no further.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut piece = [0; 512];
            let _ = stream.read(&mut piece).await;
            let _ = stream.write_all(b"HTTP/1.1 413 Enough\r\nContent-Length: 2\r\n\r\nno").await;
            held.push(stream);
        }
    });
    let policy = PolicyText::of(OPEN).set("requests.upstream_timeout", "1s");
    let gateway = Gateway::start(upstream, &policy, &[]).await;
    // More than the system holds on the way.
    let bytes = Bytes::from(vec![b'x'; 50_000_000]);
    let (mut read, mut write) = gateway.client().connect().await.into_split();
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        write.write_all(b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n").await?;
        write.write_all(&sent).await
    });
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, read.read_to_end(&mut answer)).await.expect("it is closed");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("\r\n\r\nno"), "{answer}");
    sending.abort();
    let (client, connection) = h2::client::handshake(gateway.client().connect().await).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::put("http://h/a").body(()).unwrap();
    let (answer, mut body) = client.ready().await.unwrap().send_request(request, false).unwrap();
    body.send_data(bytes, false).unwrap();
    let mut answer = answer.await.unwrap();
    let said = answer.body_mut().data().await.unwrap().unwrap();
    assert_eq!((answer.status().as_u16(), &said[..]), (413, &b"no"[..]));
    tests::eventually("both are in the log, and none as a failure", || async {
        let events = gateway.program.events();
        let logged: Vec<_> = events.iter().filter(|line| line["path"] == "/a").collect();
        logged.len() == 2 && logged.iter().all(|line| line["status"] == 413 && line["code"].is_null())
    })
    .await;
    holding.abort();
}

#[tokio::test]
async fn a_client_that_reads_nothing_before_it_has_sent_everything_is_served() {
    const SIZE: usize = 30_000_000;
    let gateway = Gateway::start(streams().await, OPEN, &[]).await;
    let mut stream = gateway.client().connect().await;
    let head =
        format!("PUT /both HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n");
    let served = async {
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; SIZE]).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let answer = tokio::time::timeout(PATIENCE, served).await.expect("it does not stand still");
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.len() > SIZE, "{}", answer.len());
}

/// An upstream of tunnels that sends back what it is sent, reading on meanwhile, and a last word when it is sent no more.
async fn parrot() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let mut head = [0; 4096];
                let _ = read.read(&mut head).await?;
                write
                    .write_all(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
                    .await?;
                let (sender, mut pieces) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
                let hearing = async move {
                    let mut piece = vec![0; 64 * 1024];
                    while let Ok(count @ 1..) = read.read(&mut piece).await {
                        let _ = sender.send(piece[..count].to_vec());
                    }
                };
                let saying = async move {
                    while let Some(piece) = pieces.recv().await {
                        write.write_all(&piece).await?;
                    }
                    write.write_all(b"farewell").await
                };
                tokio::join!(hearing, saying).1
            });
        }
    });
    address
}

#[tokio::test]
async fn a_websocket_passes_bulk_both_ways_and_the_last_word_after_half_a_close() {
    const SIZE: usize = 20_000_000;
    let gateway = Gateway::start(parrot().await, OPEN, &[]).await;
    let mut stream = gateway.client().connect().await;
    let handshake = b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let passed = async {
        stream.write_all(handshake).await.unwrap();
        assert!(read_until(&mut stream, "\r\n\r\nhello").await.starts_with("HTTP/1.1 101 "));
        stream.write_all(&vec![b'x'; SIZE]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        received
    };
    let received = tokio::time::timeout(PATIENCE, passed).await.expect("it does not stand still");
    assert_eq!(received.len(), SIZE + "farewell".len());
    assert!(received.ends_with(b"xfarewell"));
}

#[tokio::test]
async fn a_client_may_pause_for_longer_than_an_upstream() {
    let policy = PolicyText::of(OPEN).set("requests.upstream_timeout", "300ms");
    let gateway = Gateway::start(streams().await, &policy, &[]).await;
    let mut stream = gateway.client().connect().await;
    let head = b"PUT /up HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na";
    stream.write_all(head).await.unwrap();
    // By then an upstream that pauses has been given up: the events come a second apart.
    let given_up = gateway.client().raw(b"GET /events/2 HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(given_up.contains("data: 0") && !given_up.contains("data: 1"), "{given_up}");
    stream.write_all(b"b").await.unwrap();
    let answer = read_until(&mut stream, "\r\n\r\n2").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_client_that_resets_an_upload_is_noticed_though_nothing_is_read_of_it() {
    // The upstream accepts, and reads nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(listener.local_addr().unwrap(), OPEN, &[]).await;
    let mut stream = gateway.client().connect().await;
    stream.write_all(b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
    let bytes = vec![b'x'; 100_000_000];
    let stuck = tokio::time::timeout(Duration::from_millis(500), stream.write_all(&bytes)).await;
    assert!(stuck.is_err(), "nobody reads it");
    stream.set_zero_linger().unwrap();
    drop(stream);
    tests::eventually("it is logged as a client that left", || async {
        let events = gateway.program.events();
        events.iter().any(|line| line["method"] == "PUT" && line["status"] == 0 && line["code"].is_null())
    })
    .await;
}
