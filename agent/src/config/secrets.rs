//! Secrets: texts that show themselves to nobody, and where those of tasks are kept.

use std::fmt;
use std::path::PathBuf;

use super::read::Reader;

/// A text that shows itself to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes charge of a text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the secrets of tasks are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a folder: a file for each, under its name.
    Directory(PathBuf),
    /// With a program: it and its arguments.
    Command(Vec<String>),
    /// In a vault.
    Vault(VaultSource),
}

/// A key-value engine, version 2, of a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultSource {
    /// The vault's address, with the engine's mount as its path.
    pub url: reqwest::Url,
    /// What opens it.
    pub token: VaultToken,
    /// Its namespace, where it has several.
    pub namespace: Option<String>,
}

/// What opens a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultToken {
    /// A text.
    Given(Secret),
    /// A file with that text, which somebody renews.
    File(PathBuf),
}

/// Reads where secrets are kept.
pub(super) fn source(r: &mut Reader<'_>) -> Option<SecretSource> {
    let namespace = r.strings.get("BERTH_VAULT_NAMESPACE");
    let given = r.strings.get("BERTH_VAULT_TOKEN").map(|text| VaultToken::Given(Secret::new(text)));
    let file = r.strings.get("BERTH_VAULT_TOKEN_FILE").map(|path| VaultToken::File(path.into()));
    let token = given.or(file);
    let expected = "directory:/PATH, command:/PROGRAM ARGUMENTS, or vault:https://HOST:PORT/MOUNT with \
                    BERTH_VAULT_TOKEN or BERTH_VAULT_TOKEN_FILE";
    r.read("BERTH_SECRETS", expected, None, |text| {
        let (kind, rest) = text.split_once(':')?;
        let source = match kind {
            "directory" => SecretSource::Directory(rest.starts_with('/').then(|| rest.into())?),
            "command" => {
                let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
                words.first()?;
                SecretSource::Command(words)
            }
            "vault" => {
                let url =
                    reqwest::Url::parse(rest).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
                (url.path().len() > 1).then_some(())?;
                SecretSource::Vault(VaultSource { url, token: token?, namespace })
            }
            _ => return None,
        };
        Some(Some(source))
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, SecretSource, Variables};

    fn read(pairs: &[(&str, &str)]) -> Result<Option<SecretSource>, String> {
        let config = Config::read(&pairs.iter().copied().collect::<Variables>());
        config.map(|config| config.secrets).map_err(|error| error.to_string())
    }

    #[test]
    fn a_source_is_a_folder_a_program_or_a_vault() {
        assert_eq!(read(&[]).unwrap(), None);
        let source = |text: &str| read(&[("BERTH_SECRETS", text), ("BERTH_VAULT_TOKEN", "s.1")]);
        assert!(matches!(source("directory:/etc/secrets").unwrap(), Some(SecretSource::Directory(_))));
        assert!(
            matches!(source("command:/bin/get -q").unwrap(), Some(SecretSource::Command(words)) if words.len() == 2)
        );
        assert!(matches!(source("vault:https://vault:8200/secret").unwrap(), Some(SecretSource::Vault(_))));
        for bad in
            ["directory:relative", "vault:https://vault:8200", "vault:ftp://vault/secret", "asm", "command:"]
        {
            assert!(source(bad).unwrap_err().contains("BERTH_SECRETS"), "{bad}");
        }
        assert!(read(&[("BERTH_SECRETS", "vault:https://vault:8200/secret")]).is_err());
    }

    #[test]
    fn a_vaults_token_shows_itself_to_nobody() {
        let pairs =
            [("BERTH_SECRETS", "vault:http://vault:8200/secret"), ("BERTH_VAULT_TOKEN", "tell-nobody")];
        let source = read(&pairs).unwrap().unwrap();
        assert!(!format!("{source:?}").contains("tell-nobody"));
    }
}
