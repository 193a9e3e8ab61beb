//! Task cgroups as slices that systemd makes. That a shutdown leaves them to the agent is said in the units that
//! are installed with it (`packaging/systemd/ecstasks*`): a slice that is made by a call alone has got the usual
//! dependencies already when it hears that it is to have none.

mod bus;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::{TaskArn, is_resource_name};
use berth_core::units::{CPU_UNITS_PER_CPU, CpuUnits, Millis};
use futures_util::future::{BoxFuture, FutureExt};
use zbus::zvariant::Value;

use self::bus::Bus;
use super::driver::Hierarchy;
use super::{Bounds, CgroupError, Cgroups, MemoryPast, tree, weight};

/// The prefix of the slices' names that operators know.
const PREFIX: &str = "ecstasks";
/// Microseconds in a second.
const SECOND_US: u64 = 1_000_000;
/// Systemd keeps a quota in whole percents of a processor when it writes it down.
const PERCENT_US: u64 = SECOND_US / 100;
/// Pauses between looks at what the kernel has: a second and a half in all.
const READ_PAUSES_MS: [u64; 8] = [1, 2, 5, 20, 70, 200, 400, 800];
/// The period that systemd uses when it is told none.
const DEFAULT_PERIOD: Millis = Millis(100);

/// How slices are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemdConfig {
    /// Where the hierarchy is mounted, to read back what systemd wrote.
    pub mount: PathBuf,
    /// What the slices' names begin with; letters, digits and underscores.
    pub prefix: String,
    /// The period of the CPU quota, 8 to 100 ms.
    pub period: Millis,
}

impl Default for SystemdConfig {
    fn default() -> Self {
        Self { mount: PathBuf::from("/sys/fs/cgroup"), prefix: PREFIX.to_owned(), period: DEFAULT_PERIOD }
    }
}

/// Task cgroups made by systemd. The connection is made when it is first needed.
#[derive(Debug, Clone)]
pub struct Systemd {
    config: SystemdConfig,
    version: Hierarchy,
    bus: Arc<Bus>,
}

impl Systemd {
    /// Slices on a host with that cgroup version.
    #[must_use]
    pub fn new(config: SystemdConfig, version: Hierarchy) -> Self {
        Self { config, version, bus: Arc::new(Bus::default()) }
    }

    fn unit(&self, task_id: &str) -> String {
        format!("{}-{task_id}.slice", self.config.prefix)
    }

    /// Waits until the kernel has the quota: systemd answers first and writes afterwards.
    async fn in_force(&self, group: &str, quota: u64) -> io::Result<()> {
        let group = group.trim_start_matches('/');
        let mut pauses = READ_PAUSES_MS.iter();
        loop {
            let read = match self.version {
                Hierarchy::V1 => {
                    let group = self.config.mount.join("cpu").join(group);
                    let quota = tokio::fs::read_to_string(group.join("cpu.cfs_quota_us")).await?;
                    let period = tokio::fs::read_to_string(group.join("cpu.cfs_period_us")).await?;
                    format!("{} {}", quota.trim(), period.trim())
                }
                Hierarchy::V2 => {
                    let file = self.config.mount.join(group).join("cpu.max");
                    tokio::fs::read_to_string(file).await?.trim().to_owned()
                }
            };
            if per_second(&read) == Some(quota) {
                return Ok(());
            }
            match pauses.next() {
                Some(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
                None => {
                    let text = format!("{quota} us a second were set, but {read:?} is in force");
                    return Err(io::Error::other(text));
                }
            }
        }
    }

    async fn take(&self, task_id: &str) -> Result<(), CgroupError> {
        let unit = self.unit(task_id);
        if !is_resource_name(task_id) {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(failed(task_id, format!("take {unit} for a slice"), source));
        }
        self.bus.stop(&unit).await.map_err(|source| failed(task_id, format!("stop {unit}"), source))
    }
}

fn failed(task: &str, what: String, source: io::Error) -> CgroupError {
    CgroupError { task: task.to_owned(), what, source }
}

/// The properties of a slice but for its quota.
fn properties(bounds: &Bounds, version: Hierarchy, task: &TaskArn) -> Vec<(&'static str, Value<'static>)> {
    let mut properties = vec![
        ("Description", Value::from(format!("Task {}", task.id()))),
        ("CPUAccounting", Value::from(true)),
        ("MemoryAccounting", Value::from(true)),
        ("TasksAccounting", Value::from(true)),
    ];
    // The weight is always given, the kernel's default if need be: with it systemd switches the
    // controller on now, and not when containers run already and the quota comes.
    let weighs = bounds.cpu.is_none();
    properties.push(match version {
        Hierarchy::V1 => {
            ("CPUShares", Value::from(if weighs { bounds.cpu_shares.clamp(2, 262_144) } else { 1024 }))
        }
        Hierarchy::V2 => ("CPUWeight", Value::from(if weighs { weight(bounds.cpu_shares) } else { 100 })),
    });
    if let Some(memory) = bounds.memory {
        let name = match version {
            Hierarchy::V1 => "MemoryLimit",
            Hierarchy::V2 => "MemoryMax",
        };
        properties.push((name, Value::from(memory.bytes())));
    }
    if let Some(pids) = bounds.pids {
        properties.push(("TasksMax", Value::from(u64::from(pids))));
    }
    properties
}

/// Microseconds of processor time for each second, in whole percents, never less than asked for.
fn quota_per_second(cpu: CpuUnits) -> u64 {
    let exact = (u64::from(cpu.0) * SECOND_US).div_ceil(u64::from(CPU_UNITS_PER_CPU));
    exact.div_ceil(PERCENT_US).max(1) * PERCENT_US
}

/// Microseconds for each second of "quota period"; `None` without a quota.
fn per_second(text: &str) -> Option<u64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota * SECOND_US).checked_div(period)
}

/// The task's id in a slice's name.
fn task_id<'a>(prefix: &str, unit: &'a str) -> Option<&'a str> {
    unit.strip_prefix(prefix)?.strip_prefix('-')?.strip_suffix(".slice").filter(|id| !id.contains('-'))
}

impl Cgroups for Systemd {
    fn create<'a>(
        &'a self,
        task: &'a TaskArn,
        bounds: Bounds,
    ) -> BoxFuture<'a, Result<Option<String>, CgroupError>> {
        async move {
            let unit = self.unit(task.id());
            let properties = properties(&bounds, self.version, task);
            self.bus
                .start(&unit, &properties)
                .await
                .map_err(|source| failed(task.id(), format!("make {unit}"), source))?;
            Ok(Some(unit))
        }
        .boxed()
    }

    fn bound<'a>(&'a self, task: &'a TaskArn, cpu: CpuUnits) -> BoxFuture<'a, Result<(), CgroupError>> {
        async move {
            let unit = self.unit(task.id());
            let quota = quota_per_second(cpu);
            let mut properties = vec![("CPUQuotaPerSecUSec", Value::from(quota))];
            if self.config.period != DEFAULT_PERIOD {
                let period = self.config.period.0.clamp(8, 100) * 1000;
                properties.push(("CPUQuotaPeriodUSec", Value::from(period)));
            }
            let done = async {
                // Asked first: to set a property of a slice that is not there would bring it forth.
                let group = self.bus.control_group(&unit).await?;
                self.bus.set(&unit, &properties).await?;
                self.in_force(&group, quota).await
            };
            done.await.map_err(|source| failed(task.id(), format!("set the CPU quota of {unit}"), source))
        }
        .boxed()
    }

    fn remove<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>> {
        self.take(task.id()).boxed()
    }

    fn kill<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>> {
        async move {
            let unit = self.unit(task.id());
            self.bus
                .kill(&unit)
                .await
                .map_err(|source| failed(task.id(), format!("kill what is in {unit}"), source))
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, CgroupError>> {
        async move {
            let pattern = format!("{}-*.slice", self.config.prefix);
            let units = self.bus.list(&pattern).await;
            let units = units.map_err(|source| failed("*", format!("list {pattern}"), source))?;
            Ok(units
                .iter()
                .filter_map(|unit| task_id(&self.config.prefix, unit))
                .map(str::to_owned)
                .collect())
        }
        .boxed()
    }

    fn memory<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, MemoryPast> {
        async move {
            let Ok(group) = self.bus.control_group(&self.unit(task.id())).await else {
                return MemoryPast::default();
            };
            let mount = match self.version {
                Hierarchy::V1 => self.config.mount.join("memory"),
                Hierarchy::V2 => self.config.mount.clone(),
            };
            let path = mount.join(group.trim_start_matches('/'));
            tokio::task::spawn_blocking(move || tree::memory(&path)).await.unwrap_or_default()
        }
        .boxed()
    }

    fn remove_id<'a>(&'a self, task_id: &'a str) -> BoxFuture<'a, Result<(), CgroupError>> {
        self.take(task_id).boxed()
    }

    fn enabled(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use berth_core::units::Mebibytes;

    use super::*;

    #[test]
    fn a_quota_is_rounded_up_to_whole_percents() {
        assert_eq!(quota_per_second(CpuUnits(1024)), 1_000_000);
        assert_eq!(quota_per_second(CpuUnits(128)), 130_000);
        assert_eq!(quota_per_second(CpuUnits(1)), 10_000);
        assert_eq!(per_second("13000 100000"), Some(130_000));
        assert_eq!(per_second("max 100000"), None);
    }

    #[test]
    fn slices_tell_their_tasks() {
        assert_eq!(task_id("ecstasks", "ecstasks-0123.slice"), Some("0123"));
        assert_eq!(task_id("ecstasks", "ecstasks-a-b.slice"), None);
        assert_eq!(task_id("ecstasks", "ecstasks.slice"), None);
    }

    #[test]
    fn properties_are_those_of_the_cgroup_version() {
        let task = TaskArn::new("arn:aws:ecs:r:1:task/c/0123456789abcdef0123456789abcdef").unwrap();
        let bounds = Bounds { cpu: None, cpu_shares: 1024, memory: Some(Mebibytes(1)), pids: None };
        let names = |version| -> Vec<_> { properties(&bounds, version, &task).into_iter().skip(4).collect() };
        assert_eq!(
            names(Hierarchy::V1),
            [("CPUShares", Value::from(1024_u64)), ("MemoryLimit", Value::from(1_u64 << 20))]
        );
        assert_eq!(
            names(Hierarchy::V2),
            [("CPUWeight", Value::from(39_u64)), ("MemoryMax", Value::from(1_u64 << 20))]
        );
    }
}
