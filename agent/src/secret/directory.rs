//! Values in files: one for each, under its name. What Kubernetes, systemd and Docker mount looks so.

use std::io::ErrorKind;
use std::path::PathBuf;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt;

use super::{MAX_BYTES, Provider, Reference, SecretError};
use crate::config::Secret;

/// A folder of files.
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    async fn read(&self, reference: &Reference) -> Result<Secret, SecretError> {
        reference.must_be_current()?;
        for name in reference.names() {
            let path = self.path.join(name);
            match read(&path).await {
                Ok(text) => return Ok(Secret::new(text)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(SecretError::Refused(format!(
                        "{}: {}: {error}",
                        reference.text,
                        path.display()
                    )));
                }
            }
        }
        Err(SecretError::Refused(format!(
            "{}: there is no such file in {}",
            reference.text,
            self.path.display()
        )))
    }
}

/// The text of a file without the newline that editors put at its end.
async fn read(path: &std::path::Path) -> std::io::Result<String> {
    let mut text = String::new();
    let most = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(2);
    tokio::fs::File::open(path).await?.take(most).read_to_string(&mut text).await?;
    let end =
        text.strip_suffix('\n').map_or(text.len(), |text| text.strip_suffix('\r').unwrap_or(text).len());
    text.truncate(end);
    Ok(text)
}

impl Provider for Directory {
    fn fetch<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Secret, SecretError>> {
        self.read(reference).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_is_a_file_under_its_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("prod")).unwrap();
        std::fs::write(folder.path().join("prod/db"), "hunter2\n").unwrap();
        let directory = Directory::new(folder.path().to_owned());
        let fetch = async |text: &str| {
            let value = directory.read(&Reference::parse(text).unwrap()).await;
            value.map(|value| value.expose().to_owned()).map_err(|error| error.to_string())
        };
        assert_eq!(fetch("/prod/db").await.unwrap(), "hunter2");
        assert_eq!(fetch("arn:aws:secretsmanager:r:1:secret:prod/db-AbC1dE").await.unwrap(), "hunter2");
        assert!(fetch("prod/other").await.unwrap_err().contains("prod/other"));
        assert!(fetch("prod").await.is_err());
        assert!(fetch("arn:aws:secretsmanager:r:1:secret:prod/db::AWSPREVIOUS:").await.is_err());
    }
}
