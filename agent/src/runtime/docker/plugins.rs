//! Volume drivers that the engine has not used yet. It finds plug-ins by files when it first needs them, and
//! until then does not speak of them (Docker's documentation, "Docker Plugin API", "Plugin discovery").

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::client::Link;
use super::transport::{Address, escape};

/// Where plug-ins have their sockets.
const SOCKETS: &str = "/run/docker/plugins";
/// Where it is written down how plug-ins are reached that have theirs elsewhere.
const SPECIFICATIONS: [&str; 2] = ["/etc/docker/plugins", "/usr/lib/docker/plugins"];
/// The tag that a name may leave out.
const LATEST: &str = ":latest";

/// A plug-in that the engine runs itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Managed {
    name: String,
}

/// The names of all plug-ins that may be volume drivers; what the others are, only the engine finds out, by
/// asking them.
pub(super) async fn volume_drivers(link: &Link, address: &Address) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let filters = r#"{"capability":["volumedriver"],"enabled":["true"]}"#;
    match link.get::<Vec<Managed>>(&format!("/plugins?filters={}", escape(filters, ""))).await {
        Ok(managed) => {
            for Managed { name } in managed {
                found.extend(name.strip_suffix(LATEST).map(ToOwned::to_owned));
                found.insert(name);
            }
        }
        // Not every engine runs plug-ins.
        Err(error) => tracing::debug!(?error, "the engine's plug-ins are not known"),
    }
    // Another host's files are out of sight.
    if matches!(address, Address::Unix(_)) {
        let scanned = tokio::task::spawn_blocking(|| {
            let mut names = sockets(Path::new(SOCKETS));
            names.extend(SPECIFICATIONS.iter().flat_map(|folder| specifications(Path::new(folder))));
            names
        });
        found.extend(scanned.await.unwrap_or_default());
    }
    found
}

fn entries(folder: &Path) -> impl Iterator<Item = DirEntry> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}

fn stem(path: &Path) -> Option<String> {
    Some(path.file_stem()?.to_str()?.to_owned())
}

/// `NAME.sock`, or `NAME/NAME.sock`.
fn sockets(folder: &Path) -> BTreeSet<String> {
    let is_socket = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let place = |entry: DirEntry| {
        let name = entry.file_name();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder { entry.path().join(&name).with_added_extension("sock") } else { entry.path() }
    };
    entries(folder).map(place).filter(is_socket).filter_map(|path| stem(&path)).collect()
}

/// `NAME.spec` or `NAME.json`, or `NAME/NAME.spec` or `NAME/NAME.json`.
fn specifications(folder: &Path) -> BTreeSet<String> {
    let is_one = |path: &Path| path.extension().is_some_and(|kind| kind == "spec" || kind == "json");
    let mut found = BTreeSet::new();
    for entry in entries(folder) {
        let path = entry.path();
        if path.is_dir() {
            let inside = entries(&path).map(|entry| entry.path()).filter(|path| is_one(path));
            found.extend(
                inside.filter_map(|path| stem(&path)).filter(|name| entry.file_name() == name.as_str()),
            );
        } else if is_one(&path) {
            found.extend(stem(&path));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn plug_ins_are_found_where_the_engine_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir(at("nested")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        let _open = ["plain.sock", "nested/nested.sock", "nested/other.sock"]
            .map(|path| UnixListener::bind(at(path)).unwrap());
        fs::write(at("no-socket.sock"), "").unwrap();
        assert_eq!(sockets(dir.path()), ["nested", "plain"].map(str::to_owned).into());
        for path in ["far.spec", "nested/nested.json", "nested/stray.json", "notes.txt"] {
            fs::write(at(path), "tcp://192.0.2.1:80").unwrap();
        }
        assert_eq!(specifications(dir.path()), ["far", "nested"].map(str::to_owned).into());
        assert_eq!(sockets(&at("nowhere")), BTreeSet::new());
    }
}
