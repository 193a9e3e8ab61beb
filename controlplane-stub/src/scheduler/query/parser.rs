//! Reads an expression of the cluster query language: a scanner and a recursive descent.

use regex::Regex;

use super::{Expr, InvalidQuery, Operator, Subject, Test};

/// Deepest nesting that is read, so that a caller can't exhaust the stack.
const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A bare word.
    Word(String),
    /// A quoted text.
    Quoted(String),
    /// Punctuation or an operator in signs.
    Sign(&'static str),
}

/// Longer signs first, so that `!=` is not read as `!`.
const SIGNS: [&str; 17] =
    ["||", "&&", "==", "!=", ">=", "<=", "=~", "!~", "!exists", "!in", ">", "<", "!", "(", ")", "[", "]"];

pub(super) fn parse(text: &str) -> Result<Expr, InvalidQuery> {
    let tokens = scan(text)?;
    let mut parser = Parser { tokens, at: 0, end: text.chars().count() + 1 };
    let expr = parser.or(0)?;
    match parser.peek() {
        None => Ok(expr),
        Some(_) => parser.fail("and, or or the end was expected"),
    }
}

fn scan(text: &str) -> Result<Vec<(usize, Token)>, InvalidQuery> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        let skipped = rest.trim_start();
        let at = text.chars().count() - skipped.chars().count() + 1;
        rest = skipped;
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        if first == ',' {
            tokens.push((at, Token::Sign(",")));
            rest = rest.get(1..).unwrap_or_default();
        } else if first == '"' || first == '\'' {
            let body = rest.get(1..).unwrap_or_default();
            let Some(length) = body.find(first) else {
                return Err(InvalidQuery { at, problem: "a quoted text has no end".to_owned() });
            };
            tokens.push((at, Token::Quoted(body.get(..length).unwrap_or_default().to_owned())));
            rest = body.get(length + 1..).unwrap_or_default();
        } else if let Some(sign) = sign_at(rest) {
            tokens.push((at, Token::Sign(sign)));
            rest = rest.get(sign.len()..).unwrap_or_default();
        } else {
            // An argument may hold a colon, dots or a regular expression; it ends at a blank, a
            // comma, a bracket, or a sign that can't be part of a word.
            let length = rest.find(is_end_of_word).unwrap_or(rest.len());
            if length == 0 {
                return Err(InvalidQuery { at, problem: format!("{first:?} was not expected") });
            }
            tokens.push((at, Token::Word(rest.get(..length).unwrap_or_default().to_owned())));
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn is_end_of_word(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, ',' | '(' | ')' | '[' | ']' | '=' | '!' | '<' | '>' | '&' | '|' | '"' | '\'')
}

fn sign_at(rest: &str) -> Option<&'static str> {
    SIGNS.into_iter().find(|sign| {
        rest.strip_prefix(sign).is_some_and(|after| {
            // `!inside` is not `!in side`.
            !sign.ends_with(|c: char| c.is_alphabetic()) || after.chars().next().is_none_or(is_end_of_word)
        })
    })
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    end: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += 1;
        token
    }

    fn fail<T>(&self, problem: impl Into<String>) -> Result<T, InvalidQuery> {
        let at = self.tokens.get(self.at).map_or(self.end, |(at, _)| *at);
        Err(InvalidQuery { at, problem: problem.into() })
    }

    fn accept(&mut self, sign: &str, word: &str) -> bool {
        let found = match self.peek() {
            Some(Token::Sign(s)) => *s == sign,
            Some(Token::Word(w)) => !word.is_empty() && w.eq_ignore_ascii_case(word),
            _ => false,
        };
        self.at += usize::from(found);
        found
    }

    fn or(&mut self, depth: usize) -> Result<Expr, InvalidQuery> {
        let mut any = vec![self.and(depth)?];
        while self.accept("||", "or") {
            any.push(self.and(depth)?);
        }
        Ok(if any.len() == 1 { any.swap_remove(0) } else { Expr::Or(any) })
    }

    fn and(&mut self, depth: usize) -> Result<Expr, InvalidQuery> {
        let mut all = vec![self.unary(depth)?];
        while self.accept("&&", "and") {
            all.push(self.unary(depth)?);
        }
        Ok(if all.len() == 1 { all.swap_remove(0) } else { Expr::And(all) })
    }

    fn unary(&mut self, depth: usize) -> Result<Expr, InvalidQuery> {
        if depth > MAX_DEPTH {
            return self.fail("the expression is nested too deeply");
        }
        if self.accept("!", "not") {
            return Ok(Expr::Not(Box::new(self.unary(depth + 1)?)));
        }
        if self.accept("(", "") {
            let expr = self.or(depth + 1)?;
            if !self.accept(")", "") {
                return self.fail("a closing parenthesis is missing");
            }
            return Ok(expr);
        }
        self.test()
    }

    fn test(&mut self) -> Result<Expr, InvalidQuery> {
        let subject = match self.peek() {
            Some(Token::Word(word)) => subject(word),
            _ => None,
        };
        let Some(subject) = subject else {
            return self.fail("a subject was expected (attribute:<name>, task:group, agentConnected, agentVersion, ec2InstanceId, registeredAt or runningTasksCount)");
        };
        self.at += 1;
        if self.accept("", "exists") {
            return Ok(Expr::Test(subject, Test::Exists));
        }
        if self.accept("!exists", "not_exists") {
            return Ok(Expr::Test(subject, Test::NotExists));
        }
        for (sign, word, wanted) in [("=~", "matches", true), ("!~", "not_matches", false)] {
            if self.accept(sign, word) {
                let Some(Token::Word(pattern) | Token::Quoted(pattern)) = self.next() else {
                    self.at -= 1;
                    return self.fail("a regular expression was expected");
                };
                let Ok(regex) = Regex::new(&format!("^(?:{pattern})$")) else {
                    self.at -= 1;
                    return self.fail(format!("{pattern:?} is no regular expression"));
                };
                return Ok(Expr::Test(subject, Test::Matches { regex, wanted }));
            }
        }
        let Some(operator) = self.operator() else { return self.fail("an operator was expected") };
        let args = self.args(operator)?;
        if subject == Subject::RegisteredAt && args.iter().any(|arg| millis_of(arg).is_none()) {
            self.at -= 1;
            return self.fail("a date was expected, such as 2018-06-18 or 2018-06-18T13:28:28+09:00");
        }
        if subject == Subject::RunningTasksCount && args.iter().any(|arg| arg.parse::<u64>().is_err()) {
            self.at -= 1;
            return self.fail("a whole number was expected");
        }
        Ok(Expr::Test(subject, Test::Is(operator, args)))
    }

    fn operator(&mut self) -> Option<Operator> {
        const OPERATORS: [(&str, &str, Operator); 8] = [
            ("==", "equals", Operator::Equals),
            ("!=", "not_equals", Operator::NotEquals),
            (">=", "greater_than_equal", Operator::GreaterEqual),
            (">", "greater_than", Operator::Greater),
            ("<=", "less_than_equal", Operator::LessEqual),
            ("<", "less_than", Operator::Less),
            ("!in", "not_in", Operator::NotIn),
            ("", "in", Operator::In),
        ];
        OPERATORS.into_iter().find(|(sign, word, _)| self.accept(sign, word)).map(|(_, _, operator)| operator)
    }

    fn args(&mut self, operator: Operator) -> Result<Vec<String>, InvalidQuery> {
        let list = self.peek() == Some(&Token::Sign("["));
        if list != matches!(operator, Operator::In | Operator::NotIn) {
            return self.fail(if list {
                "one value was expected"
            } else {
                "a list in brackets was expected"
            });
        }
        self.at += usize::from(list);
        let mut args = Vec::new();
        loop {
            let Some(Token::Word(value) | Token::Quoted(value)) = self.peek().cloned() else {
                return self.fail("a value was expected");
            };
            self.at += 1;
            args.push(value);
            if !list || self.accept("]", "") {
                return Ok(args);
            }
            if !self.accept(",", "") {
                return self.fail("a comma or a closing bracket was expected");
            }
        }
    }
}

fn subject(word: &str) -> Option<Subject> {
    if let Some(name) = word.strip_prefix("attribute:") {
        return (!name.is_empty()).then(|| Subject::Attribute(name.to_owned()));
    }
    match word {
        "task:group" => Some(Subject::TaskGroup),
        "agentConnected" => Some(Subject::AgentConnected),
        "agentVersion" => Some(Subject::AgentVersion),
        "ec2InstanceId" => Some(Subject::Ec2InstanceId),
        "registeredAt" => Some(Subject::RegisteredAt),
        "runningTasksCount" => Some(Subject::RunningTasksCount),
        _ => None,
    }
}

/// A date, a date with a time, or one with a zone, in milliseconds; UTC unless it says otherwise.
pub(super) fn millis_of(text: &str) -> Option<i64> {
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return Some(timestamp.as_millisecond());
    }
    let utc = |time: jiff::civil::DateTime| time.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let zoned =
        text.parse::<jiff::civil::DateTime>().ok().and_then(utc).or_else(|| {
            text.parse::<jiff::civil::Date>().ok().map(|date| date.at(0, 0, 0, 0)).and_then(utc)
        })?;
    Some(zoned.timestamp().as_millisecond())
}
