//! Changes a message of the protocol, field by field, with all lengths right: what gets past the decoder.

use crate::sim::Chance;

use super::bytes;

/// A field as it is on the wire.
#[derive(Debug, Clone)]
struct Field {
    number: u64,
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Fixed32([u8; 4]),
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    into.push(value.to_le_bytes()[0]);
}

fn take_apart(bytes: &[u8]) -> Option<Vec<Field>> {
    let (mut at, mut fields) = (0, Vec::new());
    while at < bytes.len() {
        let tag = varint(bytes, &mut at)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(bytes, &mut at)?),
            1 => Value::Fixed64(bytes.get(at..at + 8)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(varint(bytes, &mut at)?).ok()?;
                let value = bytes.get(at..at.checked_add(length)?)?.to_vec();
                at += length;
                Value::Bytes(value)
            }
            5 => Value::Fixed32(bytes.get(at..at + 4)?.try_into().ok()?),
            _ => return None,
        };
        at += match value {
            Value::Fixed64(_) => 8,
            Value::Fixed32(_) => 4,
            _ => 0,
        };
        fields.push(Field { number: tag >> 3, value });
    }
    Some(fields)
}

fn put_together(fields: &[Field]) -> Vec<u8> {
    let mut made = Vec::new();
    for field in fields {
        let mut tag = |kind: u64| put(&mut made, field.number << 3 | kind);
        match &field.value {
            Value::Varint(value) => {
                tag(0);
                put(&mut made, *value);
            }
            Value::Fixed64(value) => {
                tag(1);
                made.extend_from_slice(value);
            }
            Value::Bytes(value) => {
                tag(2);
                put(&mut made, u64::try_from(value.len()).unwrap_or(0));
                made.extend_from_slice(value);
            }
            Value::Fixed32(value) => {
                tag(5);
                made.extend_from_slice(value);
            }
        }
    }
    made
}

const NUMBERS: [u64; 12] =
    [0, 1, 2, 63, 127, 65_535, 65_536, 0x7fff_ffff, 0xffff_ffff, 1 << 32, u64::MAX / 2, u64::MAX];

/// One change; `other` is another message.
#[must_use]
pub fn change(chance: &mut Chance, one: &[u8], other: &[u8]) -> Vec<u8> {
    let (Some(mut fields), false) = (take_apart(one), chance.once_in(64)) else {
        return bytes::change(chance, one, other);
    };
    let at = usize::try_from(chance.below(u64::try_from(fields.len()).unwrap_or(0))).unwrap_or(0);
    if fields.is_empty() {
        return other.to_vec();
    }
    match chance.below(10) {
        0 => drop(fields.remove(at)),
        1 => {
            let times = 1 << chance.below(8);
            let copy = fields[at].clone();
            fields.extend(std::iter::repeat_n(copy, times));
        }
        2 => {
            let foreign = take_apart(other).unwrap_or_default();
            fields.extend(chance.pick(&foreign).cloned());
        }
        3 => fields[at].number = chance.below(50) + 1,
        _ => match &mut fields[at].value {
            Value::Varint(value) => *value = chance.pick(&NUMBERS).copied().unwrap_or_default(),
            Value::Fixed64(value) => *value = chance.next().to_le_bytes(),
            Value::Fixed32(value) => value.copy_from_slice(&chance.next().to_le_bytes()[..4]),
            Value::Bytes(value) => {
                // A message in the message, most of the time where it looks like one; otherwise a text.
                let nested = take_apart(value).is_some_and(|fields| !fields.is_empty());
                *value = if nested && !chance.once_in(5) {
                    change(chance, value, other)
                } else {
                    bytes::change(chance, value, other)
                };
                if !nested && !chance.once_in(8) {
                    // Texts are to get past the decoder.
                    *value = String::from_utf8_lossy(value).into_owned().into_bytes();
                }
            }
        },
    }
    put_together(&fields)
}
