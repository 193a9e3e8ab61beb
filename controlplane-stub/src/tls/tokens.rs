//! Join tokens: what an operator gives to hosts so that they may enrol. Only hashes are kept.

use std::path::Path;

use berth_core::units::{Millis, Timestamp};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::TlsError;
use super::files;
use crate::hex;

/// How long a token holds unless asked otherwise.
pub const DEFAULT_TOKEN_LIFETIME: Millis = Millis::from_secs(24 * 60 * 60);

const FILE: &str = "join-tokens.json";

#[derive(Serialize, Deserialize)]
struct Entry {
    sha256: String,
    expires_at: Timestamp,
}

fn entries(directory: &Path) -> Result<Vec<Entry>, TlsError> {
    let path = directory.join(FILE);
    match files::read(&path)? {
        Some(text) => serde_json::from_str(&text).map_err(|error| files::failed(&path, &error)),
        None => Ok(Vec::new()),
    }
}

/// Makes a token that any number of hosts may use until it expires. Blocks.
///
/// # Errors
/// [`TlsError`] when the data directory can't be written.
pub fn create_token(directory: &Path, lifetime: Millis, now: Timestamp) -> Result<String, TlsError> {
    let mut secret = [0_u8; 32];
    SystemRandom::new()
        .fill(&mut secret)
        .map_err(|_| TlsError::Certificate("the system has no randomness".to_owned()))?;
    let token = format!("berth-{}", hex::encode(&secret));
    let _lock = files::lock(directory)?;
    let mut entries = entries(directory)?;
    entries.retain(|entry| entry.expires_at > now);
    entries.push(Entry {
        sha256: hex::encode(digest(&SHA256, token.as_bytes()).as_ref()),
        expires_at: now.after(lifetime),
    });
    let path = directory.join(FILE);
    let text = serde_json::to_vec_pretty(&entries).map_err(|error| files::failed(&path, &error))?;
    files::write_private(&path, &text)?;
    Ok(token)
}

/// Whether a token was given and has not expired. Blocks.
pub(super) fn is_known(directory: &Path, token: &str, now: Timestamp) -> Result<bool, TlsError> {
    let hash = hex::encode(digest(&SHA256, token.trim().as_bytes()).as_ref());
    Ok(entries(directory)?.iter().any(|entry| entry.sha256 == hash && entry.expires_at > now))
}
