//! Environment files: `NAME=value` lines, from the host or a web server.

use std::path::Path;
use std::sync::OnceLock;

use tokio::io::AsyncReadExt;

use super::EnvironmentError;
use crate::web;

/// Largest file. The kernel takes 2 MiB of arguments and environment for a program (execve(2)).
const MAX_BYTES: usize = 1 << 20;
/// Where an object of a bucket begins in its ARN.
const OBJECT: &str = ":s3:::";

/// Reads environment files.
pub(super) struct Files {
    /// Made when the first file is fetched: it has every certificate authority of the host in memory.
    client: OnceLock<reqwest::Client>,
    objects: Option<String>,
}

impl Files {
    pub(super) fn new(objects: Option<String>) -> Self {
        Self { client: OnceLock::new(), objects }
    }

    /// The variables of the file there, each name once.
    pub(super) async fn read(&self, location: &str) -> Result<Vec<(String, String)>, EnvironmentError> {
        let location = self.resolve(location)?;
        let text =
            match location.strip_prefix("file://").or_else(|| location.strip_prefix('/').map(|_| &*location))
            {
                Some(path) => of_host(Path::new(path)).await?,
                None if location.starts_with("http://") || location.starts_with("https://") => {
                    self.of_web(&location).await?
                }
                None => {
                    return Err(EnvironmentError::Refused(
                        "is neither file:///PATH, http(s)://… nor an S3 object's ARN".to_owned(),
                    ));
                }
            };
        let text = String::from_utf8(text)
            .map_err(|_| EnvironmentError::Refused("is not a text in UTF-8".to_owned()))?;
        Ok(variables(&text))
    }

    /// An object of a bucket is a file below where the operator keeps such.
    fn resolve(&self, location: &str) -> Result<String, EnvironmentError> {
        let Some((_, object)) = location.split_once(OBJECT).filter(|_| location.starts_with("arn:")) else {
            return Ok(location.to_owned());
        };
        if object.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(EnvironmentError::Refused("names no object".to_owned()));
        }
        match &self.objects {
            Some(base) => Ok(format!("{}/{object}", base.trim_end_matches('/'))),
            None => Err(EnvironmentError::Refused(
                "this host does not know where to find S3 objects; set BERTH_OBJECT_STORE".to_owned(),
            )),
        }
    }

    async fn of_web(&self, url: &str) -> Result<Vec<u8>, EnvironmentError> {
        let away = |error: reqwest::Error| EnvironmentError::Away(web::explain(&error.without_url()));
        let mut response = self.client.get_or_init(web::client).get(url).send().await.map_err(away)?;
        let status = response.status();
        if !status.is_success() {
            let text = format!("the server answers {status}");
            return Err(if status.is_server_error() || status.as_u16() == 429 {
                EnvironmentError::Away(text)
            } else {
                EnvironmentError::Refused(text)
            });
        }
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            text.extend_from_slice(&chunk);
            check_size(&text)?;
        }
        Ok(text)
    }
}

async fn of_host(path: &Path) -> Result<Vec<u8>, EnvironmentError> {
    let read = async {
        let mut text = Vec::new();
        let most = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        tokio::fs::File::open(path).await?.take(most).read_to_end(&mut text).await?;
        std::io::Result::Ok(text)
    };
    let text = read.await.map_err(|error| EnvironmentError::Refused(error.to_string()))?;
    check_size(&text)?;
    Ok(text)
}

fn check_size(text: &[u8]) -> Result<(), EnvironmentError> {
    if text.len() <= MAX_BYTES {
        return Ok(());
    }
    Err(EnvironmentError::Refused(format!(
        "has more than {} KiB, which no program can take",
        MAX_BYTES / 1024
    )))
}

/// The lines that are variables; comments, empty lines and lines without `=` are none (ECS developer
/// guide, "Pass environment variables to a container"). Spaces and quotes belong to the value.
fn variables(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let name = name.trim();
        if name.is_empty() || value.contains('\0') {
            continue;
        }
        match found.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => value.clone_into(&mut entry.1),
            None => found.push((name.to_owned(), value.to_owned())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_variables_as_they_stand() {
        let text =
            "# comment\n\nA=1\r\nB= two words \nQUOTED=\"x\"\nno variable\n=empty\nURL=a=b\nA=2\n  #A=3\n";
        let pairs = [("A", "2"), ("B", " two words "), ("QUOTED", "\"x\""), ("URL", "a=b")];
        let expected: Vec<_> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        assert_eq!(variables(text), expected);
    }

    #[tokio::test]
    async fn a_file_is_found_on_the_host_or_as_an_object_below_the_store() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bucket")).unwrap();
        let path = folder.path().join("bucket/app.env");
        std::fs::write(&path, "A=1\n").unwrap();
        let store = format!("file://{}", folder.path().display());
        let files = Files::new(Some(store));
        let found = vec![("A".to_owned(), "1".to_owned())];
        for location in [
            path.display().to_string(),
            format!("file://{}", path.display()),
            "arn:aws:s3:::bucket/app.env".into(),
        ] {
            assert_eq!(files.read(&location).await.unwrap(), found, "{location}");
        }
        for (location, why) in [
            ("arn:aws:s3:::bucket/../x.env", "no object"),
            ("arn:aws:s3:::bucket/other.env", "No such file"),
            ("ftp://host/x.env", "neither"),
        ] {
            let error = files.read(location).await.unwrap_err().to_string();
            assert!(error.contains(why), "{location}: {error}");
        }
        let without = Files::new(None).read("arn:aws:s3:::bucket/app.env").await.unwrap_err();
        assert!(without.to_string().contains("BERTH_OBJECT_STORE"), "{without}");
    }

    #[tokio::test]
    async fn a_file_that_no_program_can_take_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.env");
        std::fs::write(&path, vec![b'a'; 10 << 20]).unwrap();
        let error = Files::new(None).read(&path.display().to_string()).await.unwrap_err();
        assert!(error.to_string().contains("1024 KiB"), "{error}");
    }
}
