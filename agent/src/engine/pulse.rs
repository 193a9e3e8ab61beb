//! Whether the engine still turns: every actor is asked, and has to come by. What waits for a container, for
//! an image or for a disk that is full comes by; what hangs does not.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use tokio::sync::Notify;

use super::Engine;

/// What an actor shows of its life.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    turns: AtomicU64,
    ask: Notify,
    turned: Notify,
}

impl Pulse {
    /// The actor has come by.
    pub(super) fn beat(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.turned.notify_waiters();
    }

    /// Somebody wants the actor to come by. Dropping the future loses nothing.
    pub(super) async fn asked(&self) {
        self.ask.notified().await;
    }

    /// Waits until the actor comes by.
    async fn of(&self) {
        let turned = self.turned.notified();
        tokio::pin!(turned);
        turned.as_mut().enable();
        self.ask.notify_one();
        turned.await;
    }
}

impl Engine {
    /// Returns once all that turns in the engine has turned, and never while something hangs.
    pub async fn pulse(&self) {
        // Its locks are taken for moments alone.
        drop(self.usage().borrow().clone());
        let beats = self.shared.registry.handles().into_iter().map(|handle| async move {
            tokio::select! {
                () = handle.pulse.of() => {}
                // An actor that has ended has nothing to show.
                () = handle.mailbox.closed() => {}
            }
        });
        join_all(beats).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_actor_that_comes_by_is_alive_and_one_that_hangs_is_not() {
        let pulse = Arc::new(Pulse::default());
        assert!(timeout(Duration::from_secs(5), pulse.of()).await.is_err(), "nobody comes by");
        let actor = async {
            pulse.asked().await;
            pulse.beat();
        };
        let (asked, ()) = tokio::join!(timeout(Duration::from_secs(5), pulse.of()), actor);
        assert!(asked.is_ok());
        assert_eq!(pulse.turns.load(Ordering::Relaxed), 1);
    }
}
