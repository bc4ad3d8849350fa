//! Reads header blocks of HTTP/2 (HPACK, RFC 7541).
//!
//! Fields are passed on one by one, borrowed. So a block that expands to a thousand times its size costs no memory: the
//! receiver of the fields counts them.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::huffman;

/// The size in bytes of the table that the client may fill (RFC 7541, 4.2). It is the default, which a peer assumes
/// without a setting.
const TABLE_SIZE: usize = 4096;

/// What an entry costs besides its bytes (RFC 7541, 4.1).
const ENTRY: usize = 32;

/// The block cannot be read, and so no block after it: the connection must end (RFC 9113, 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockFault;

/// The client's side of a connection's compression.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest entry first.
    table: VecDeque<(Bytes, Bytes)>,
    size: usize,
    /// The part of [`TABLE_SIZE`] that the client chose to use.
    limit: usize,
    /// The buffer for decoded text.
    unfolded: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), size: 0, limit: TABLE_SIZE, unfolded: Vec::new() }
    }
}

impl Decoder {
    /// Reads a whole block and passes on the name and value of each field, in order.
    pub(super) fn decode(
        &mut self,
        mut block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), BlockFault> {
        let mut begun = false;
        while let Some(first) = block.first().copied() {
            match first {
                0x80.. => {
                    let index = integer(&mut block, 7)?;
                    let (name, value) = self.entry(index)?;
                    field(name, value);
                }
                0x20..=0x3f => {
                    // A change of the table's size comes before the fields.
                    let limit = integer(&mut block, 5)?;
                    if begun || limit > TABLE_SIZE {
                        return Err(BlockFault);
                    }
                    self.limit = limit;
                    self.make_room(0);
                    continue;
                }
                _ => {
                    let kept = first >= 0x40;
                    let index = integer(&mut block, if kept { 6 } else { 4 })?;
                    self.literal(index, &mut block, kept, &mut field)?;
                }
            }
            begun = true;
        }
        self.unfolded = Vec::new();
        Ok(())
    }

    /// Reads a field with a literal value, and adds it to the table if the block says so.
    fn literal(
        &mut self,
        index: usize,
        block: &mut &[u8],
        kept: bool,
        field: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), BlockFault> {
        let mut unfolded = std::mem::take(&mut self.unfolded);
        unfolded.clear();
        if index == 0 {
            string(block, &mut unfolded)?;
        } else {
            unfolded.extend_from_slice(self.entry(index)?.0);
        }
        let name_length = unfolded.len();
        string(block, &mut unfolded)?;
        let (name, value) = unfolded.split_at(name_length);
        field(name, value);
        if kept {
            self.keep(name, value);
        }
        self.unfolded = unfolded;
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), BlockFault> {
        let index = index.checked_sub(1).ok_or(BlockFault)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let (name, value) = self.table.get(index - STATIC.len()).ok_or(BlockFault)?;
        Ok((name, value))
    }

    fn keep(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + ENTRY;
        self.make_room(size);
        if size > self.limit {
            return; // RFC 7541, 4.4: it empties the table and is not stored
        }
        let mut both = BytesMut::with_capacity(name.len() + value.len());
        both.put_slice(name);
        both.put_slice(value);
        let mut name_bytes = both.freeze();
        let value = name_bytes.split_off(name.len());
        self.table.push_front((name_bytes, value));
        self.size += size;
    }

    fn make_room(&mut self, more: usize) {
        while self.size + more > self.limit
            && let Some((name, value)) = self.table.pop_back()
        {
            self.size -= name.len() + value.len() + ENTRY;
        }
    }
}

/// An integer in the last `bits` bits of the first byte and what follows it (RFC 7541, 5.1); none is longer than 28 bits.
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, BlockFault> {
    let (first, mut rest) = block.split_first().ok_or(BlockFault)?;
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        for shift in [0, 7, 14, 21] {
            let (byte, more) = rest.split_first().ok_or(BlockFault)?;
            rest = more;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *block = rest;
                return Ok(value);
            }
        }
        return Err(BlockFault);
    }
    *block = rest;
    Ok(value)
}

/// A string, with Huffman coding or without (RFC 7541, 5.2).
fn string(block: &mut &[u8], text: &mut Vec<u8>) -> Result<(), BlockFault> {
    let coded = block.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length).ok_or(BlockFault)?;
    *block = rest;
    if coded {
        return huffman::decode(bytes, text).ok_or(BlockFault);
    }
    text.extend_from_slice(bytes);
    Ok(())
}

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, BlockFault> {
        let mut fields = Vec::new();
        decoder.decode(block, |name, value| {
            fields.push(format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        })?;
        Ok(fields)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
        digits.chunks(2).map(|two| u8::from_str_radix(&two.iter().collect::<String>(), 16).unwrap()).collect()
    }

    #[test]
    fn the_requests_of_the_standards_appendix_are_read() {
        // RFC 7541, C.4: three requests on one connection.
        let mut decoder = Decoder::default();
        let first = bytes("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
        let second = bytes("8286 84be 5886 a8eb 1064 9cbf");
        let third = bytes("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        let common = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
        assert_eq!(fields(&mut decoder, &first).unwrap(), common);
        assert_eq!(fields(&mut decoder, &second).unwrap()[4], "cache-control: no-cache");
        let third = fields(&mut decoder, &third).unwrap();
        assert_eq!(
            third[1..],
            [
                ":scheme: https",
                ":path: /index.html",
                ":authority: www.example.com",
                "custom-key: custom-value"
            ]
        );
        assert_eq!(decoder.size, 164, "as the standard counts");
    }

    #[test]
    fn the_table_has_a_bound_and_the_oldest_leave_it() {
        let mut decoder = Decoder::default();
        let literal =
            |length: usize| [&[0x40, 1, b'a', 0x7f][..], &[u8::try_from(length - 127).unwrap()]].concat();
        for _ in 0..100 {
            let block = [literal(200), vec![b'x'; 200]].concat();
            fields(&mut decoder, &block).unwrap();
            assert!(decoder.size <= TABLE_SIZE);
        }
        assert_eq!(decoder.table.len(), TABLE_SIZE / (200 + 1 + ENTRY));
        fields(&mut decoder, &[0x20]).unwrap();
        assert!(decoder.table.is_empty() && decoder.size == 0, "a table of no bytes");
        fields(&mut decoder, &[0x3f, 0xe1, 0x1f]).unwrap();
        assert_eq!(fields(&mut decoder, &[0x3f, 0xe2, 0x1f]), Err(BlockFault), "more than it may have");
    }

    #[test]
    fn a_block_that_unfolds_without_end_costs_no_memory() {
        let mut decoder = Decoder::default();
        let long = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'x'; 4000]].concat();
        fields(&mut decoder, &long).unwrap();
        let mut unfolded = 0;
        decoder.decode(&[0xbe; 10_000], |_, value| unfolded += value.len()).unwrap();
        assert_eq!(unfolded, 40_000_000);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for block in [
            &[0x80][..],                                 // index 0
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f], // an integer without end
            &[0xbe],                                     // an entry that nobody made
            &[0x00, 5, b'a'],                            // cut
            &[0x00],
            &[0x82, 0x20],             // a change of size behind a field
            &[0x00, 0x81, 0x00, 0x00], // a code that ends wrongly
        ] {
            assert_eq!(fields(&mut Decoder::default(), block), Err(BlockFault), "{block:?}");
        }
    }
}
