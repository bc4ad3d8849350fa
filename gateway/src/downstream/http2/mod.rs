//! Bytes of HTTP/2 from a client, read as strictly as those of HTTP/1.1 and by the same rules, before the `h2` crate sees
//! them: what frames a client may send, and the header of each request.

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
