//! The image of holders: the pause program, which the agent carries with it, as an archive that the
//! engine loads. Nothing is pulled.

use std::io;

use serde_json::json;
use sha2::{Digest, Sha256};

/// The program: see `pause/pause.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
/// Where it lies in the image.
const PATH: &str = "pause";

/// The name of the image. Another program has another name, so that an agent never takes the image
/// of another version for its own.
#[must_use]
pub fn reference() -> String {
    let digest = hex(PROGRAM);
    format!("berth-pause:{}", &digest[..12])
}

/// The image as `docker save` writes one.
#[must_use]
pub fn archive() -> Vec<u8> {
    // Writing into memory does not fail.
    build().unwrap_or_default()
}

fn build() -> io::Result<Vec<u8>> {
    let layer = tarball(&[(PATH, PROGRAM, 0o755)])?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": { "Entrypoint": [format!("/{PATH}")], "StopSignal": "SIGTERM" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))] },
    })
    .to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest =
        json!([{ "Config": config_name, "RepoTags": [reference()], "Layers": ["layer.tar"] }]).to_string();
    tarball(&[
        (&config_name, config.as_bytes(), 0o644),
        ("layer.tar", &layer, 0o644),
        ("manifest.json", manifest.as_bytes(), 0o644),
    ])
}

fn tarball(files: &[(&str, &[u8], u32)]) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        builder.append_data(&mut header, path, *content)?;
    }
    builder.into_inner()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_small_and_the_archive_is_always_the_same() {
        assert!(PROGRAM.starts_with(b"\x7fELF"));
        assert!(PROGRAM.len() < 16 * 1024, "{} bytes", PROGRAM.len());
        let archive = archive();
        assert!(!archive.is_empty());
        assert_eq!(archive, super::archive());
    }
}
