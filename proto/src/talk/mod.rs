//! What is said with a program in a container, over any wire that carries bytes: each frame is its length in
//! four bytes, the highest first, and a [`v1::Frame`]. And the side of whoever sits in front of it.

mod terminal;

use std::io;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use crate::v1;
pub use crate::v1::frame::Kind;
use terminal::Raw;

/// Longest frame in bytes.
const MOST: usize = 1 << 20;
/// Most bytes of input in one frame.
const INPUT: usize = 16 * 1024;

/// How a conversation failed, for people.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The other side gave it up, and why.
    #[error("{0}")]
    Failed(String),
    /// The other side said what is not for it to say.
    #[error("a frame came from the wrong side")]
    WrongSide,
    /// The other side went away.
    #[error("the connection was closed before the program had ended")]
    HungUp,
    /// The wire, or the terminal.
    #[error(transparent)]
    Wire(#[from] io::Error),
}

/// Writes a frame.
///
/// # Errors
/// The wire's.
pub async fn write(wire: &mut (impl AsyncWrite + Unpin), kind: Kind) -> io::Result<()> {
    let frame = v1::Frame { kind: Some(kind) };
    let length = u32::try_from(frame.encoded_len()).map_err(io::Error::other)?;
    let mut whole = Vec::with_capacity(frame.encoded_len() + 4);
    whole.extend_from_slice(&length.to_be_bytes());
    frame.encode(&mut whole).map_err(io::Error::other)?;
    wire.write_all(&whole).await?;
    wire.flush().await
}

/// Reads the next frame; `None` at the end.
///
/// # Errors
/// The wire's, and what is no frame.
pub async fn read(wire: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Kind>> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut length = [0; 4];
    match wire.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > MOST {
        return Err(invalid(format!("a frame of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    wire.read_exact(&mut bytes).await?;
    let frame = v1::Frame::decode(bytes.as_slice()).map_err(|error| invalid(error.to_string()))?;
    frame.kind.map(Some).ok_or_else(|| invalid("a frame of a kind that is not known".to_owned()))
}

/// The frames of a wire, to its end.
pub fn frames(wire: impl AsyncRead + Unpin + Send) -> impl Stream<Item = io::Result<Kind>> + Send {
    stream::try_unfold(wire, |mut wire| async move { Ok(read(&mut wire).await?.map(|kind| (kind, wire))) })
}

/// Whether somebody sits at a terminal here.
#[must_use]
pub fn has_terminal() -> bool {
    terminal::is_there()
}

/// Talks with a program, with this program's input and output for its own, and its terminal where the program
/// has one (`tty`). Without `interactive` it gets no input. Its exit code.
///
/// # Errors
/// [`TalkError`].
pub async fn sit(wire: impl AsyncRead + AsyncWrite, tty: bool, interactive: bool) -> Result<i32, TalkError> {
    let _raw = tty.then(Raw::begin);
    let (from, to) = tokio::io::split(wire);
    tokio::select! {
        ended = hear(from) => ended,
        failure = tell(to, tty, interactive) => Err(failure.into()),
    }
}

/// Copies what the program says; its exit code.
async fn hear(mut from: impl AsyncRead + Unpin) -> Result<i32, TalkError> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(frame) = read(&mut from).await? {
        match frame {
            Kind::Output(bytes) => {
                out.write_all(&bytes).await?;
                out.flush().await?;
            }
            Kind::ErrorOutput(bytes) => {
                err.write_all(&bytes).await?;
                err.flush().await?;
            }
            Kind::ExitCode(code) => return Ok(code),
            Kind::Failure(why) => return Err(TalkError::Failed(why)),
            _ => return Err(TalkError::WrongSide),
        }
    }
    Err(TalkError::HungUp)
}

/// Passes on what is typed, and the terminal's size. Ends with a failure alone.
async fn tell(mut to: impl AsyncWrite + Unpin, tty: bool, interactive: bool) -> io::Error {
    let told = async {
        let mut changed = signal(SignalKind::window_change())?;
        let mut typed = tokio::io::stdin();
        let mut buffer = vec![0; INPUT];
        let mut open = interactive;
        if !interactive {
            write(&mut to, Kind::EndOfInput(v1::EndOfInput {})).await?;
        }
        let size = || terminal::size().filter(|_| tty).map(|(columns, rows)| v1::Resize { columns, rows });
        if let Some(size) = size() {
            write(&mut to, Kind::Resize(size)).await?;
        }
        loop {
            tokio::select! {
                read = typed.read(&mut buffer), if open => match read? {
                    0 => {
                        open = false;
                        write(&mut to, Kind::EndOfInput(v1::EndOfInput {})).await?;
                    }
                    count => write(&mut to, Kind::Input(Bytes::copy_from_slice(&buffer[..count]))).await?,
                },
                _ = changed.recv() => {
                    if let Some(size) = size() {
                        write(&mut to, Kind::Resize(size)).await?;
                    }
                }
            }
        }
        #[expect(unreachable_code, reason = "names the kind of error")]
        io::Result::Ok(())
    };
    told.await.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read() {
        let all = [
            Kind::Input(Bytes::from_static(b"ls\n")),
            Kind::EndOfInput(v1::EndOfInput {}),
            Kind::Resize(v1::Resize { columns: 80, rows: 24 }),
            Kind::Output(Bytes::from_static(b"a")),
            Kind::ErrorOutput(Bytes::new()),
            Kind::ExitCode(-1),
            Kind::Failure("gone".to_owned()),
        ];
        let mut wire = Vec::new();
        for frame in &all {
            write(&mut wire, frame.clone()).await.unwrap();
        }
        let mut rest = wire.as_slice();
        for frame in all {
            assert_eq!(read(&mut rest).await.unwrap(), Some(frame));
        }
        assert_eq!(read(&mut rest).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        for bad in [&[0, 0, 0, 0][..], &[255, 255, 255, 255], &[0, 0, 0, 2, 8, 1], &[0, 0, 0, 9, 1]] {
            assert!(read(&mut &*bad).await.is_err(), "{bad:?}");
        }
    }
}
