//! A file that appears: whoever manages the hosts writes it. It may be empty, or say by when the host is
//! gone: a time (RFC 3339), or JSON as EC2 has it.

use std::io;
use std::path::PathBuf;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt;

use super::{Notice, NoticeError, NoticeKind, NoticeSource, instance_metadata, moment};

/// Most of the file that is read, in bytes.
const MOST: u64 = 4096;

/// The file.
#[derive(Debug)]
pub struct NoticeFile(pub PathBuf);

impl NoticeSource for NoticeFile {
    fn name(&self) -> &'static str {
        "BERTH_TERMINATION_NOTICE_FILE"
    }

    fn look(&self) -> BoxFuture<'_, Result<Option<Notice>, NoticeError>> {
        async move {
            let wrong = |error: io::Error| NoticeError(format!("{}: {error}", self.0.display()));
            let file = match tokio::fs::File::open(&self.0).await {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(wrong(error)),
            };
            if !file.metadata().await.map_err(wrong)?.is_file() {
                return Err(NoticeError(format!("{}: is no file", self.0.display())));
            }
            let mut bytes = Vec::new();
            file.take(MOST).read_to_end(&mut bytes).await.map_err(wrong)?;
            let text = String::from_utf8_lossy(&bytes);
            let deadline = moment(&text).or_else(|| instance_metadata::deadline(&text));
            Ok(Some(Notice { kind: NoticeKind::Told, deadline }))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use berth_core::units::Timestamp;

    use super::*;

    #[tokio::test]
    async fn it_is_a_notice_as_soon_as_it_is_there_and_may_say_until_when() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notice");
        let source = NoticeFile(path.clone());
        assert_eq!(source.look().await, Ok(None));
        for (text, deadline) in [
            ("", None),
            ("soon\n", None),
            ("2017-09-18T08:22:00Z\n", Some(1_505_722_920_000)),
            (r#"{"action": "terminate", "time": "2017-09-18T08:22:00Z"}"#, Some(1_505_722_920_000)),
        ] {
            std::fs::write(&path, text).unwrap();
            let deadline = deadline.map(Timestamp);
            assert_eq!(source.look().await, Ok(Some(Notice { kind: NoticeKind::Told, deadline })), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(source.look().await, Ok(None));
        std::fs::create_dir(&path).unwrap();
        assert!(source.look().await.unwrap_err().to_string().contains("is no file"));
    }
}
