//! A blocking HTTP client with one connection that stays: for a thread inside a container's network, and for
//! requests by the thousand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Longest that a read or a write may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a server.
#[derive(Debug)]
pub struct KeepAlive {
    stream: BufReader<TcpStream>,
    host: String,
}

impl KeepAlive {
    /// Connects to `host:port`; port 80 where none is named.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(host: &str) -> Result<Self> {
        let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let stream = TcpStream::connect(&address).with_context(|| address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream), host: host.to_owned() })
    }

    /// Sends so many GETs at once; each has an [`answer`](Self::answer).
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn ask(&mut self, path: &str, times: usize) -> Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        Ok(self.stream.get_mut().write_all(request.repeat(times).as_bytes())?)
    }

    /// Sends some bytes, whatever they mean.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn say(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// The status and the body of the next answer.
    ///
    /// # Errors
    /// When it does not come whole.
    pub fn answer(&mut self) -> Result<(u16, Vec<u8>)> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("no status: {line:?}"))?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse()?;
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, body))
    }

    /// Waits until the server ends the connection without another word; false when the time is over first.
    ///
    /// # Errors
    /// When the server says something instead.
    pub fn is_closed_within(&mut self, time: Duration) -> Result<bool> {
        self.stream.get_mut().set_read_timeout(Some(time))?;
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => Ok(true),
            Ok(_) => anyhow::bail!("the server says {:?}", char::from(byte[0])),
            Err(error) => match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Ok(false),
                std::io::ErrorKind::ConnectionReset => Ok(true),
                _ => Err(error.into()),
            },
        }
    }
}
