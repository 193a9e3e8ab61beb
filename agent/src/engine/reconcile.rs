//! Follows the engine: its events as hints, a look at everything after each gap, and one now and then: an engine
//! drops events for readers that it finds slow, and tells nobody.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use crate::runtime::RuntimeError;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest that the engine may take until it begins to tell.
const BEGIN: Duration = Duration::from_secs(30);
/// Between two looks at everything that runs.
const LOOK: Duration = Duration::from_secs(300);

fn silent() -> RuntimeError {
    RuntimeError::Unavailable(format!("it says nothing of events within {} s", BEGIN.as_secs()))
}

/// Reads the engine's events for ever. `cursor` is the moment of the last look at everything.
pub(super) async fn follow(shared: Arc<Shared>, mut cursor: i64) {
    let mut pause = FIRST_PAUSE;
    let mut after_gap = false;
    loop {
        let begun = timeout(BEGIN, shared.runtime.events(Some(cursor))).await;
        match begun.unwrap_or_else(|_| Err(silent())) {
            Ok(mut events) => {
                if !shared.engine_healthy.send_replace(true) {
                    tracing::info!("the container engine answers again");
                }
                pause = FIRST_PAUSE;
                if after_gap {
                    // An engine that was restarted has forgotten its events.
                    shared.registry.hint_all();
                }
                let mut look = Instant::now() + LOOK;
                loop {
                    let event = match timeout_at(look, events.next()).await {
                        Ok(Some(event)) => event,
                        Ok(None) => break,
                        Err(_) => {
                            look = Instant::now() + LOOK;
                            shared.registry.hint_all();
                            continue;
                        }
                    };
                    match event {
                        Ok(event) => {
                            cursor = cursor.max(event.time_ns);
                            shared.registry.hint(event);
                        }
                        Err(error) => {
                            tracing::debug!(%error, "the engine's events ended");
                            break;
                        }
                    }
                }
            }
            Err(error) => {
                if shared.engine_healthy.send_replace(false) {
                    tracing::warn!(%error, "the container engine is away; running containers are not touched");
                }
            }
        }
        after_gap = true;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
