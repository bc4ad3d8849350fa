//! See [`crate::fuzz`].

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::http2::{Frames, HeadBounds, Inbound, Waiting};
use super::proxy_protocol;

/// Frames of HTTP/2 give the same verdict and the same headers, however they are cut into pieces.
pub fn http2_frames(bytes: &[u8]) {
    let now = Instant::now();
    let verdict = |size: usize| {
        let mut frames = Frames::new(Duration::from_secs(10), Arc::default(), now);
        let received = bytes.chunks(size).try_for_each(|piece| frames.received(piece, now));
        frames.wrote(bytes);
        received.err().map(|excess| frames.closing_frame(excess).map(|frame| frame.len()).unwrap_or_default())
    };
    let _ = (verdict(bytes.len().max(1)), verdict(1), verdict(7));
    let whole = pass_in_pieces(bytes, bytes.len().max(1));
    for size in [1, 7] {
        assert_eq!(whole, pass_in_pieces(bytes, size), "in pieces of {size}");
    }
}

/// Of a PROXY header nothing is read beyond its bound.
pub fn proxy_header(bytes: &[u8]) {
    const LONGEST: usize = 16 + 4 * 1024;
    let mut rest = bytes;
    let read = tokio::runtime::Builder::new_current_thread()
        .build()
        .map(|runtime| runtime.block_on(proxy_protocol::read(&mut rest)));
    let taken = bytes.len() - rest.len();
    assert!(read.is_ok() && taken <= LONGEST, "{taken} bytes were read");
}

/// What `h2` reads when `bytes` arrive in pieces of `size`, and the headers that are read.
fn pass_in_pieces(bytes: &[u8], size: usize) -> Option<(BytesMut, usize)> {
    let waiting = Arc::<Waiting>::default();
    let mut inbound = Inbound::new(HeadBounds { fields: 100, bytes: 64_000 }, Arc::clone(&waiting));
    let (mut inbox, mut passed) = (BytesMut::new(), BytesMut::new());
    for piece in bytes.chunks(size) {
        inbox.extend_from_slice(piece);
        let mut outbox = BytesMut::new();
        inbound.pass(&mut inbox, &mut outbox, usize::MAX).ok()?;
        passed.unsplit(outbox);
    }
    Some((passed, waiting.len()))
}
