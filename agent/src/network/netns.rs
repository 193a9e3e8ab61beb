//! Network namespaces: pinned, entered, let go.
//!
//! A namespace is entered on a thread that is thrown away afterwards: one that returned to a pool
//! would carry other work into the wrong network. What is made inside (a socket, a netlink
//! connection) stays inside for good, wherever it is used from.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

/// A network namespace that is open, and therefore there.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// The network namespace of a process.
    ///
    /// # Errors
    /// When there is no such process, or the agent may not look at it.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/ns/net")).map(Self)
    }

    /// A new one, with nobody in it: it ends with what is returned.
    ///
    /// # Errors
    /// When the agent may not make namespaces: it lacks `CAP_SYS_ADMIN`.
    pub async fn fresh() -> io::Result<Self> {
        let (answer, result) = oneshot::channel();
        thread::Builder::new().name("netns".to_owned()).stack_size(256 * 1024).spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            // Nobody waits any more: what was made is dropped.
            let _ = answer.send(made.and_then(|()| File::open("/proc/thread-self/ns/net")).map(Self));
        })?;
        result.await.unwrap_or_else(|_| Err(io::Error::other("the thread that makes namespaces panicked")))
    }

    /// The one that is pinned there.
    ///
    /// # Errors
    /// When nothing is.
    pub fn pinned(path: &Path) -> io::Result<Self> {
        // An empty file without the mount is what a crash in mid-pinning leaves.
        let file = File::open(path)?;
        let kind = nix::sys::statfs::fstatfs(&file)?.filesystem_type();
        if kind == nix::sys::statfs::NSFS_MAGIC {
            Ok(Self(file))
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// The same namespace, open once more.
    ///
    /// # Errors
    /// When the process has too many files open.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The file, for the kernel's calls that name a namespace.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.0
    }

    /// Runs `work` on a thread of its own inside the namespace.
    ///
    /// # Errors
    /// When the thread cannot enter.
    pub async fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        aside(self.0.try_clone()?, CloneFlags::CLONE_NEWNET, work).await
    }
}

/// Sets the host name in the UTS namespace of a process.
///
/// # Errors
/// What the kernel says.
pub async fn set_hostname(pid: u32, name: String) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/uts"))?;
    // The kernel takes 64 bytes.
    let name: String = name.chars().take(63).collect();
    aside(namespace, CloneFlags::CLONE_NEWUTS, move || Ok(nix::unistd::sethostname(name)?)).await
}

thread_local! {
    /// Whether this thread is thrown away when its work is done, so that it may go wherever it likes.
    static THROWN_AWAY: Cell<bool> = const { Cell::new(false) };
}

/// Runs a future on a thread of its own, which may enter namespaces itself. What talks with the kernel
/// in many small steps is done sooner there: on a busy host every change of thread waits for a
/// processor.
///
/// # Errors
/// When there is no such thread to be had.
pub async fn on_own_thread<T, F>(journey: impl FnOnce() -> F + Send + 'static) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (answer, result) = oneshot::channel();
    thread::Builder::new().name("netns".to_owned()).spawn(move || {
        THROWN_AWAY.set(true);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Nobody waits any more: what was made is dropped.
        let _ = answer.send(runtime.map(|runtime| runtime.block_on(journey())));
    })?;
    result.await.unwrap_or_else(|_| Err(io::Error::other("the thread for namespaces panicked")))
}

async fn aside<T: Send + 'static>(
    namespace: File,
    kind: CloneFlags,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if THROWN_AWAY.get() {
        setns(&namespace, kind)?;
        return work();
    }
    let (answer, result) = oneshot::channel();
    thread::Builder::new().name("netns".to_owned()).stack_size(256 * 1024).spawn(move || {
        let done = setns(&namespace, kind).map_err(io::Error::from).and_then(|()| work());
        // Nobody waits any more: what was made is dropped.
        let _ = answer.send(done);
    })?;
    result.await.unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
}

/// The folder of pins.
#[derive(Debug, Clone)]
pub struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Pins live in `netns` below the agent's data folder.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("netns") }
    }

    /// Where the pin of that name is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file for a pin of that name to be mounted on.
    fn place(&self, name: &str) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = self.path(name);
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
        Ok(path)
    }

    /// Keeps the namespace of a process beyond the process. Pinned already, it is pinned anew.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pin(&self, name: &str, pid: u32) -> io::Result<Namespace> {
        self.unpin(name)?;
        let path = self.place(name)?;
        let namespace = format!("/proc/{pid}/ns/net");
        mount(Some(namespace.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Namespace::pinned(&path)
    }

    /// Makes a namespace that nobody is in, and pins it.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn make(&self, name: &str) -> io::Result<Namespace> {
        self.unpin(name)?;
        let path = self.place(name)?;
        let (answer, result) = oneshot::channel();
        let target = path.clone();
        thread::Builder::new().name("netns".to_owned()).stack_size(256 * 1024).spawn(move || {
            let own = "/proc/thread-self/ns/net";
            let made = unshare(CloneFlags::CLONE_NEWNET)
                .and_then(|()| mount(Some(own), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>));
            // Nobody waits any more: the next attempt unpins it.
            let _ = answer.send(made.map_err(io::Error::from));
        })?;
        result
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the thread that makes namespaces panicked")))?;
        Namespace::pinned(&path)
    }

    /// Lets go of a namespace; one that is not pinned is let go of already.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unpin(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The names of all pins.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}
