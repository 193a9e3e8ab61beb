//! What `valueFrom` says (ECS API, `Secret`): which value, and which part of it.

use serde_json::Value;

use super::SecretError;
use crate::config::Secret;

/// Secrets Manager ends the names in its ARNs in a hyphen and so many characters of its own.
const SUFFIX: usize = 6;

/// Names a value, or one member of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// As the definition says it, for people.
    pub text: String,
    /// The value's name, without a leading slash.
    pub name: String,
    /// Whether the name may have Secrets Manager's suffix, which nobody else has given it.
    suffixed: bool,
    /// The member of a JSON object that is meant.
    pub key: Option<String>,
    /// The version that is meant; the present one where absent.
    pub version: Option<String>,
}

impl Reference {
    /// Reads an ARN of Secrets Manager or of a parameter, or a plain name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.splitn(7, ':').collect();
        let (name, rest, suffixed) = match words.as_slice() {
            ["arn", _, "secretsmanager", _, _, "secret", named] => {
                let (name, rest) = named.split_once(':').unwrap_or((named, ""));
                (name, rest, true)
            }
            ["arn", _, "ssm", _, _, named] => (named.strip_prefix("parameter/")?, "", false),
            ["arn", ..] => return None,
            _ => (text, "", false),
        };
        // json-key:version-stage:version-id, each of which may be empty.
        let mut parts = rest.split(':').map(|part| (!part.is_empty()).then(|| part.to_owned()));
        let key = parts.next().flatten();
        let stage = parts.next().flatten().filter(|stage| stage != "AWSCURRENT");
        let version = parts.next().flatten().or(stage);
        let name = name.trim_start_matches('/');
        let plain = !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        plain.then(|| Self { text: text.to_owned(), name: name.to_owned(), suffixed, key, version })
    }

    /// The names that it may be kept under, the likeliest first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let cut = self.name.len().checked_sub(SUFFIX + 1).filter(|_| self.suffixed);
        let bare = cut.and_then(|cut| {
            let (name, suffix) = self.name.split_at_checked(cut)?;
            let suffix = suffix.strip_prefix('-')?;
            (!name.is_empty() && suffix.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(name)
        });
        std::iter::once(self.name.as_str()).chain(bare)
    }

    /// The value, or the member of it that is meant.
    ///
    /// # Errors
    /// When it has no such member.
    pub fn select(&self, whole: Secret) -> Result<Secret, SecretError> {
        let Some(key) = &self.key else { return Ok(whole) };
        let object: Option<Value> = serde_json::from_str(whole.expose()).ok();
        let member = object.as_ref().and_then(|object| object.as_object()?.get(key));
        match member {
            Some(Value::String(text)) => Ok(Secret::new(text.clone())),
            Some(other) => Ok(Secret::new(other.to_string())),
            None => Err(SecretError::Refused(format!("{}: the secret has no JSON key {key}", self.text))),
        }
    }

    /// For a provider that keeps one version alone.
    ///
    /// # Errors
    /// When another is meant.
    pub fn must_be_current(&self) -> Result<(), SecretError> {
        match &self.version {
            None => Ok(()),
            Some(version) => Err(SecretError::Refused(format!(
                "{}: no versions are kept here, and so not {version}",
                self.text
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASM: &str = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/db-AbC1dE";

    fn parsed(text: &str) -> (String, Option<String>, Option<String>) {
        let reference = Reference::parse(text).unwrap();
        (reference.names().last().unwrap().to_owned(), reference.key, reference.version)
    }

    #[test]
    fn arns_and_names_say_which_value() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parsed(ASM), ("prod/db".to_owned(), None, None));
        assert_eq!(parsed(&format!("{ASM}:user::")), ("prod/db".to_owned(), some("user"), None));
        assert_eq!(parsed(&format!("{ASM}:user:AWSCURRENT:")), ("prod/db".to_owned(), some("user"), None));
        assert_eq!(parsed(&format!("{ASM}::AWSPREVIOUS:")).2, some("AWSPREVIOUS"));
        assert_eq!(parsed(&format!("{ASM}:::7")).2, some("7"));
        let parameter = "arn:aws:ssm:us-east-1:123456789012:parameter/prod/db";
        assert_eq!(parsed(parameter), ("prod/db".to_owned(), None, None));
        assert_eq!(parsed("/prod/db").0, "prod/db");
        assert_eq!(parsed("plain").0, "plain");
        // A parameter's name is its own, whatever it ends in.
        assert_eq!(parsed("my-secret").0, "my-secret");
    }

    #[test]
    fn no_name_leads_out_of_where_values_are_kept() {
        for bad in ["", "/", "../etc/shadow", "a/../../b", "a//b", "arn:aws:s3:::bucket/key", "./a"] {
            assert_eq!(Reference::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_key_is_a_member_of_the_value() {
        let select = |key: &str, whole: &str| {
            let reference = Reference::parse(&format!("{ASM}:{key}::")).unwrap();
            reference.select(Secret::new(whole.to_owned())).map(|value| value.expose().to_owned())
        };
        let whole = r#"{"user": "app", "port": 5432}"#;
        assert_eq!(select("user", whole).unwrap(), "app");
        assert_eq!(select("port", whole).unwrap(), "5432");
        let missing = select("password", whole).unwrap_err().to_string();
        assert!(missing.contains("password") && !missing.contains("5432"), "{missing}");
        assert!(select("user", "plain").is_err());
    }
}
