//! The lock that holds a shutdown up, and the word that one has begun: logind's "delay" inhibitor
//! (systemd.io, "Inhibitor Locks"). logind waits for the lock for as long as its `InhibitDelayMaxSec` says,
//! and not longer.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use zbus::proxy::{CacheProperties, SignalStream};
use zbus::zvariant::OwnedFd;
use zbus::{Connection, Proxy};

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";

/// The pause before logind is looked for again.
const AGAIN: Duration = Duration::from_secs(5);
/// What logind gives where it does not say: its own default.
const USUAL_DELAY: Duration = Duration::from_secs(5);

/// What is known of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shutdown {
    /// There is none.
    #[default]
    None,
    /// One has begun, and logind waits so long for those who hold it up.
    Begun {
        /// How long.
        delay: Duration,
    },
}

/// Follows shutdowns.
#[derive(Debug)]
pub struct Logind {
    shutdown: watch::Sender<Shutdown>,
    /// Whether the lock may be let go: what was to be done before the shutdown is done.
    released: watch::Sender<bool>,
}

impl Default for Logind {
    fn default() -> Self {
        Self { shutdown: watch::Sender::default(), released: watch::Sender::new(false) }
    }
}

impl Logind {
    /// What is known of a shutdown.
    #[must_use]
    pub fn shutdown(&self) -> watch::Receiver<Shutdown> {
        self.shutdown.subscribe()
    }

    /// Lets a shutdown that has begun go on.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Holds the lock and follows logind until it is dropped.
    pub async fn run(&self) {
        let mut told = false;
        loop {
            let Err(error) = self.follow(&mut told).await;
            if !told {
                told = true;
                tracing::info!(
                    %error,
                    "no logind holds a shutdown up for this agent; tasks are stopped in order where systemd \
                     says that the host goes down"
                );
            } else {
                tracing::debug!(%error, "logind is still away");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn follow(&self, told: &mut bool) -> zbus::Result<std::convert::Infallible> {
        let connection = Connection::system().await?;
        let manager = zbus::proxy::Builder::<Proxy<'_>>::new(&connection)
            .destination(SERVICE)?
            .path(PATH)?
            .interface(MANAGER)?
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        // First the ear, then the lock: no shutdown falls between them.
        let mut words: SignalStream<'_> = manager.receive_signal("PrepareForShutdown").await?;
        let mut owners = manager.receive_owner_changed().await?;
        let mut lock = Some(self.lock(&manager).await?);
        *told = false;
        tracing::info!("logind waits for this agent when the host shuts down");
        let mut released = self.released.subscribe();
        loop {
            tokio::select! {
                word = words.next() => {
                    let begins: bool = word.ok_or_else(gone)?.body().deserialize()?;
                    if begins {
                        let delay = delay(&manager).await;
                        self.released.send_replace(false);
                        released.mark_unchanged();
                        self.shutdown.send_replace(Shutdown::Begun { delay });
                    } else {
                        self.shutdown.send_replace(Shutdown::None);
                        // logind lets go of locks with the shutdown that they held up.
                        lock = Some(self.lock(&manager).await?);
                    }
                }
                Ok(()) = released.changed() => {
                    if *released.borrow_and_update() {
                        drop(lock.take());
                    }
                }
                // It was restarted, or has gone: all anew.
                _ = owners.next() => return Err(gone()),
            }
        }
    }

    async fn lock(&self, manager: &Proxy<'_>) -> zbus::Result<OwnedFd> {
        manager
            .call("Inhibit", &("shutdown", "Berth", "stops the tasks of this host in order", "delay"))
            .await
    }
}

fn gone() -> zbus::Error {
    zbus::Error::Failure("logind has gone".to_owned())
}

/// How long logind waits.
async fn delay(manager: &Proxy<'_>) -> Duration {
    let asked: zbus::Result<u64> = manager.get_property("InhibitDelayMaxUSec").await;
    asked.map_or(USUAL_DELAY, Duration::from_micros)
}
