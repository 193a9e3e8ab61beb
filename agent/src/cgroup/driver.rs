//! Which way of making task cgroups suits a host: a decision from what the engine and the kernel
//! say.

/// How the kernel's cgroups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    /// One directory tree for each controller.
    V1,
    /// One tree for all.
    V2,
}

impl Hierarchy {
    /// The number that engines report.
    #[must_use]
    pub const fn version(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}

/// The way to make task cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// Directories made by the agent.
    Cgroupfs(Hierarchy),
    /// Slices made by systemd.
    Systemd(Hierarchy),
}

/// Why no way suits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    /// There are no cgroups where they should be.
    #[error("no cgroup hierarchy is mounted; mount one, or switch task limits off")]
    NotMounted,
    /// Engine and agent see different hierarchies.
    #[error(
        "the container engine uses cgroup v{engine}, but v{} is mounted here; run the agent on the engine's host, \
         or switch task limits off",
        mounted.version()
    )]
    Different {
        /// The version that the engine uses.
        engine: u8,
        /// What is mounted where the agent looks.
        mounted: Hierarchy,
    },
}

/// Chooses from the engine's cgroup version, whether it makes cgroups through systemd, and what
/// is mounted. Engine and agent must go the same way: a parent is a path to the one and a slice to
/// the other.
///
/// # Errors
/// [`Unsuitable`] when task limits could not be enforced.
pub const fn driver(
    engine_version: u8,
    systemd: bool,
    mounted: Option<Hierarchy>,
) -> Result<DriverKind, Unsuitable> {
    let Some(mounted) = mounted else {
        return Err(Unsuitable::NotMounted);
    };
    // Engines before 20.10 report no version: they know v1 alone.
    let engine = if engine_version == 0 { 1 } else { engine_version };
    if engine != mounted.version() {
        return Err(Unsuitable::Different { engine, mounted });
    }
    Ok(if systemd { DriverKind::Systemd(mounted) } else { DriverKind::Cgroupfs(mounted) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_and_agent_go_the_same_way() {
        for (version, systemd, mounted, expected) in [
            (1, false, Some(Hierarchy::V1), Ok(DriverKind::Cgroupfs(Hierarchy::V1))),
            (0, false, Some(Hierarchy::V1), Ok(DriverKind::Cgroupfs(Hierarchy::V1))),
            (1, true, Some(Hierarchy::V1), Ok(DriverKind::Systemd(Hierarchy::V1))),
            (2, false, Some(Hierarchy::V2), Ok(DriverKind::Cgroupfs(Hierarchy::V2))),
            (2, true, Some(Hierarchy::V2), Ok(DriverKind::Systemd(Hierarchy::V2))),
            (2, true, Some(Hierarchy::V1), Err(Unsuitable::Different { engine: 2, mounted: Hierarchy::V1 })),
            (1, false, Some(Hierarchy::V2), Err(Unsuitable::Different { engine: 1, mounted: Hierarchy::V2 })),
            (2, true, None, Err(Unsuitable::NotMounted)),
        ] {
            assert_eq!(driver(version, systemd, mounted), expected, "{version} {systemd} {mounted:?}");
        }
    }

    #[test]
    fn a_mismatch_names_both_versions() {
        let text = driver(2, true, Some(Hierarchy::V1)).unwrap_err().to_string();
        assert!(text.contains("v2") && text.contains("v1"), "{text}");
    }
}
