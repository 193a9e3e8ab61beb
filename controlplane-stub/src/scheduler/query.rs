//! The cluster query language: expressions over the attributes, tasks and agent of an instance.
//!
//! ```text
//! expr    := and (('||' | 'or') and)*
//! and     := unary (('&&' | 'and') unary)*
//! unary   := ('!' | 'not') unary | '(' expr ')' | test
//! test    := subject op arg | subject ('exists' | '!exists' | 'not_exists')
//! ```

mod parser;

use std::cmp::Ordering;

use berth_core::units::Timestamp;
use regex::Regex;

use super::candidate::Candidate;

/// Longest expression that is read.
pub const MAX_LENGTH: usize = 2000;

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Query(Expr);

/// Why an expression could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at character {at} of the expression")]
pub struct InvalidQuery {
    /// Where, counted from 1.
    pub at: usize,
    /// What is wrong.
    pub problem: String,
}

#[derive(Debug, Clone)]
enum Expr {
    Or(Vec<Expr>),
    And(Vec<Expr>),
    Not(Box<Expr>),
    Test(Subject, Test),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Attribute(String),
    TaskGroup,
    AgentConnected,
    AgentVersion,
    Ec2InstanceId,
    RegisteredAt,
    RunningTasksCount,
}

#[derive(Debug, Clone)]
enum Test {
    Exists,
    NotExists,
    Is(Operator, Vec<String>),
    Matches { regex: Regex, wanted: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equals,
    NotEquals,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    In,
    NotIn,
}

impl Query {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`InvalidQuery`] with the place and what is wrong there.
    pub fn parse(text: &str) -> Result<Self, InvalidQuery> {
        if text.chars().count() > MAX_LENGTH {
            return Err(InvalidQuery {
                at: MAX_LENGTH,
                problem: format!("more than {MAX_LENGTH} characters"),
            });
        }
        parser::parse(text).map(Self)
    }

    /// Whether an instance satisfies the expression.
    #[must_use]
    pub fn matches(&self, candidate: &Candidate, now: Timestamp) -> bool {
        let _ = now; // No subject is relative to the present yet.
        self.0.holds(candidate)
    }
}

impl Expr {
    fn holds(&self, candidate: &Candidate) -> bool {
        match self {
            Self::Or(any) => any.iter().any(|expr| expr.holds(candidate)),
            Self::And(all) => all.iter().all(|expr| expr.holds(candidate)),
            Self::Not(expr) => !expr.holds(candidate),
            Self::Test(Subject::TaskGroup, test) => {
                let groups =
                    candidate.groups.iter().filter(|(_, count)| **count > 0).map(|(group, _)| group.as_str());
                test.holds_for_any(groups)
            }
            Self::Test(subject, test) => test.holds(subject, subject.value(candidate).as_deref()),
        }
    }
}

impl Subject {
    fn value(&self, candidate: &Candidate) -> Option<String> {
        let instance = &candidate.instance;
        match self {
            Self::Attribute(name) => instance.attributes.get(name).cloned(),
            Self::AgentConnected => Some(candidate.connected.to_string()),
            Self::AgentVersion => Some(instance.agent_version.trim_start_matches('v').to_owned()),
            Self::Ec2InstanceId => instance.attributes.get("ecs.instance-id").cloned(),
            Self::RegisteredAt => Some(instance.registered_at.0.to_string()),
            Self::RunningTasksCount => Some(candidate.running.to_string()),
            Self::TaskGroup => None,
        }
    }

    /// How a value of the instance compares with one of the expression.
    fn compare(&self, value: &str, arg: &str) -> Option<Ordering> {
        match self {
            Self::AgentVersion => Some(version(value).cmp(&version(arg))),
            Self::RegisteredAt => Some(value.parse::<i64>().ok()?.cmp(&parser::millis_of(arg)?)),
            Self::RunningTasksCount => Some(value.parse::<u64>().ok()?.cmp(&arg.parse().ok()?)),
            Self::AgentConnected => Some(value.to_ascii_lowercase().cmp(&arg.to_ascii_lowercase())),
            Self::Attribute(_) | Self::Ec2InstanceId | Self::TaskGroup => {
                match (value.parse::<f64>(), arg.parse::<f64>()) {
                    (Ok(value), Ok(arg)) => value.partial_cmp(&arg),
                    _ => Some(value.cmp(arg)),
                }
            }
        }
    }
}

/// The numbers of a version, so that 1.10 is more than 1.9.
fn version(text: &str) -> Vec<u64> {
    text.trim_start_matches('v').split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

impl Test {
    fn holds(&self, subject: &Subject, value: Option<&str>) -> bool {
        let Some(value) = value else {
            // Every other test is about a value: who has none does not pass, `!=` included.
            return matches!(self, Self::NotExists);
        };
        match self {
            Self::Exists => true,
            Self::NotExists => false,
            Self::Matches { regex, wanted } => regex.is_match(value) == *wanted,
            Self::Is(operator, args) => {
                let equals = |arg: &String| match subject {
                    // Equality of texts is exact: "1" is not "1.0".
                    Subject::Attribute(_) | Subject::Ec2InstanceId | Subject::TaskGroup => arg == value,
                    _ => subject.compare(value, arg) == Some(Ordering::Equal),
                };
                let order = || args.first().and_then(|arg| subject.compare(value, arg));
                match operator {
                    Operator::Equals | Operator::In => args.iter().any(equals),
                    Operator::NotEquals | Operator::NotIn => !args.iter().any(equals),
                    Operator::Greater => order() == Some(Ordering::Greater),
                    Operator::GreaterEqual => order().is_some_and(Ordering::is_ge),
                    Operator::Less => order() == Some(Ordering::Less),
                    Operator::LessEqual => order().is_some_and(Ordering::is_le),
                }
            }
        }
    }

    /// For the groups of an instance's tasks: a denial holds when no group is the denied one.
    fn holds_for_any<'a>(&self, mut values: impl Iterator<Item = &'a str>) -> bool {
        match self {
            Self::Exists => values.next().is_some(),
            Self::NotExists => values.next().is_none(),
            Self::Matches { regex, wanted } => values.any(|value| regex.is_match(value)) == *wanted,
            Self::Is(operator, args) => {
                let any = values.any(|value| args.iter().any(|arg| arg == value));
                match operator {
                    Operator::NotEquals | Operator::NotIn => !any,
                    _ => any,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
