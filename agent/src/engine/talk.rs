//! Talks with programs in containers for whoever asked for them, on this host or from afar.

use std::io;

use berth_proto::talk::Kind;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::AsyncWriteExt;

use super::Engine;
use crate::runtime::{Exec, LogStream, Said};

impl Engine {
    /// Passes on what is said between a program and whoever asked for it, until the program ends or the other
    /// side hangs up.
    ///
    /// # Errors
    /// The wire's.
    pub async fn talk(
        &self,
        exec: Exec,
        from: impl Stream<Item = io::Result<Kind>>,
        to: impl Sink<Kind, Error = io::Error>,
    ) -> io::Result<()> {
        let Exec { id, mut output, mut input } = exec;
        tokio::pin!(from, to);
        let heard = async {
            while let Some(frame) = from.next().await {
                match frame? {
                    Kind::Input(bytes) => {
                        input.write_all(&bytes).await?;
                        input.flush().await?;
                    }
                    Kind::EndOfInput(_) => input.shutdown().await?,
                    Kind::Resize(size) => {
                        let side = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
                        // A program that has just ended has no terminal.
                        let _ = self.exec_resize(&id, side(size.columns), side(size.rows)).await;
                    }
                    _ => return Err(io::Error::other("a frame of the wrong side")),
                }
            }
            // Whoever asked has hung up.
            io::Result::Ok(())
        };
        let said = async {
            while let Some(part) = output.next().await {
                let frame = match part {
                    Ok(Said::Out(bytes)) => Kind::Output(bytes),
                    Ok(Said::Err(bytes)) => Kind::ErrorOutput(bytes),
                    Err(error) => Kind::Failure(error.to_string()),
                };
                to.send(frame).await?;
            }
            let end = match self.exec_exit(&id).await {
                Ok(Some(code)) => Kind::ExitCode(code),
                Ok(None) => Kind::Failure("the program is out of reach".to_owned()),
                Err(error) => Kind::Failure(error.to_string()),
            };
            to.send(end).await
        };
        tokio::select! {
            ended = said => ended,
            hung_up = heard => hung_up,
        }
    }
}

/// Passes on what a container has said, and says, until that ends or the other side hangs up.
///
/// # Errors
/// The wire's.
pub async fn recite(
    mut lines: LogStream,
    from: impl Stream<Item = io::Result<Kind>>,
    to: impl Sink<Kind, Error = io::Error>,
) -> io::Result<()> {
    tokio::pin!(from, to);
    let said = async {
        while let Some(part) = lines.next().await {
            match part {
                Ok(bytes) => to.send(Kind::Output(bytes)).await?,
                Err(error) => return to.send(Kind::Failure(error.to_string())).await,
            }
        }
        to.send(Kind::ExitCode(0)).await
    };
    let hung_up = async {
        // Whoever reads has nothing to say.
        while let Some(Ok(_)) = from.next().await {}
    };
    tokio::select! {
        ended = said => ended,
        () = hung_up => Ok(()),
    }
}
