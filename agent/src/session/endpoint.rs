//! Where the control plane is, and how it may be spoken to: plaintext on loopback and unix sockets
//! alone, TLS everywhere else.

use std::net::IpAddr;
use std::path::PathBuf;

/// An address of the control plane that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Plaintext on loopback.
    Loopback {
        /// `address:port`.
        authority: String,
    },
    /// Plaintext on a unix socket.
    Unix(PathBuf),
    /// TLS.
    Tls {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// Why an address will not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// It is no address.
    #[error("ECS_BACKEND_HOST={0:?}: expected https://host:port, http://127.0.0.1:port or unix:/path")]
    Malformed(String),
    /// It would send everything in the clear.
    #[error("ECS_BACKEND_HOST={0:?}: plaintext is only spoken on loopback and unix sockets; use https://")]
    Plaintext(String),
    /// There is none.
    #[error("ECS_BACKEND_HOST is not set: say where the control plane is, such as https://cp.example:8046")]
    Missing,
}

impl Endpoint {
    /// Reads an address. Without a scheme, loopback is plaintext and everything else TLS.
    ///
    /// # Errors
    /// [`InvalidEndpoint`].
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        let malformed = || InvalidEndpoint::Malformed(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(malformed())
            };
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let authority = rest.trim_end_matches('/');
        let (host, port) = authority.rsplit_once(':').ok_or_else(malformed)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port: u16 = port.parse().ok().filter(|p| *p > 0).ok_or_else(malformed)?;
        if host.is_empty() || host.contains('/') {
            return Err(malformed());
        }
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match scheme {
            Some("https") => Ok(Self::Tls { host: host.to_owned(), port }),
            Some("http") | None if loopback => Ok(Self::Loopback { authority: authority.to_owned() }),
            None => Ok(Self::Tls { host: host.to_owned(), port }),
            Some("http") => Err(InvalidEndpoint::Plaintext(text.to_owned())),
            Some(_) => Err(malformed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_is_for_loopback_and_unix_sockets_alone() {
        let loopback = |a: &str| Endpoint::Loopback { authority: a.to_owned() };
        let tls = |h: &str| Endpoint::Tls { host: h.to_owned(), port: 8046 };
        assert_eq!(Endpoint::parse("http://127.0.0.1:8046"), Ok(loopback("127.0.0.1:8046")));
        assert_eq!(Endpoint::parse("localhost:8046"), Ok(loopback("localhost:8046")));
        assert_eq!(Endpoint::parse("http://[::1]:8046/"), Ok(loopback("[::1]:8046")));
        assert_eq!(Endpoint::parse("unix:/run/cp.sock"), Ok(Endpoint::Unix("/run/cp.sock".into())));
        assert_eq!(Endpoint::parse("https://127.0.0.1:8046"), Ok(tls("127.0.0.1")));
        assert_eq!(Endpoint::parse("cp.example:8046"), Ok(tls("cp.example")));
        assert!(matches!(Endpoint::parse("http://10.0.0.1:8046"), Err(InvalidEndpoint::Plaintext(_))));
        assert!(matches!(Endpoint::parse("http://0.0.0.0:8046"), Err(InvalidEndpoint::Plaintext(_))));
        for bad in
            ["", "cp.example", "https://:1", "ftp://127.0.0.1:1", "http://127.0.0.1:0", "unix:relative"]
        {
            assert!(matches!(Endpoint::parse(bad), Err(InvalidEndpoint::Malformed(_))), "{bad}");
        }
    }
}
