//! HTTP to the outside: one way to make a client, and to say what went wrong.

use std::error::Error;
use std::time::Duration;

/// Longest that a server may take to be reached.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest silence of a server that was reached.
const READ: Duration = Duration::from_secs(20);

/// A client that goes by the host's proxies and certificates, and gives up on a server that is silent.
#[must_use]
pub fn client() -> reqwest::Client {
    // Whoever comes first installs it; it is the same for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().connect_timeout(CONNECT).read_timeout(READ);
    builder.user_agent(concat!("berth-agent/", env!("CARGO_PKG_VERSION"))).build().unwrap_or_default()
}

/// An error with its causes, down to the one that helps.
#[must_use]
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
