//! Task cgroups as slices that systemd makes.

mod bus;

use std::io;
use std::sync::Arc;

use berth_core::ids::{TaskArn, is_resource_name};
use berth_core::units::{CPU_UNITS_PER_CPU, CpuUnits, Millis};
use futures_util::future::{BoxFuture, FutureExt};
use zbus::zvariant::Value;

use self::bus::Bus;
use super::driver::Hierarchy;
use super::{Bounds, CgroupError, Cgroups, weight};

/// The prefix of the slices' names that operators know.
const PREFIX: &str = "ecstasks";
/// Microseconds in a second.
const SECOND_US: u64 = 1_000_000;
/// Systemd keeps a quota in whole percents of a processor when it writes it down.
const PERCENT_US: u64 = SECOND_US / 100;
/// The period that systemd uses when it is told none.
const DEFAULT_PERIOD: Millis = Millis(100);

/// How slices are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemdConfig {
    /// What the slices' names begin with; letters, digits and underscores.
    pub prefix: String,
    /// The period of the CPU quota, 8 to 100 ms.
    pub period: Millis,
}

impl Default for SystemdConfig {
    fn default() -> Self {
        Self {
            prefix: PREFIX.to_owned(),
            period: DEFAULT_PERIOD,
        }
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
        Self {
            config,
            version,
            bus: Arc::new(Bus::default()),
        }
    }

    fn unit(&self, task_id: &str) -> String {
        format!("{}-{task_id}.slice", self.config.prefix)
    }

    async fn take(&self, task_id: &str) -> Result<(), CgroupError> {
        let unit = self.unit(task_id);
        if !is_resource_name(task_id) {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(failed(task_id, format!("take {unit} for a slice"), source));
        }
        self.bus
            .stop(&unit)
            .await
            .map_err(|source| failed(task_id, format!("stop {unit}"), source))
    }
}

fn failed(task: &str, what: String, source: io::Error) -> CgroupError {
    CgroupError {
        task: task.to_owned(),
        what,
        source,
    }
}

/// The properties of a slice but for its quota.
fn properties(
    bounds: &Bounds,
    version: Hierarchy,
    task: &TaskArn,
) -> Vec<(&'static str, Value<'static>)> {
    let mut properties = vec![
        ("Description", Value::from(format!("Task {}", task.id()))),
        ("DefaultDependencies", Value::from(false)),
        ("CPUAccounting", Value::from(true)),
        ("MemoryAccounting", Value::from(true)),
        ("TasksAccounting", Value::from(true)),
    ];
    if bounds.cpu.is_none() {
        properties.push(match version {
            Hierarchy::V1 => (
                "CPUShares",
                Value::from(bounds.cpu_shares.clamp(2, 262_144)),
            ),
            Hierarchy::V2 => ("CPUWeight", Value::from(weight(bounds.cpu_shares))),
        });
    }
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

/// The task's id in a slice's name.
fn task_id<'a>(prefix: &str, unit: &'a str) -> Option<&'a str> {
    unit.strip_prefix(prefix)?
        .strip_prefix('-')?
        .strip_suffix(".slice")
        .filter(|id| !id.contains('-'))
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

    fn bound<'a>(
        &'a self,
        task: &'a TaskArn,
        cpu: CpuUnits,
    ) -> BoxFuture<'a, Result<(), CgroupError>> {
        async move {
            let unit = self.unit(task.id());
            let quota = quota_per_second(cpu);
            let mut properties = vec![("CPUQuotaPerSecUSec", Value::from(quota))];
            if self.config.period != DEFAULT_PERIOD {
                let period = self.config.period.0.clamp(8, 100) * 1000;
                properties.push(("CPUQuotaPeriodUSec", Value::from(period)));
            }
            let what = || format!("set the CPU quota of {unit}");
            self.bus
                .set(&unit, &properties)
                .await
                .map_err(|source| failed(task.id(), what(), source))?;
            let read = self.bus.slice_property(&unit, "CPUQuotaPerSecUSec").await;
            match read.map_err(|source| failed(task.id(), what(), source))? {
                read if read == quota => Ok(()),
                read => {
                    let source = io::Error::other(format!(
                        "{quota} us a second were set, but {read} are in force"
                    ));
                    Err(failed(task.id(), what(), source))
                }
            }
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
        let bounds = Bounds {
            cpu: None,
            cpu_shares: 1024,
            memory: Some(Mebibytes(1)),
            pids: None,
        };
        let names = |version| -> Vec<_> {
            properties(&bounds, version, &task)
                .into_iter()
                .skip(5)
                .collect()
        };
        assert_eq!(
            names(Hierarchy::V1),
            [
                ("CPUShares", Value::from(1024_u64)),
                ("MemoryLimit", Value::from(1_u64 << 20))
            ]
        );
        assert_eq!(
            names(Hierarchy::V2),
            [
                ("CPUWeight", Value::from(39_u64)),
                ("MemoryMax", Value::from(1_u64 << 20))
            ]
        );
    }
}
