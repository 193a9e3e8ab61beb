//! What is to happen at one point of a real agent: a test says so in a file, the agent finds it there when it
//! comes by.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use berth_agent::cgroup::Cgroups;
use berth_agent::daemon::Seams;
use berth_agent::effects::{Effects, Sentry, Side};
use berth_agent::network::TaskNetwork;
use berth_agent::runtime::Runtime;
use berth_agent::runtime::holder::Holders;
use berth_agent::store::Store;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, raise};

use super::points::point;

/// The variable with the folder of the two files.
pub const FOLDER: &str = "BERTH_FAULTS_FOLDER";
/// What is to happen, and where: `runtime.create.after=die`.
const ARMED: &str = "armed";
/// What has happened.
const STRUCK: &str = "struck";
/// The points that the agent has come by, one in a line.
const PASSED: &str = "passed";

/// What befalls the agent, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL.
    Die,
    /// The call never returns.
    Hang,
    /// The call fails: before it has an effect, or its answer is lost after.
    Fail,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Die, Self::Hang, Self::Fail];

    /// As the file has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Die => "die",
            Self::Hang => "hang",
            Self::Fail => "fail",
        }
    }
}

/// Whether a test has no use for that: a store that says that it has failed has done nothing.
#[must_use]
pub fn is_senseless(point: &str, fault: Fault) -> bool {
    fault == Fault::Fail && (point == "store.commit.after" || point.starts_with("store.load"))
}

/// Has faults strike an agent in that folder, from the test's side.
#[derive(Debug, Clone)]
pub struct Trigger(PathBuf);

impl Trigger {
    /// In that folder, which is there.
    #[must_use]
    pub const fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The next passage of that point is struck.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn arm(&self, point: &str, fault: Fault) -> Result<()> {
        self.disarm()?;
        let text = self.0.join("text");
        fs::write(&text, format!("{point}={}", fault.as_str()))?;
        fs::rename(&text, self.0.join(ARMED)).context("arming a fault")
    }

    /// Nothing is struck any more.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn disarm(&self) -> Result<()> {
        for file in [ARMED, STRUCK] {
            match fs::remove_file(self.0.join(file)) {
                Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(why.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether it has struck.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        self.0.join(STRUCK).exists()
    }

    /// The points that were passed since the last time, in order, each as often as it was passed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn passed(&self) -> Result<Vec<String>> {
        let taken = self.0.join("taken");
        match fs::rename(self.0.join(PASSED), &taken) {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            moved => moved?,
        }
        Ok(fs::read_to_string(&taken)?.lines().map(str::to_owned).collect())
    }
}

/// The same from the agent's side.
pub struct Armed(Effects);

impl Armed {
    /// By the files in that folder.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self(Effects::watched_by(Arc::new(Files(folder))))
    }
}

struct Files(PathBuf);

impl Files {
    /// What strikes here, now.
    fn blow(&self, point: &str) -> Option<Fault> {
        let armed = self.0.join(ARMED);
        let text = fs::read_to_string(&armed).ok()?;
        let (at, what) = text.split_once('=')?;
        let fault = Fault::ALL.into_iter().find(|fault| at == point && fault.as_str() == what)?;
        // Of several who come by at once, one is struck.
        fs::rename(&armed, self.0.join(STRUCK)).ok().map(|()| fault)
    }
}

fn log(folder: &Path, point: &str) {
    let file = OpenOptions::new().create(true).append(true).open(folder.join(PASSED));
    // The test looks for what it misses.
    drop(file.and_then(|mut file| file.write_all(format!("{point}\n").as_bytes())));
}

impl Sentry for Files {
    fn pass<'a>(&'a self, effect: &'static str, side: Side) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let point = point(effect, side);
            log(&self.0, &point);
            match self.blow(&point) {
                None => Ok(()),
                Some(Fault::Die) => {
                    let _ = raise(Signal::SIGKILL);
                    std::future::pending().await
                }
                Some(Fault::Hang) => std::future::pending().await,
                Some(Fault::Fail) => Err(format!("a fault of the test at {point}")),
            }
        }
        .boxed()
    }
}

impl Seams for Armed {
    fn effects(&self) -> Effects {
        self.0.clone()
    }

    fn runtime(&self, port: Arc<dyn Runtime>) -> Arc<dyn Runtime> {
        super::runtime(port, self.0.clone())
    }

    fn holders(&self, port: Arc<dyn Holders>) -> Arc<dyn Holders> {
        super::holders(port, self.0.clone())
    }

    fn network(&self, port: Arc<dyn TaskNetwork>) -> Arc<dyn TaskNetwork> {
        super::network(port, self.0.clone())
    }

    fn cgroups(&self, port: Arc<dyn Cgroups>) -> Arc<dyn Cgroups> {
        super::cgroups(port, self.0.clone())
    }

    fn store(&self, port: Arc<dyn Store>) -> Arc<dyn Store> {
        super::store(port, self.0.clone())
    }
}
