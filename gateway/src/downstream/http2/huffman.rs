//! The Huffman code of HPACK (RFC 7541, appendix B). It is canonical: symbols of one length have consecutive codes, in
//! the order of the symbols. So the lengths alone define the code.

use std::sync::LazyLock;

/// The length of each symbol's code in bits. The last symbol is the end of the string; it never appears in a string.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];

const SYMBOLS: usize = 257;
const END_OF_STRING: u16 = 256;
const LONGEST: u32 = 30;

/// Codes of at most so many bits are found in one look-up. All ordinary characters have such codes.
const SHORT: u32 = 10;

/// The tables that decode the code.
struct Decoder {
    /// By the next [`SHORT`] bits: the symbol and its length, or no length where the code is longer.
    short: Vec<(u8, u8)>,
    /// By length: the code after the last one of that length, left-aligned in 32 bits; and what turns a code into a place
    /// in `symbols`.
    ends: [u64; LONGEST as usize + 1],
    first: [(u32, usize); LONGEST as usize + 1],
    /// In the order of their codes.
    symbols: Vec<u16>,
}

static DECODER: LazyLock<Decoder> = LazyLock::new(Decoder::new);

impl Decoder {
    fn new() -> Self {
        let mut symbols: Vec<u16> = (0..=END_OF_STRING).collect();
        symbols.sort_by_key(|symbol| LENGTHS[usize::from(*symbol)]);
        let mut decoder = Self {
            short: vec![(0, 0); 1 << SHORT],
            ends: [0; LONGEST as usize + 1],
            first: [(0, 0); LONGEST as usize + 1],
            symbols,
        };
        let (mut code, mut place) = (0_u32, 0_usize);
        for length in 1..=LONGEST {
            code <<= 1;
            decoder.first[length as usize] = (code, place);
            while let Some(symbol) = decoder.symbols.get(place).copied()
                && u32::from(LENGTHS[usize::from(symbol)]) == length
            {
                if length <= SHORT {
                    let begin = (code << (SHORT - length)) as usize;
                    let all = &mut decoder.short[begin..begin + (1 << (SHORT - length))];
                    all.fill((symbol.to_le_bytes()[0], LENGTHS[usize::from(symbol)]));
                }
                (code, place) = (code + 1, place + 1);
            }
            decoder.ends[length as usize] = u64::from(code) << (32 - length);
        }
        decoder
    }

    /// The symbol at the beginning of `bits`, which are left-aligned, and the length of its code.
    fn next(&self, bits: u32) -> (u16, u32) {
        let (symbol, length) = self.short[(bits >> (32 - SHORT)) as usize];
        if length > 0 {
            return (u16::from(symbol), u32::from(length));
        }
        // The code is complete: the longest ones end where all do.
        let fits = |length: &u32| u64::from(bits) < self.ends[*length as usize];
        let length = (SHORT + 1..=LONGEST).find(fits).unwrap_or(LONGEST);
        let (code, place) = self.first[length as usize];
        let symbol = self.symbols.get(place + ((bits >> (32 - length)) - code) as usize);
        (symbol.copied().unwrap_or(END_OF_STRING), length)
    }
}

/// Decodes `coded` and appends it to `text`; `None` when the code is malformed: it holds the end of the string, or its
/// padding is not less than a byte of that symbol's first bits (RFC 7541, 5.2).
pub(super) fn decode(coded: &[u8], text: &mut Vec<u8>) -> Option<()> {
    let decoder = &*DECODER;
    let (mut bits, mut have) = (0_u64, 0_u32);
    let mut bytes = coded.iter();
    loop {
        while have <= 32
            && let Some(byte) = bytes.next()
        {
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        // The bits missing after the last byte are filled with ones, like the padding.
        let filled = if have < 32 { bits | (u64::MAX >> have) } else { bits };
        let (symbol, length) = decoder.next(u32::try_from(filled >> 32).unwrap_or(u32::MAX));
        if length > have {
            let padding = bits | (u64::MAX.checked_shr(have).unwrap_or(0));
            return (have < 8 && padding == u64::MAX).then_some(());
        }
        if symbol == END_OF_STRING {
            return None;
        }
        text.push(symbol.to_le_bytes()[0]);
        bits <<= length;
        have -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(coded: &[u8]) -> Option<String> {
        let mut text = Vec::new();
        decode(coded, &mut text)?;
        Some(String::from_utf8(text).unwrap())
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        let coded = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&coded).as_deref(), Some("www.example.com"));
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).as_deref(), Some("no-cache"));
        assert_eq!(decoded(&[0x64, 0x02]).as_deref(), Some("302"));
        assert_eq!(decoded(&[]).as_deref(), Some(""));
    }

    #[test]
    fn every_symbol_is_read_back() {
        let decoder = &*DECODER;
        let (mut code, mut last) = (0_u64, 0);
        for symbol in &decoder.symbols {
            let length = LENGTHS[usize::from(*symbol)];
            code <<= length - last;
            let bits = u32::try_from(code << (32 - length)).unwrap();
            assert_eq!(decoder.next(bits), (*symbol, u32::from(length)));
            (code, last) = (code + 1, length);
        }
        assert_eq!(code, 1 << LONGEST, "the code is complete");
    }

    #[test]
    fn a_wrong_end_is_no_code() {
        for coded in [&[0xff][..], &[0x64, 0x02, 0xff], &[0xff, 0xff, 0xff, 0xff], &[0x00]] {
            assert_eq!(decoded(coded), None, "{coded:?}");
        }
    }
}
