//! A program that is started in a container that runs: what it is, and how one talks with it.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::io::AsyncWrite;

use super::RuntimeError;

/// A program to be started.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
}

/// Something that it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// On its standard output, or on its terminal.
    Out(Bytes),
    /// On its standard error.
    Err(Bytes),
}

/// A program that was started.
pub struct Exec {
    /// The engine's name for it.
    pub id: String,
    /// What it says; the stream ends with the program.
    pub output: BoxStream<'static, Result<Said, RuntimeError>>,
    /// Its standard input.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
}
