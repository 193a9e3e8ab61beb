//! Removes images that nobody needs: those that are old, a few at a time, and more of them when the disk
//! fills. Never one that a task of this host has, and never one that this agent did not pull, unless the
//! operator asks for that; then stopped containers that no agent made go as well.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use berth_core::image::familiar;
use berth_core::units::Millis;
use nix::sys::statvfs::statvfs;

use super::Shared;
use crate::clock;
use crate::config::CleanUp;
use crate::effects;
use crate::runtime::LocalImage;

/// How often the disk is looked at, beside after each pull.
const LOOK: Duration = Duration::from_secs(60);
/// What the agent itself needs.
const OWN: &str = "berth-pause:";
/// Longest that one removal may take.
const REMOVAL: Duration = Duration::from_secs(60);

/// What cleaning up goes by.
pub(super) struct Cleaner {
    /// The operator's rules; without any, nothing is removed.
    pub(super) rules: Option<CleanUp>,
    /// Where the engine keeps images; `None` where that is out of sight.
    pub(super) disk: Option<PathBuf>,
}

/// Cleans up for as long as the agent runs, and has written down what was pulled.
pub(super) async fn run(shared: Arc<Shared>, cleaner: Cleaner) {
    let interval = cleaner.rules.as_ref().map_or(LOOK, |rules| rules.interval.as_duration());
    let mut cycle = tokio::time::interval(interval);
    let mut look = tokio::time::interval(LOOK);
    // The first tick of a cycle is at once: an agent that has just started has no opinion yet.
    cycle.tick().await;
    let mut was_full = false;
    loop {
        let is_cycle = tokio::select! {
            biased;
            _ = cycle.tick() => true,
            _ = look.tick() => false,
            () = shared.images.pulled() => false,
        };
        if let Some(rules) = &cleaner.rules {
            if is_cycle {
                old(&shared, rules).await;
            } else {
                let full = pressed(&shared, &cleaner, rules).await;
                if let (Some(percent), false) = (full, was_full) {
                    let disk = cleaner.disk.as_deref().unwrap_or_else(|| "".as_ref()).display();
                    tracing::warn!(%disk, percent, "the disk is full, and no image is left that could go");
                }
                was_full = full.is_some();
            }
        }
        if !shared.images.records().are_kept() {
            continue;
        }
        let images = Arc::clone(&shared);
        let save = async {
            let saved = tokio::task::spawn_blocking(move || images.images.records().save()).await;
            saved.map_err(io::Error::other)?
        };
        if let Err(error) = shared.effects.around(effects::IMAGES_KEEP, io::Error::other, save).await {
            tracing::warn!(%error, "which images were pulled here is not written down");
        }
    }
}

/// The images that tasks of this host have, also of those that have stopped and are kept.
pub(super) fn in_use(shared: &Shared) -> HashSet<String> {
    let tasks = shared.registry.views();
    tasks.iter().flat_map(|task| task.spec().containers.iter().map(|c| familiar(&c.image))).collect()
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
        containers_of_others(shared, *age, rules.at_once).await;
        images_of_others(shared, &used, *age, kept, left).await;
    }
}

/// Stopped containers of somebody else, one after the other and a few at a time.
async fn containers_of_others(shared: &Shared, age: Millis, at_once: usize) {
    let found = match shared.runtime.strangers().await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "containers of others are not cleaned up now");
            return;
        }
    };
    let now = clock::now();
    let old = found.into_iter().filter(|(_, since)| now.since(*since).0 >= age.0);
    for (id, _) in old.take(at_once) {
        match tokio::time::timeout(REMOVAL, shared.runtime.remove(&id)).await {
            Ok(Ok(())) => tracing::info!(container = %id, "removed a stopped container of somebody else"),
            Ok(Err(error)) => tracing::debug!(container = %id, %error, "a stopped container stays"),
            Err(_) => return,
        }
    }
}

/// Images that somebody else brought here.
async fn images_of_others(
    shared: &Shared,
    used: &HashSet<String>,
    age: Millis,
    kept: &[String],
    mut left: usize,
) {
    let all = match shared.runtime.images().await {
        Ok(all) => all,
        Err(error) => {
            tracing::debug!(%error, "images of others are not cleaned up now");
            return;
        }
    };
    let now = clock::now();
    for LocalImage { name: image, made_at, of_agent, .. } in all {
        let name = familiar(&image);
        let spared = of_agent
            || used.contains(&name)
            || kept.contains(&name)
            || shared.images.records().has(&name)
            || image.starts_with(OWN);
        if left > 0 && !spared && now.since(made_at).0 >= age.0 && remove(shared, &image).await {
            left -= 1;
        }
    }
}

/// Removes images until the disk has room again; how full it is, in percent, where it has none.
async fn pressed(shared: &Shared, cleaner: &Cleaner, rules: &CleanUp) -> Option<u8> {
    let (high, low) = rules.pressure;
    if filled(cleaner).await? < high {
        return None;
    }
    let used = in_use(shared);
    for image in shared.images.records().unused(&|image| used.contains(image), Millis(0), clock::now()) {
        remove(shared, &image).await;
        if filled(cleaner).await? < low {
            return None;
        }
    }
    filled(cleaner).await
}

/// How much of the disk is in use, in percent.
async fn filled(cleaner: &Cleaner) -> Option<u8> {
    let disk = cleaner.disk.clone()?;
    let looked = tokio::task::spawn_blocking(move || statvfs(&disk)).await;
    let stat = looked.ok()?.ok()?;
    let (all, free) = (stat.blocks(), stat.blocks_available());
    u8::try_from(all.saturating_sub(free).saturating_mul(100).checked_div(all)?).ok()
}

/// Whether it is gone. The engine refuses where a container has it.
async fn remove(shared: &Shared, image: &str) -> bool {
    if shared.images.progress(image).is_some() {
        return false;
    }
    match tokio::time::timeout(REMOVAL, shared.runtime.remove_image(image)).await {
        Ok(Ok(gone)) => {
            if gone {
                tracing::info!(image, "removed an image that nobody used");
                shared.images.records().removed(image);
                shared.images_removed.fetch_add(1, Ordering::Relaxed);
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
