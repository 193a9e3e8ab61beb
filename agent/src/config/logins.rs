//! Logins of registries in the operator's settings: `ECS_ENGINE_AUTH_TYPE` and `ECS_ENGINE_AUTH_DATA`, in
//! ECS's two forms (developer guide, "Private registry authentication for container instances").

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_core::image::normal_registry;
use berth_proto::sigv4::Key;
use serde::Deserialize;

use super::Secret;
use super::read::Reader;

/// A login of one registry. `Debug` shows no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryLogin {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: Secret,
}

/// What tokens of Amazon ECR are asked for with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcrAccess {
    /// The host's own key.
    pub key: Key,
    /// The region of registries whose names do not tell.
    pub region: String,
    /// Where tokens are asked for; by the registry's region unless given.
    pub endpoint: Option<reqwest::Url>,
    /// Registries that want such tokens, beside those of Amazon.
    pub registries: Vec<String>,
}

/// Reads how tokens of ECR are to be had, where the host has a key of its own.
pub(super) fn ecr(r: &mut Reader<'_>) -> Option<EcrAccess> {
    let key = Key::from_variables(|name| r.strings.get(name)).ok();
    let url = "an address, such as https://ecr.local";
    let endpoint = r.read("AWS_ENDPOINT_URL_ECR", url, None, |v| reqwest::Url::parse(v).ok().map(Some));
    let names = "names of registries with commas between";
    let registries = r.read("BERTH_ECR_REGISTRIES", names, Vec::new(), |v| {
        Some(v.split(',').map(str::trim).filter(|name| !name.is_empty()).map(normal_registry).collect())
    });
    let region = r.strings.get("AWS_DEFAULT_REGION").or_else(|| r.strings.get("AWS_REGION"));
    Some(EcrAccess {
        key: key?,
        region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        endpoint,
        registries,
    })
}

/// The form `dockercfg`: what `docker login` writes.
#[derive(Deserialize)]
struct Encoded {
    auth: String,
}

/// The form `docker`: in clear.
#[derive(Deserialize)]
struct Plain {
    username: String,
    password: String,
}

/// Reads all logins, by registry.
pub(super) fn read(r: &mut Reader<'_>) -> HashMap<String, RegistryLogin> {
    let form = r.read("ECS_ENGINE_AUTH_TYPE", "docker or dockercfg", None, |v| {
        ["docker", "dockercfg"].contains(&v).then(|| Some(v.to_owned()))
    });
    let expected = "ECS_ENGINE_AUTH_TYPE, and a JSON object of logins by registry in its form";
    // What does not parse may hold a password: it is not repeated.
    r.read_secret("ECS_ENGINE_AUTH_DATA", expected, |v| match form.as_deref()? {
        "dockercfg" => {
            let all: HashMap<String, Encoded> = serde_json::from_str(v).ok()?;
            all.into_iter().map(|(registry, login)| Some((registry, decoded(&login.auth)?))).collect()
        }
        _ => {
            let all: HashMap<String, Plain> = serde_json::from_str(v).ok()?;
            let login = |plain: Plain| RegistryLogin {
                username: plain.username,
                password: Secret::new(plain.password),
            };
            Some(all.into_iter().map(|(registry, plain)| (registry, login(plain))).collect())
        }
    })
}

fn decoded(auth: &str) -> Option<RegistryLogin> {
    let text = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(RegistryLogin { username: username.to_owned(), password: Secret::new(password.to_owned()) })
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Variables};

    fn read(kind: &str, data: &str) -> Result<String, String> {
        let pairs = [("ECS_ENGINE_AUTH_TYPE", kind), ("ECS_ENGINE_AUTH_DATA", data)];
        let config = Config::read(&pairs.into_iter().collect::<Variables>()).map_err(|e| e.to_string())?;
        let login = &config.registry_logins["r.local"];
        Ok(format!("{} {} {login:?}", login.username, login.password.expose()))
    }

    #[test]
    fn both_forms_are_read_and_neither_is_shown() {
        let plain = r#"{"r.local": {"username": "me", "password": "hush", "email": "a@b"}}"#;
        let encoded = r#"{"r.local": {"auth": "bWU6aHVzaA=="}}"#;
        for (kind, data) in [("docker", plain), ("dockercfg", encoded)] {
            let read = read(kind, data).unwrap();
            assert!(read.starts_with("me hush ") && read.matches("hush").count() == 1, "{read}");
        }
        let wrong = read("dockercfg", plain).unwrap_err();
        assert!(wrong.contains("ECS_ENGINE_AUTH_DATA") && !wrong.contains("hush"), "{wrong}");
        assert!(read("", plain).unwrap_err().contains("ECS_ENGINE_AUTH_TYPE"));
    }
}
