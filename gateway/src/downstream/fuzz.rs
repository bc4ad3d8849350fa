//! See [`crate::fuzz`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::frames::Frames;
use super::{http2, proxy_protocol};

/// Frames of HTTP/2: the same verdict, and the same headers, however they are cut into pieces.
pub fn http2_frames(bytes: &[u8]) {
    let now = Instant::now();
    let verdict = |size: usize| {
        let mut frames = Frames::new(Duration::from_secs(10), Arc::default(), now);
        let received = bytes.chunks(size).try_for_each(|piece| frames.received(piece, now));
        frames.wrote(bytes);
        received.err().map(|excess| frames.farewell(excess).map(|frame| frame.len()).unwrap_or_default())
    };
    let _ = (verdict(bytes.len().max(1)), verdict(1), verdict(7));
    let whole = http2::pass_in_pieces(bytes, bytes.len().max(1));
    for size in [1, 7] {
        assert_eq!(whole, http2::pass_in_pieces(bytes, size), "in pieces of {size}");
    }
}

/// A PROXY header: nothing is read beyond its bound.
pub fn proxy_header(bytes: &[u8]) {
    const LONGEST: usize = 16 + 4 * 1024;
    let mut rest = bytes;
    let read = tokio::runtime::Builder::new_current_thread()
        .build()
        .map(|runtime| runtime.block_on(proxy_protocol::read(&mut rest)));
    let taken = bytes.len() - rest.len();
    assert!(read.is_ok() && taken <= LONGEST, "{taken} bytes were read");
}
