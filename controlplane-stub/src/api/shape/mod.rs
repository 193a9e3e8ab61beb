//! Checks a request's JSON against the shape of its operation and drops what ECS does not know.
//!
//! The shapes are a table made from ECS's published service model. What passes has the right
//! types throughout, so that the typed requests read from it cannot fail on them.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Number, Value};

use super::error::{ApiError, ApiResult};

/// The type of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    String,
    Integer,
    Long,
    Double,
    Boolean,
    Timestamp,
    /// A list or a map; the index of the element's type.
    List(usize),
    Map(usize),
    /// The index of a structure.
    Structure(usize),
}

#[derive(Debug, Default)]
struct Table {
    operations: HashMap<&'static str, usize>,
    structures: Vec<HashMap<&'static str, Type>>,
    elements: Vec<Type>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::read(include_str!("ecs.txt")));

impl Table {
    fn read(text: &'static str) -> Self {
        let mut table = Self::default();
        let mut names = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ').filter(|word| !word.is_empty());
            let Some(first) = words.next() else { continue };
            if let Some(operation) = first.strip_prefix('@') {
                let structure = table.index(&mut names, words.next().unwrap_or_default());
                table.operations.insert(operation, structure);
            } else {
                let structure = table.index(&mut names, first);
                for (member, kind) in words.filter_map(|word| word.split_once(':')) {
                    let kind = table.kind(&mut names, kind);
                    table.structures[structure].insert(member, kind);
                }
            }
        }
        table
    }

    fn index(&mut self, names: &mut HashMap<&'static str, usize>, name: &'static str) -> usize {
        *names.entry(name).or_insert_with(|| {
            self.structures.push(HashMap::new());
            self.structures.len() - 1
        })
    }

    fn kind(&mut self, names: &mut HashMap<&'static str, usize>, text: &'static str) -> Type {
        let inner = |close| text.get(1..).and_then(|rest| rest.strip_suffix(close));
        match text.chars().next() {
            Some('[') => {
                let element = self.kind(names, inner(']').unwrap_or_default());
                self.elements.push(element);
                Type::List(self.elements.len() - 1)
            }
            Some('{') => {
                let element = self.kind(names, inner('}').unwrap_or_default());
                self.elements.push(element);
                Type::Map(self.elements.len() - 1)
            }
            _ => match text {
                "s" => Type::String,
                "i" => Type::Integer,
                "l" => Type::Long,
                "d" => Type::Double,
                "b" => Type::Boolean,
                "t" => Type::Timestamp,
                name => Type::Structure(self.index(names, name)),
            },
        }
    }
}

/// Whether the shapes know the operation.
#[must_use]
pub(super) fn knows(operation: &str) -> bool {
    TABLE.operations.contains_key(operation)
}

/// Checks `input` against the request shape of `operation` and returns it without the members
/// that ECS does not know and without nulls.
///
/// # Errors
/// `SerializationException` naming the member that has the wrong type.
pub(super) fn check(operation: &str, input: Value) -> ApiResult<Value> {
    let Some(&structure) = TABLE.operations.get(operation) else {
        return Ok(input);
    };
    let mut path = String::new();
    conform(Type::Structure(structure), input, &mut path)
}

fn conform(kind: Type, value: Value, path: &mut String) -> ApiResult<Value> {
    match (kind, value) {
        (Type::String, value @ Value::String(_)) | (Type::Boolean, value @ Value::Bool(_)) => Ok(value),
        (Type::Integer, Value::Number(number)) => {
            whole(&number, path, i64::from(i32::MIN), i64::from(i32::MAX))
        }
        (Type::Long, Value::Number(number)) => whole(&number, path, i64::MIN, i64::MAX),
        (Type::Double | Type::Timestamp, value @ Value::Number(_)) => Ok(value),
        (Type::List(element), Value::Array(items)) => {
            let mut list = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                // A null inside a list is nothing that a member could default to.
                let item =
                    within(path, &format!("[{index}]"), |path| conform(TABLE.elements[element], item, path))?;
                list.push(item);
            }
            Ok(Value::Array(list))
        }
        (Type::Map(element), Value::Object(entries)) => {
            let mut map = Map::new();
            for (key, item) in entries {
                if !item.is_null() {
                    let item = within(path, &format!(".{key}"), |path| {
                        conform(TABLE.elements[element], item, path)
                    })?;
                    map.insert(key, item);
                }
            }
            Ok(Value::Object(map))
        }
        (Type::Structure(structure), Value::Object(members)) => {
            let mut known = Map::new();
            for (name, item) in members {
                if let Some(&kind) = TABLE.structures[structure].get(name.as_str())
                    && !item.is_null()
                {
                    let step = if path.is_empty() { name.clone() } else { format!(".{name}") };
                    let item = within(path, &step, |path| conform(kind, item, path))?;
                    known.insert(name, item);
                }
            }
            Ok(Value::Object(known))
        }
        (kind, value) => Err(ApiError::serialization(format!(
            "{} cannot be converted to {}{}",
            found(&value),
            wanted(kind),
            at(path)
        ))),
    }
}

fn within<T>(path: &mut String, step: &str, work: impl FnOnce(&mut String) -> T) -> T {
    let length = path.len();
    path.push_str(step);
    let result = work(path);
    path.truncate(length);
    result
}

/// A whole number within bounds; `3.0` counts as one.
fn whole(number: &Number, path: &str, least: i64, greatest: i64) -> ApiResult<Value> {
    let whole = number.as_i64().or_else(|| {
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
        number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64)
    });
    match whole {
        Some(whole) if (least..=greatest).contains(&whole) => Ok(Value::from(whole)),
        _ => Err(ApiError::serialization(format!("{number} is not an integer in range{}", at(path)))),
    }
}

fn at(path: &str) -> String {
    if path.is_empty() { ": the request".to_owned() } else { format!(": {path}") }
}

const fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "NULL_VALUE",
        Value::Bool(true) => "TRUE_VALUE",
        Value::Bool(false) => "FALSE_VALUE",
        Value::Number(_) => "NUMBER_VALUE",
        Value::String(_) => "STRING_VALUE",
        Value::Array(_) => "Start of list",
        Value::Object(_) => "Start of structure",
    }
}

const fn wanted(kind: Type) -> &'static str {
    match kind {
        Type::String => "String",
        Type::Integer => "Integer",
        Type::Long => "Long",
        Type::Double => "Double",
        Type::Boolean => "Boolean",
        Type::Timestamp => "Timestamp",
        Type::List(_) => "list",
        Type::Map(_) => "map",
        Type::Structure(_) => "structure",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_ecs_does_not_know_is_dropped_at_every_depth() {
        let input = json!({
            "family": "f", "bogus": 1, "cpu": null,
            "containerDefinitions": [{"name": "a", "odd": {}, "dockerLabels": {"any": "thing"}}]
        });
        let checked = check("RegisterTaskDefinition", input).unwrap();
        assert_eq!(
            checked,
            json!({"family": "f", "containerDefinitions": [{"name": "a", "dockerLabels": {"any": "thing"}}]})
        );
    }

    #[test]
    fn a_wrong_type_is_named_with_its_member() {
        for (operation, input, message) in [
            ("RunTask", json!({"count": "3"}), "STRING_VALUE cannot be converted to Integer: count"),
            ("RunTask", json!({"count": 1.5}), "1.5 is not an integer in range: count"),
            ("RunTask", json!({"count": 3_000_000_000_u32}), "3000000000 is not an integer in range: count"),
            ("RunTask", json!([]), "Start of list cannot be converted to structure: the request"),
            ("DescribeTasks", json!({"tasks": "x"}), "STRING_VALUE cannot be converted to list: tasks"),
            ("DescribeTasks", json!({"tasks": [null]}), "NULL_VALUE cannot be converted to String: tasks[0]"),
            (
                "RegisterTaskDefinition",
                json!({"containerDefinitions": [{"environment": [{"name": 4}]}]}),
                "NUMBER_VALUE cannot be converted to String: containerDefinitions[0].environment[0].name",
            ),
        ] {
            let error = check(operation, input).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), ("SerializationException", message));
        }
    }

    #[test]
    fn every_structure_of_the_table_is_defined() {
        for (operation, &structure) in &TABLE.operations {
            assert!(structure < TABLE.structures.len(), "{operation}");
        }
        let empty = TABLE.structures.iter().filter(|members| members.is_empty()).count();
        assert_eq!(empty, 0, "a structure is named but not defined");
    }
}
