//! Entry points for the fuzz targets of `tests/tests/fuzz`, because their parsers are private here. Each accepts any
//! bytes and checks what its parser promises.

use bytes::BytesMut;

use crate::downstream::head;
use crate::http::chunked::{ChunkFault, Chunks, Part};

pub use crate::downstream::fuzz::{http2_frames, proxy_header};
pub use crate::upstream::connection::fuzz_answer_head as answer_head;

/// A request's head: its length is within the bytes, and it is not complete before its last byte.
pub fn request_head(bytes: &[u8]) {
    let Ok(Some(found)) = head::parse(bytes, 100) else { return };
    let own = bytes.get(..found.length).unwrap_or_default();
    assert!(own.len() == found.length && own.ends_with(b"\r\n\r\n"), "the length is the head's");
    let before = own.get(..own.len() - 1).unwrap_or_default();
    assert!(!matches!(head::parse(before, 100), Ok(Some(_))), "a head without its last byte is none");
    if found.rewrite {
        let plain = head::parse(&head::plain_form(own), 100);
        assert!(
            matches!(plain, Ok(Some(plain)) if !plain.rewrite),
            "the plain form is a head, and its own: {plain:?}"
        );
    }
}

/// A chunked body has the same meaning, however it is cut into pieces.
pub fn chunked_body(bytes: &[u8]) {
    let whole = read_chunks(bytes, bytes.len().max(1));
    for size in [1, 3] {
        assert_eq!(whole, read_chunks(bytes, size), "in pieces of {size}");
    }
}

/// The data, whether the body ended, and how many bytes followed, when it arrives in pieces of `size` bytes.
fn read_chunks(bytes: &[u8], size: usize) -> Result<(Vec<u8>, bool), ChunkFault> {
    let (mut chunks, mut inbox, mut data) = (Chunks::keeping_trailers(1_000), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(size) {
        inbox.extend_from_slice(piece);
        while let Some(part) = chunks.next(&mut inbox, usize::MAX)? {
            if let Part::Data(piece) = part {
                data.extend_from_slice(&piece);
            }
        }
    }
    Ok((data, chunks.is_done()))
}
