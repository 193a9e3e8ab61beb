//! GPUs for tasks.

use std::path::PathBuf;

use super::read::Reader;

/// How GPUs are found and given to tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus {
    /// The file that says which there are; the driver is asked where it is not there.
    pub inventory: PathBuf,
    /// The engine's runtime that gives containers their GPUs, instead of the engine itself.
    pub runtime: Option<String>,
}

/// Reads them; `None` where tasks are to have none.
pub(super) fn read(r: &mut Reader<'_>) -> Option<Gpus> {
    let on = r.flag("ECS_ENABLE_GPU_SUPPORT", false);
    let inventory = r.read(
        "BERTH_GPU_INVENTORY",
        "an absolute path",
        PathBuf::from("/var/lib/ecs/gpu/nvidia-gpu-info.json"),
        |v| v.starts_with('/').then(|| PathBuf::from(v)),
    );
    let runtime = r.strings.get("ECS_NVIDIA_RUNTIME");
    on.then_some(Gpus { inventory, runtime })
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Gpus, Variables};

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Gpus>, String> {
        let config = Config::read(&pairs.iter().copied().collect::<Variables>());
        config.map(|config| config.gpus).map_err(|error| error.to_string())
    }

    #[test]
    fn tasks_get_gpus_where_the_operator_says_so() {
        assert_eq!(read(&[("ECS_NVIDIA_RUNTIME", "nvidia")]).unwrap(), None);
        let on = read(&[("ECS_ENABLE_GPU_SUPPORT", "true")]).unwrap().unwrap();
        assert!(on.inventory.ends_with("ecs/gpu/nvidia-gpu-info.json") && on.runtime.is_none());
        let refused = read(&[("BERTH_GPU_INVENTORY", "gpus.json")]).unwrap_err();
        assert!(
            refused.contains("BERTH_GPU_INVENTORY=\"gpus.json\": expected an absolute path"),
            "{refused}"
        );
    }
}
