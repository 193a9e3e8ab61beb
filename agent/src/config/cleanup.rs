//! When images are cleaned up, and where else they may be had.

use std::collections::BTreeMap;

use berth_core::image::{familiar, normal_registry};
use berth_core::units::Millis;

use super::read::Reader;
use super::{CleanUp, PullBehavior};

/// Reads the rules; `None` where nothing is cleaned up: the operator says so, or wants images to stay
/// (`prefer-cached`).
pub(super) fn read(r: &mut Reader<'_>, behavior: PullBehavior) -> Option<CleanUp> {
    let hour = Millis::from_secs(3600);
    let rules = CleanUp {
        interval: r.span("ECS_IMAGE_CLEANUP_INTERVAL", Millis::from_secs(1800), Millis::from_secs(600)),
        age: r.span("ECS_IMAGE_MINIMUM_CLEANUP_AGE", hour, Millis(0)),
        at_once: r.read("ECS_NUM_IMAGES_DELETE_PER_CYCLE", "a number from 1 on", 5, |v| {
            v.parse().ok().filter(|n| *n > 0)
        }),
        pressure: r.read(
            "BERTH_IMAGE_CLEANUP_DISK",
            "two percentages, high and low, such as 85,80",
            (85, 80),
            |v| {
                let (high, low) = v.split_once(',')?;
                let percent = |text: &str| text.trim().parse::<u8>().ok().filter(|n| (1..=100).contains(n));
                let (high, low) = (percent(high)?, percent(low)?);
                (low <= high).then_some((high, low))
            },
        ),
        untracked: None,
    };
    let age = r.span("NON_ECS_IMAGE_MINIMUM_CLEANUP_AGE", hour, Millis(0));
    let kept =
        r.read("ECS_EXCLUDE_UNTRACKED_IMAGE", "names of images with commas between", Vec::new(), |v| {
            Some(v.split(',').map(str::trim).filter(|name| !name.is_empty()).map(familiar).collect())
        });
    let untracked = r.flag("ECS_ENABLE_UNTRACKED_IMAGE_CLEANUP", false).then_some((age, kept));
    let off = r.flag("ECS_DISABLE_IMAGE_CLEANUP", false) || behavior == PullBehavior::PreferCached;
    (!off).then_some(CleanUp { untracked, ..rules })
}

/// Mirrors by registry: `REGISTRY=MIRROR,MIRROR;REGISTRY=MIRROR`.
pub(super) fn mirrors(text: &str) -> Option<BTreeMap<String, Vec<String>>> {
    let mut all = BTreeMap::new();
    for entry in text.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (registry, mirrors) = entry.split_once('=')?;
        let mirrors: Vec<String> =
            mirrors.split(',').map(|mirror| mirror.trim().trim_end_matches('/').to_owned()).collect();
        // An engine asks its registries over HTTPS unless it is told otherwise itself.
        let fits = |name: &String| !name.is_empty() && !name.contains("://") && !name.contains(['@', ' ']);
        if registry.trim().is_empty() || !mirrors.iter().all(fits) {
            return None;
        }
        all.insert(normal_registry(registry.trim()), mirrors);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Variables};

    #[test]
    fn images_that_are_to_stay_are_not_cleaned_up() {
        let rules = |pairs: &[(&str, &str)]| Config::read(&pairs.iter().copied().collect::<Variables>());
        assert!(rules(&[]).unwrap().image_cleanup.is_some());
        assert!(rules(&[("ECS_DISABLE_IMAGE_CLEANUP", "true")]).unwrap().image_cleanup.is_none());
        assert!(rules(&[("ECS_IMAGE_PULL_BEHAVIOR", "prefer-cached")]).unwrap().image_cleanup.is_none());
        let rules_of = rules(&[
            ("ECS_ENABLE_UNTRACKED_IMAGE_CLEANUP", "true"),
            ("ECS_EXCLUDE_UNTRACKED_IMAGE", "a:1, b"),
        ]);
        let (_, kept) = rules_of.unwrap().image_cleanup.unwrap().untracked.unwrap();
        assert_eq!(kept, ["a:1", "b:latest"]);
        for bad in ["80", "80,85", "0,0", "101,1"] {
            assert!(rules(&[("BERTH_IMAGE_CLEANUP_DISK", bad)]).is_err(), "{bad}");
        }
        assert!(rules(&[("ECS_IMAGE_CLEANUP_INTERVAL", "1m")]).is_err());
    }

    #[test]
    fn mirrors_are_named_by_registry() {
        let read = |text: &str| {
            let config = Config::read(&[("BERTH_REGISTRY_MIRRORS", text)].into_iter().collect::<Variables>());
            config.map(|config| config.registry_mirrors).map_err(|error| error.to_string())
        };
        let all = read("index.docker.io=m.local:5000/hub/, n.local; r.local=m.local").unwrap();
        assert_eq!(all["docker.io"], ["m.local:5000/hub", "n.local"]);
        assert_eq!(all["r.local"], ["m.local"]);
        for bad in ["m.local", "=m.local", "r.local=", "r.local=https://m.local"] {
            assert!(read(bad).unwrap_err().contains("BERTH_REGISTRY_MIRRORS"), "{bad}");
        }
    }
}
