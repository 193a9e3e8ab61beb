//! Credentials on disk: sealed with a key that is in memory alone (a file of `/run`), so that neither a
//! copy of the disk nor a backup of the data folder gives them away. After a reboot the key is gone, and
//! so are the tasks.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use berth_core::ids::TaskArn;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use super::RoleCredentials;

const KEY_BYTES: usize = 32;
const FILE: &str = "credentials.sealed";

/// What an agent with that data folder keeps below `run`: agents that share a host have their own.
#[must_use]
pub fn run_file(data_dir: &Path, run: &Path, kind: &str) -> PathBuf {
    let hash = digest(&SHA256, data_dir.as_os_str().as_encoded_bytes());
    let name: String = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    run.join(format!("{name}.{kind}"))
}

/// The file, and what opens it.
pub struct Sealed {
    path: PathBuf,
    key: LessSafeKey,
}

impl Sealed {
    /// The file of an agent with that data folder; its key is below `run`, and made where it is not there.
    ///
    /// # Errors
    /// When there can be no key.
    pub fn new(data_dir: &Path, run: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(run)?;
        let bytes = key(&run_file(data_dir, run, "key"))?;
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| io::Error::other("the key is no key"))?;
        Ok(Self { path: data_dir.join(FILE), key: LessSafeKey::new(key) })
    }

    /// What was sealed; nothing when that was under another key, or never.
    #[must_use]
    pub fn open(&self) -> Vec<(TaskArn, RoleCredentials)> {
        let Ok(mut sealed) = fs::read(&self.path) else { return Vec::new() };
        let Some((nonce, text)) = sealed.split_at_mut_checked(NONCE_LEN) else { return Vec::new() };
        let Ok(nonce) = Nonce::try_assume_unique_for_key(nonce) else { return Vec::new() };
        let opened = self.key.open_in_place(nonce, Aad::empty(), text);
        opened.ok().and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
    }

    /// Seals all of them in place of what was sealed before.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, all: &[(TaskArn, RoleCredentials)]) -> io::Result<()> {
        let mut text = serde_json::to_vec(all)?;
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text)
            .map_err(|_| io::Error::other("sealing failed"))?;
        let next = self.path.with_extension("next");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
        file.write_all(&nonce)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&next, &self.path)
    }
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    SystemRandom::new().fill(bytes).map_err(|_| io::Error::other("the system has no random numbers"))
}

/// The key in that file, which is made where it is not there.
fn key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    match fs::read(path).map(<[u8; KEY_BYTES]>::try_from) {
        Ok(Ok(key)) => Ok(key),
        // Whoever made it did not get to its end; nothing was sealed with it.
        Ok(Err(_)) => make_key(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(path),
        Err(error) => Err(error),
    }
}

fn make_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    random(&mut key)?;
    let next = path.with_extension("next");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
    file.write_all(&key)?;
    fs::rename(&next, path)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use berth_core::units::Timestamp;

    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (data, run) = (folder.path().join("data"), folder.path().join("run"));
        fs::create_dir(&data).unwrap();
        let all = vec![(
            TaskArn::new("arn:aws:ecs:r:1:task/c/0123456789abcdef0123456789abcdef").unwrap(),
            RoleCredentials {
                role_arn: "r".to_owned(),
                access_key_id: "AKIA".to_owned(),
                secret_access_key: "hush".to_owned(),
                session_token: "t".to_owned(),
                expires_at: Timestamp(1),
            },
        )];
        let sealed = Sealed::new(&data, &run).unwrap();
        assert_eq!(sealed.open(), Vec::new());
        sealed.write(&all).unwrap();
        assert_eq!(Sealed::new(&data, &run).unwrap().open(), all);
        let written = fs::read(data.join(FILE)).unwrap();
        assert!(!written.windows(4).any(|w| w == b"hush" || w == b"AKIA"));
        // One who made the key did not get to its end.
        fs::write(run_file(&data, &run, "key"), b"half").unwrap();
        let sealed = Sealed::new(&data, &run).unwrap();
        assert_eq!(sealed.open(), Vec::new());
        sealed.write(&all).unwrap();
        assert_eq!(Sealed::new(&data, &run).unwrap().open(), all);
        // After a reboot.
        fs::remove_dir_all(&run).unwrap();
        assert_eq!(Sealed::new(&data, &run).unwrap().open(), Vec::new());
    }
}
