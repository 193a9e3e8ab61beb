//! Changes bytes that are anything: turns bits, puts in, takes out, repeats, joins two.

use crate::sim::Chance;

/// Bytes beyond which nothing grows: more than the largest message that anybody takes.
const MOST: usize = 5 << 20;
/// What parsers stumble over.
const WORDS: [&[u8]; 14] = [
    b"\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"%00",
    b"%2e%2e%2f",
    b"../",
    b"\r\n",
    b"\r\n\r\n",
    b"-1",
    b"18446744073709551616",
    b"1e309",
    b"\xe2\x80\xae",
    b"{\"a\":[",
];

/// A place in something of that length, its end included.
pub(super) fn place(chance: &mut Chance, length: usize) -> usize {
    usize::try_from(chance.below(u64::try_from(length).unwrap_or(u64::MAX - 1) + 1)).unwrap_or(0)
}

/// One change; `other` is another input of the same kind.
#[must_use]
pub fn change(chance: &mut Chance, one: &[u8], other: &[u8]) -> Vec<u8> {
    let mut made = one.to_vec();
    let (a, b) = (place(chance, made.len()), place(chance, made.len()));
    let (from, to) = (a.min(b), a.max(b).min(a.min(b) + 64));
    match chance.below(8) {
        0 if from < made.len() => made[from] ^= 1 << chance.below(8),
        1 if from < made.len() => made[from] = chance.next().to_le_bytes()[0],
        2 => drop(made.drain(from..to)),
        3 => {
            let word = chance.pick(&WORDS).copied().unwrap_or_default();
            made.splice(from..from, word.iter().copied());
        }
        4 => {
            let part = made[from..to].to_vec();
            let times = 1 << chance.below(12);
            let whole = part.repeat(times);
            made.splice(to..to, whole);
        }
        5 => {
            let cut = place(chance, other.len());
            made.truncate(from);
            made.extend_from_slice(&other[cut..]);
        }
        6 => made.truncate(from),
        _ => {
            let word = chance.pick(&WORDS).copied().unwrap_or_default();
            made.splice(from..to, word.iter().copied());
        }
    }
    made.truncate(MOST);
    made
}
