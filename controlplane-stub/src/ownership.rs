//! Whose the files of the data directory are: that directory's owner's, also when it is root who writes them.
//! A control plane that serves as a user of its own can then use what its operator made beside it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;

const ROOT: u32 = 0;

/// The directory that a path is in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Options that open a path itself and never what a symbolic link in its place points to: the owner of the
/// directory may have put one there, and root makes and gives away nothing elsewhere.
pub(crate) fn itself() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(OFlag::O_NOFOLLOW.bits());
    options
}

/// Gives what is open to the owner and group of the directory that it is in, if root made it there and
/// the directory is another's. It has to be opened by [`itself`], or made new.
///
/// # Errors
/// What the system says.
pub(crate) fn inherit(open: &File, directory: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let (of, made) = (std::fs::metadata(directory)?, open.metadata()?);
    // A file that also has a name elsewhere is not the directory's alone to have.
    let own = made.is_dir() || (made.is_file() && made.nlink() == 1);
    if !own || made.uid() != ROOT || of.uid() == ROOT {
        return Ok(());
    }
    fchown(open, Some(of.uid()), Some(of.gid()))
}

/// The same for a file that may be there, such as one that root made before.
///
/// # Errors
/// What the system says.
pub(crate) fn inherit_at(path: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    match itself().read(true).open(path) {
        Ok(file) => inherit(&file, parent(path)),
        // A link is its owner's affair.
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory and those above it unless they are there, each for the owner of the one above it alone.
///
/// # Errors
/// What the system says.
pub(crate) fn ensure_directory(directory: &Path) -> io::Result<()> {
    let missing = directory.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
    for path in missing.collect::<Vec<_>>().into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => inherit(&itself().read(true).open(path)?, parent(path))?,
            // Another was faster, or something else has the name: told below.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => break,
            Err(error) => return Err(error),
        }
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::store::embedded::EmbeddedStore;
    use crate::tls::{Authority, DEFAULT_TOKEN_LIFETIME, create_token};

    const SERVICE: (u32, u32) = (12345, 12346);

    /// A directory of the service's; `None` where the test is not root's.
    fn of_the_service() -> Option<tempfile::TempDir> {
        if !geteuid().is_root() {
            eprintln!("only root can give files away: not tested");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(SERVICE.0), Some(SERVICE.1)).unwrap();
        Some(folder)
    }

    fn owner(path: &Path) -> (u32, u32) {
        let found = std::fs::symlink_metadata(path).unwrap();
        (found.uid(), found.gid())
    }

    /// Everything below the folder, with the folder.
    fn all(folder: &Path) -> Vec<PathBuf> {
        let mut found = vec![folder.to_owned()];
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                found.extend(all(&entry.path()));
            } else {
                found.push(entry.path());
            }
        }
        found
    }

    #[test]
    fn what_root_writes_into_the_directory_of_another_is_that_others() {
        let Some(folder) = of_the_service() else { return };
        for data in [folder.path().to_owned(), folder.path().join("not/there/yet")] {
            create_token(&data, DEFAULT_TOKEN_LIFETIME, crate::clock::now()).unwrap();
            Authority::open(&data).unwrap();
            create_token(&data, DEFAULT_TOKEN_LIFETIME, crate::clock::now()).unwrap();
            drop(EmbeddedStore::open(&data.join("store.redb")).unwrap());
        }
        let found = all(folder.path());
        for name in ["ca.key", "ca.pem", "identity.lock", "join-tokens.json", "store.redb"] {
            assert_eq!(found.iter().filter(|path| path.ends_with(name)).count(), 2, "{name}: {found:?}");
        }
        for path in found {
            assert_eq!(owner(&path), SERVICE, "{}", path.display());
        }
    }

    #[test]
    fn what_an_earlier_version_left_as_roots_is_given_away() {
        let Some(folder) = of_the_service() else { return };
        let data = folder.path();
        create_token(data, DEFAULT_TOKEN_LIFETIME, crate::clock::now()).unwrap();
        Authority::open(data).unwrap();
        let names = ["ca.key", "ca.pem", "identity.lock", "join-tokens.json"];
        for name in names {
            chown(data.join(name), Some(0), Some(0)).unwrap();
        }
        Authority::open(data).unwrap();
        create_token(data, DEFAULT_TOKEN_LIFETIME, crate::clock::now()).unwrap();
        for name in names {
            assert_eq!(owner(&data.join(name)), SERVICE, "{name}");
        }
    }

    #[test]
    fn nothing_outside_the_directory_is_given_away() {
        let Some(folder) = of_the_service() else { return };
        let elsewhere = tempfile::tempdir().unwrap();
        let (linked, named) = (elsewhere.path().join("linked"), elsewhere.path().join("named"));
        for path in [&linked, &named] {
            std::fs::write(path, "root's").unwrap();
        }
        symlink(&linked, folder.path().join("identity.lock")).unwrap();
        assert!(create_token(folder.path(), DEFAULT_TOKEN_LIFETIME, crate::clock::now()).is_err());
        inherit_at(&folder.path().join("identity.lock")).unwrap();
        let second = folder.path().join("second");
        if std::fs::hard_link(&named, &second).is_ok() {
            inherit_at(&second).unwrap();
        }
        for path in [&linked, &named] {
            assert_eq!(owner(path), (0, 0), "{}", path.display());
            assert_eq!(std::fs::read_to_string(path).unwrap(), "root's");
        }
    }
}
