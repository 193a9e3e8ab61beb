//! Text files that are kept elsewhere for tasks: on the host, on the web, or in a bucket.

use std::path::Path;
use std::sync::OnceLock;

use tokio::io::AsyncReadExt;

use crate::web;

/// Largest file. For an environment more would be of no use: the kernel takes 2 MiB of arguments and
/// environment for a program (execve(2)).
const MAX_BYTES: usize = 1 << 20;
/// Where an object of a bucket begins in its ARN.
const OBJECT: &str = ":s3:::";

/// Why a file is not to be had. The text is for users.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ObjectError {
    /// Asking again would not help.
    #[error("{0}")]
    Refused(String),
    /// Somebody did not answer.
    #[error("{0}")]
    Away(String),
}

/// Reads files.
pub struct Objects {
    /// Made when the first file is fetched: it has every certificate authority of the host in memory.
    client: OnceLock<reqwest::Client>,
    store: Option<String>,
}

impl Objects {
    /// Objects of `arn:aws:s3:::` are below `store`, where one is given.
    #[must_use]
    pub fn new(store: Option<String>) -> Self {
        Self { client: OnceLock::new(), store }
    }

    /// The text of the file there: `file:///PATH`, `/PATH`, `http(s)://…` or the ARN of an S3 object.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn read(&self, location: &str) -> Result<String, ObjectError> {
        let location = self.resolve(location)?;
        let text =
            match location.strip_prefix("file://").or_else(|| location.strip_prefix('/').map(|_| &*location))
            {
                Some(path) => of_host(Path::new(path)).await?,
                None if location.starts_with("http://") || location.starts_with("https://") => {
                    self.of_web(&location).await?
                }
                None => {
                    return Err(ObjectError::Refused(
                        "is neither file:///PATH, http(s)://… nor an S3 object's ARN".to_owned(),
                    ));
                }
            };
        String::from_utf8(text).map_err(|_| ObjectError::Refused("is not a text in UTF-8".to_owned()))
    }

    /// An object of a bucket is a file below where the operator keeps such.
    fn resolve(&self, location: &str) -> Result<String, ObjectError> {
        let Some((_, object)) = location.split_once(OBJECT).filter(|_| location.starts_with("arn:")) else {
            return Ok(location.to_owned());
        };
        if object.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(ObjectError::Refused("names no object".to_owned()));
        }
        match &self.store {
            Some(base) => Ok(format!("{}/{object}", base.trim_end_matches('/'))),
            None => Err(ObjectError::Refused(
                "this host does not know where to find S3 objects; set BERTH_OBJECT_STORE".to_owned(),
            )),
        }
    }

    async fn of_web(&self, url: &str) -> Result<Vec<u8>, ObjectError> {
        let away = |error: reqwest::Error| ObjectError::Away(web::explain(&error.without_url()));
        let mut response = self.client.get_or_init(web::client).get(url).send().await.map_err(away)?;
        let status = response.status();
        if !status.is_success() {
            let text = format!("the server answers {status}");
            return Err(if status.is_server_error() || status.as_u16() == 429 {
                ObjectError::Away(text)
            } else {
                ObjectError::Refused(text)
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

async fn of_host(path: &Path) -> Result<Vec<u8>, ObjectError> {
    let read = async {
        let mut text = Vec::new();
        let most = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        tokio::fs::File::open(path).await?.take(most).read_to_end(&mut text).await?;
        std::io::Result::Ok(text)
    };
    let text = read.await.map_err(|error| ObjectError::Refused(error.to_string()))?;
    check_size(&text)?;
    Ok(text)
}

fn check_size(text: &[u8]) -> Result<(), ObjectError> {
    if text.len() <= MAX_BYTES {
        return Ok(());
    }
    Err(ObjectError::Refused(format!("has more than {} KiB", MAX_BYTES / 1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_found_on_the_host_or_as_an_object_below_the_store() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bucket")).unwrap();
        let path = folder.path().join("bucket/app.env");
        std::fs::write(&path, "A=1\n").unwrap();
        let store = format!("file://{}", folder.path().display());
        let objects = Objects::new(Some(store));
        for location in [
            path.display().to_string(),
            format!("file://{}", path.display()),
            "arn:aws:s3:::bucket/app.env".into(),
        ] {
            assert_eq!(objects.read(&location).await.unwrap(), "A=1\n", "{location}");
        }
        for (location, why) in [
            ("arn:aws:s3:::bucket/../x.env", "no object"),
            ("arn:aws:s3:::bucket/other.env", "No such file"),
            ("ftp://host/x.env", "neither"),
        ] {
            let error = objects.read(location).await.unwrap_err().to_string();
            assert!(error.contains(why), "{location}: {error}");
        }
        let without = Objects::new(None).read("arn:aws:s3:::bucket/app.env").await.unwrap_err();
        assert!(without.to_string().contains("BERTH_OBJECT_STORE"), "{without}");
    }

    #[tokio::test]
    async fn a_file_that_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.env");
        std::fs::write(&path, vec![b'a'; 10 << 20]).unwrap();
        let error = Objects::new(None).read(&path.display().to_string()).await.unwrap_err();
        assert!(error.to_string().contains("1024 KiB"), "{error}");
    }
}
