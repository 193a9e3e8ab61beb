//! Removes images that nobody needs: those that are old, a few at a time, and more of them when the disk
//! fills. Never one that a task of this host has, and never one that this agent did not pull, unless the
//! operator asks for that.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_core::units::Millis;
use nix::sys::statvfs::statvfs;

use super::Shared;
use crate::clock;

/// How often the disk is looked at, beside after each pull.
const LOOK: Duration = Duration::from_secs(60);
/// What the agent itself needs.
const OWN: &str = "berth-pause:";
/// Longest that one removal may take.
const REMOVAL: Duration = Duration::from_secs(60);

/// The operator's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanUp {
    /// How often old images are removed.
    pub interval: Millis,
    /// How long ago an image must have been pulled to be old.
    pub age: Millis,
    /// How many are removed at a time.
    pub at_once: usize,
    /// Where the engine keeps images; nowhere that can be looked at, where there is none.
    pub disk: Option<PathBuf>,
    /// The share of the disk in percent above which images are removed whatever their age, and the share
    /// below which that ends.
    pub pressure: (u8, u8),
    /// Whether images that this agent did not pull are removed, too, and after how long, and which not.
    pub untracked: Option<(Millis, Vec<String>)>,
}

/// Cleans up for as long as the agent runs.
pub(super) async fn run(shared: Arc<Shared>, rules: CleanUp) {
    let mut cycle = tokio::time::interval(rules.interval.as_duration());
    let mut look = tokio::time::interval(LOOK);
    // The first tick of a cycle is at once: an agent that has just started has no opinion yet.
    cycle.tick().await;
    loop {
        tokio::select! {
            _ = cycle.tick() => old(&shared, &rules).await,
            _ = look.tick() => pressed(&shared, &rules).await,
            () = shared.images.pulled() => pressed(&shared, &rules).await,
        }
        let images = Arc::clone(&shared);
        let saved = tokio::task::spawn_blocking(move || images.images.records().save()).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "which images were pulled here is not written down");
        }
    }
}

/// The images that tasks of this host have, also of those that have stopped and are kept.
fn in_use(shared: &Shared) -> HashSet<String> {
    let tasks = shared.registry.views();
    tasks.iter().flat_map(|task| task.spec().containers.iter().map(|c| c.image.clone())).collect()
}

async fn old(shared: &Shared, rules: &CleanUp) {
    let used = in_use(shared);
    let unused = shared.images.records().unused(&|image| used.contains(image), rules.age, clock::now());
    let mut left = rules.at_once;
    for image in unused {
        if left == 0 {
            return;
        }
        if remove(shared, &image).await {
            left -= 1;
        }
    }
    if let Some((age, kept)) = &rules.untracked {
        others(shared, &used, *age, kept, left).await;
    }
}

/// Images that somebody else brought here.
async fn others(shared: &Shared, used: &HashSet<String>, age: Millis, kept: &[String], mut left: usize) {
    let all = match shared.runtime.images().await {
        Ok(all) => all,
        Err(error) => {
            tracing::debug!(%error, "images of others are not cleaned up now");
            return;
        }
    };
    let now = clock::now();
    for (image, made_at) in all {
        let spared = used.contains(&image)
            || kept.contains(&image)
            || shared.images.records().has(&image)
            || image.starts_with(OWN);
        if left > 0 && !spared && now.0.saturating_sub(made_at.0) >= age.0 && remove(shared, &image).await {
            left -= 1;
        }
    }
}

/// Removes images until the disk has room again.
async fn pressed(shared: &Shared, rules: &CleanUp) {
    let (high, low) = rules.pressure;
    if filled(rules).await.is_none_or(|share| share < high) {
        return;
    }
    let used = in_use(shared);
    for image in shared.images.records().unused(&|image| used.contains(image), Millis(0), clock::now()) {
        remove(shared, &image).await;
        if filled(rules).await.is_none_or(|share| share < low) {
            return;
        }
    }
    let (disk, percent) = (rules.disk.clone().unwrap_or_default(), filled(rules).await);
    tracing::warn!(disk = %disk.display(), percent, "the disk is full, and no image is left that could go");
}

/// How much of the disk is in use, in percent.
async fn filled(rules: &CleanUp) -> Option<u8> {
    let disk = rules.disk.clone()?;
    let looked = tokio::task::spawn_blocking(move || statvfs(&disk)).await;
    let stat = looked.ok()?.ok()?;
    let (all, free) = (stat.blocks(), stat.blocks_available());
    u8::try_from(all.saturating_sub(free).saturating_mul(100).checked_div(all)?).ok()
}

/// Whether it is gone. The engine refuses where a container has it.
async fn remove(shared: &Shared, image: &str) -> bool {
    if shared.images.is_wanted(image) {
        return false;
    }
    match tokio::time::timeout(REMOVAL, shared.runtime.remove_image(image)).await {
        Ok(Ok(gone)) => {
            if gone {
                tracing::info!(image, "removed an image that nobody used");
                shared.images.records().removed(image);
            }
            gone
        }
        Ok(Err(error)) => {
            tracing::debug!(image, %error, "an image that nobody uses stays");
            false
        }
        Err(_) => false,
    }
}
