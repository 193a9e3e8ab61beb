//! Follows the engine: its events as hints, a look at everything after each gap.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::Shared;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Reads the engine's events for ever. `cursor` is the moment of the last look at everything.
pub(super) async fn follow(shared: Arc<Shared>, mut cursor: i64) {
    let mut pause = FIRST_PAUSE;
    let mut after_gap = false;
    loop {
        match shared.runtime.events(Some(cursor)).await {
            Ok(mut events) => {
                if !shared.engine_healthy.send_replace(true) {
                    tracing::info!("the container engine answers again");
                }
                pause = FIRST_PAUSE;
                if after_gap {
                    // An engine that was restarted has forgotten its events.
                    shared.registry.hint_all();
                }
                while let Some(event) = events.next().await {
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
