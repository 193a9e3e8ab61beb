//! What goes over the wire while somebody talks with a program in a container: frames of a kind, a length
//! and so many bytes.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest frame.
const MOST: usize = 1 << 20;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// For the program's standard input.
    In(Bytes),
    /// There is no more of it.
    EndOfInput,
    /// The size of its terminal: columns and rows.
    Resize(u16, u16),
    /// From its standard output, or its terminal.
    Out(Bytes),
    /// From its standard error.
    Err(Bytes),
    /// It ended, with that exit code.
    Exit(i32),
    /// Nothing more will come: why.
    Failed(String),
}

impl Frame {
    fn parts(&self) -> (u8, Bytes) {
        match self {
            Self::In(bytes) => (0, bytes.clone()),
            Self::EndOfInput => (1, Bytes::new()),
            Self::Resize(columns, rows) => {
                let [a, b] = columns.to_be_bytes();
                let [c, d] = rows.to_be_bytes();
                (2, Bytes::copy_from_slice(&[a, b, c, d]))
            }
            Self::Out(bytes) => (3, bytes.clone()),
            Self::Err(bytes) => (4, bytes.clone()),
            Self::Exit(code) => (5, Bytes::copy_from_slice(&code.to_be_bytes())),
            Self::Failed(why) => (6, Bytes::copy_from_slice(why.as_bytes())),
        }
    }

    fn of(kind: u8, bytes: Bytes) -> Option<Self> {
        Some(match (kind, bytes.as_ref()) {
            (0, _) => Self::In(bytes),
            (1, []) => Self::EndOfInput,
            (2, [a, b, c, d]) => Self::Resize(u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
            (3, _) => Self::Out(bytes),
            (4, _) => Self::Err(bytes),
            (5, [a, b, c, d]) => Self::Exit(i32::from_be_bytes([*a, *b, *c, *d])),
            (6, text) => Self::Failed(String::from_utf8_lossy(text).into_owned()),
            _ => return None,
        })
    }

    /// Writes it.
    ///
    /// # Errors
    /// The wire's.
    pub async fn write(&self, wire: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let (kind, bytes) = self.parts();
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut whole = Vec::with_capacity(bytes.len() + 5);
        whole.push(kind);
        whole.extend_from_slice(&length.to_be_bytes());
        whole.extend_from_slice(&bytes);
        wire.write_all(&whole).await?;
        wire.flush().await
    }

    /// Reads the next; `None` at the end.
    ///
    /// # Errors
    /// The wire's, and what is no frame.
    pub async fn read(wire: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        match wire.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        };
        let [kind, a, b, c, d] = head;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(io::Error::other)?;
        if length > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        wire.read_exact(&mut bytes).await?;
        let frame = Self::of(kind, bytes.into());
        frame
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no frame is of kind {kind}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read() {
        let all = [
            Frame::In(Bytes::from_static(b"ls\n")),
            Frame::EndOfInput,
            Frame::Resize(80, 24),
            Frame::Out(Bytes::from_static(b"a")),
            Frame::Err(Bytes::new()),
            Frame::Exit(-1),
            Frame::Failed("gone".to_owned()),
        ];
        let mut wire = Vec::new();
        for frame in &all {
            frame.write(&mut wire).await.unwrap();
        }
        let mut rest = wire.as_slice();
        for frame in all {
            assert_eq!(Frame::read(&mut rest).await.unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut rest).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        for bad in [&[9, 0, 0, 0, 0][..], &[0, 255, 255, 255, 255], &[2, 0, 0, 0, 1, 0]] {
            assert!(Frame::read(&mut &*bad).await.is_err(), "{bad:?}");
        }
    }
}
