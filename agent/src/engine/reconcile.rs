//! Follows the engine: its events as hints, a look at everything after each gap, and one now and then: an engine
//! drops events for readers that it finds slow, and tells nobody.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use crate::clock;
use crate::runtime::{EngineEvent, EngineInfo, RuntimeError};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest that the engine may take until it begins to tell.
const BEGIN: Duration = Duration::from_secs(30);
/// Between two looks at everything that runs.
const LOOK: Duration = Duration::from_secs(300);
/// An engine that takes longer than this to answer after a gap is away.
const ANSWER: Duration = Duration::from_secs(1);
/// Longest wait for what the engine says of itself. Without it, all goes on.
const ABOUT: Duration = Duration::from_secs(3);

fn silent() -> RuntimeError {
    RuntimeError::Unavailable(format!("it says nothing of events within {} s", BEGIN.as_secs()))
}

/// Reads the engine's events for ever. `cursor` is the moment of the last look at everything.
pub(super) async fn follow(shared: Arc<Shared>, cursor: i64) {
    let first = async {
        if let Some(about) = about(&shared).await {
            shared.outages.engine_is(about);
        }
    };
    tokio::join!(first, read(&shared, cursor));
}

async fn read(shared: &Shared, mut cursor: i64) {
    let mut pause = FIRST_PAUSE;
    let mut after_gap = false;
    // The moment of the last event that was told.
    let mut heard = None;
    loop {
        match open(shared, cursor, after_gap).await {
            Ok(mut events) => {
                if !shared.engine_healthy.send_replace(true) {
                    tracing::info!("the container engine answers again");
                }
                pause = FIRST_PAUSE;
                if after_gap {
                    let back_at = clock::now();
                    let (about, again) = tokio::join!(about(shared), is_another(shared, heard));
                    compare(shared.outages.ended(back_at, again, about.clone()).as_ref(), about.as_ref());
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
                            // Not the latest: on a clock that was put back, it is the last that counts.
                            (cursor, heard) = (event.time_ns, Some(event.time_ns));
                            shared.registry.hint(event);
                        }
                        Err(error) => {
                            tracing::debug!(%error, "the engine's events ended");
                            break;
                        }
                    }
                }
                shared.outages.begun(clock::now());
            }
            Err(error) => away(shared, &error),
        }
        after_gap = true;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

type Events = BoxStream<'static, Result<EngineEvent, RuntimeError>>;

/// Opens the engine's events. After a gap, one that does not answer soon is away meanwhile.
async fn open(shared: &Shared, cursor: i64, after_gap: bool) -> Result<Events, RuntimeError> {
    let mut opening = shared.runtime.events(Some(cursor));
    if after_gap {
        if let Ok(opened) = timeout(ANSWER, &mut opening).await {
            return opened;
        }
        away(shared, &"it does not answer");
    }
    timeout(BEGIN, opening).await.unwrap_or_else(|_| Err(silent()))
}

fn away(shared: &Shared, error: &dyn std::fmt::Display) {
    if shared.engine_healthy.send_replace(false) {
        tracing::warn!(%error, "the container engine is away; running containers are not touched");
    }
}

async fn about(shared: &Shared) -> Option<EngineInfo> {
    match timeout(ABOUT, shared.runtime.info()).await {
        Ok(Ok(info)) => Some(info),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the engine says nothing of itself");
            None
        }
        Err(_) => None,
    }
}

/// Whether the engine is not the one any more that told of the event of that moment.
async fn is_another(shared: &Shared, heard: Option<i64>) -> bool {
    let Some(heard) = heard else { return true };
    !matches!(timeout(ABOUT, shared.runtime.remembers(heard)).await, Ok(Ok(true)))
}

/// Says what is another engine now. What the agent does rests on how it makes cgroups.
fn compare(before: Option<&EngineInfo>, now: Option<&EngineInfo>) {
    let (Some(before), Some(now)) = (before, now) else { return };
    if before.version != now.version || before.api != now.api {
        let api = |engine: &EngineInfo| format!("{}.{}", engine.api.0, engine.api.1);
        tracing::info!(
            before = before.version,
            before_api = api(before),
            now = now.version,
            now_api = api(now),
            "the container engine is another version"
        );
    }
    let cgroups = |engine: &EngineInfo| (engine.cgroup_version, engine.cgroup_systemd);
    if cgroups(before) != cgroups(now) {
        let name = |engine: &EngineInfo| {
            format!(
                "v{}, {}",
                engine.cgroup_version,
                if engine.cgroup_systemd { "systemd" } else { "cgroupfs" }
            )
        };
        tracing::error!(
            before = name(before),
            now = name(now),
            "the container engine makes cgroups in another way than before: restart the agent"
        );
    }
}
