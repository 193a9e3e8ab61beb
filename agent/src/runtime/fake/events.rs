//! The stream of events of the engine in memory.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::sleep_until;

use super::state::{Logged, State, Subscription};
use crate::runtime::{EngineEvent, RuntimeError};

struct Reader {
    state: Arc<Mutex<State>>,
    subscription: Subscription,
    namespace: Option<String>,
}

/// The events of a subscription, as an agent of `namespace` sees them.
pub(super) fn stream(
    state: Arc<Mutex<State>>,
    subscription: Subscription,
    namespace: Option<String>,
) -> BoxStream<'static, Result<EngineEvent, RuntimeError>> {
    let reader = Reader { state, subscription, namespace };
    stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(event) => Some((Ok(event), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl Reader {
    async fn next(&mut self) -> Result<EngineEvent, RuntimeError> {
        let news = Arc::clone(&self.subscription.news);
        loop {
            let notified = news.notified();
            let mut notified = std::pin::pin!(notified);
            // News between the look and the wait must not be missed.
            notified.as_mut().enable();
            let due = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let now = state.clock();
                state.settle(now);
                if let Some(logged) = state.read(&mut self.subscription)? {
                    if self.is_wanted(&logged) {
                        return Ok(logged.event);
                    }
                    continue;
                }
                state.due()
            };
            match due {
                Some(at) => tokio::select! {
                    () = notified => {}
                    () = sleep_until(at) => {}
                },
                None => notified.await,
            }
        }
    }

    fn is_wanted(&self, logged: &Logged) -> bool {
        self.namespace.is_none() || self.namespace == logged.namespace
    }
}
