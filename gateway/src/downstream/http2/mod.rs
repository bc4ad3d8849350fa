//! Reads the HTTP/2 bytes of a client before the `h2` crate sees them, as strictly as HTTP/1.1 and by the same rules:
//! which frames a client may send, and the header of each request.

pub(crate) mod excess;
mod frames;
mod head;
mod hpack;
mod huffman;
mod inbound;
mod waiting;

pub(crate) use self::frames::Frames;
pub(crate) use self::head::HeadBounds;
pub(crate) use self::inbound::Inbound;
pub(crate) use self::waiting::Waiting;
