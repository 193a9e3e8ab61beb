//! Changes a JSON value, and leaves it JSON.

use serde_json::{Value, json};

use crate::sim::Chance;

/// Values beyond which nothing is repeated: more than any request may have.
const MOST: u64 = 2000;
/// Texts that mean something somewhere, or nothing anywhere.
const TEXTS: [&str; 34] = [
    "",
    " ",
    "a",
    "0",
    "-1",
    "1",
    "65535",
    "65536",
    "4294967296",
    "1e3",
    "0.5",
    "1 vCPU",
    "2 GB",
    "NaN",
    "host",
    "bridge",
    "none",
    "awsvpc",
    "task",
    "default",
    "*",
    "..",
    "../../etc",
    "/",
    "//",
    ":",
    "a:b:c",
    "1-0",
    "0-65535",
    "65535-65536",
    "arn:aws:ecs:us-east-1:123456789012:cluster/default",
    "\u{0}",
    "\u{202e}é😀",
    "null",
];

/// Numbers at which something may go over.
fn number(chance: &mut Chance) -> Value {
    let all = [
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(63),
        json!(64),
        json!(65535),
        json!(65536),
        json!(i32::MAX),
        json!(i32::MIN),
        json!(u32::MAX),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.1),
        json!(-0.0),
        json!(1e308),
        json!(5e-324),
        json!(120),
        json!(0x7fff_fffe),
    ];
    chance.pick(&all).cloned().unwrap_or_default()
}

fn text(chance: &mut Chance) -> Value {
    let word = chance.pick(&TEXTS).copied().unwrap_or_default();
    match chance.below(6) {
        0 => json!(word.repeat(1 << chance.below(14))),
        1 => json!(format!("{word}{}", chance.pick(&TEXTS).copied().unwrap_or_default())),
        _ => json!(word),
    }
}

fn anything(chance: &mut Chance) -> Value {
    match chance.below(8) {
        0 => Value::Null,
        1 => json!(chance.once_in(2)),
        2 | 3 => number(chance),
        4 | 5 => text(chance),
        6 => json!([]),
        _ => json!({}),
    }
}

/// How many values there are in it, itself included.
fn count(value: &Value) -> u64 {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

/// The value at that number, in the order of [`count`].
fn at<'a>(value: &'a mut Value, number: &mut u64) -> Option<&'a mut Value> {
    if *number == 0 {
        return Some(value);
    }
    *number -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| at(item, number)),
        Value::Object(members) => members.values_mut().find_map(|member| at(member, number)),
        _ => None,
    }
}

fn any_of(chance: &mut Chance, value: &Value) -> Value {
    let mut copy = value.clone();
    let mut number = chance.below(count(value));
    at(&mut copy, &mut number).cloned().unwrap_or_default()
}

/// One change; `other` is another input of the same kind.
pub fn change(chance: &mut Chance, value: &mut Value, other: &Value) {
    let all = count(value);
    let mut number = chance.below(all);
    let (whole, foreign) = (any_of(chance, value), any_of(chance, other));
    let Some(found) = at(value, &mut number) else { return };
    match (chance.below(6), &mut *found) {
        (0, Value::Object(members)) => {
            let key = chance.pick(&members.keys().cloned().collect::<Vec<_>>()).cloned();
            members.remove(&key.unwrap_or_default());
        }
        (1, Value::Object(members)) => {
            let from = other.as_object().into_iter().flatten().collect::<Vec<_>>();
            if let Some((key, value)) = chance.pick(&from) {
                members.insert((*key).clone(), (*value).clone());
            }
        }
        (2, Value::Object(members)) => {
            let key = text(chance).as_str().unwrap_or_default().to_owned();
            members.insert(key, foreign);
        }
        (0, Value::Array(items)) => {
            let place = super::bytes::place(chance, items.len());
            items.truncate(place);
        }
        (1 | 2, Value::Array(items)) => {
            let item = chance.pick(items).cloned().unwrap_or(whole);
            let times = if all < MOST && chance.once_in(8) { 1 << chance.below(9) } else { 1 };
            items.extend(std::iter::repeat_n(item, times));
        }
        (3, found) => *found = foreign,
        (4, found) => *found = whole,
        (_, found @ Value::String(_)) if !chance.once_in(4) => *found = text(chance),
        (_, found @ Value::Number(_)) if !chance.once_in(4) => *found = super::json::number(chance),
        (_, found @ Value::Bool(_)) => *found = json!(!found.as_bool().unwrap_or_default()),
        (_, found) => *found = anything(chance),
    }
}
