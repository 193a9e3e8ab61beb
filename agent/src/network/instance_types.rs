//! How many tasks with an interface of their own an EC2 instance carries, by its type. The facts are
//! in `instance_types.tsv`, which one edits when a new family appears.

/// Each line: type, interfaces with the primary, branch interfaces of a trunk.
const TABLE: &str = include_str!("instance_types.tsv");

/// How many tasks with an interface of their own an instance of that type carries; `None` for a
/// type that is not in the table.
///
/// The primary interface is the host's. A trunk takes the place of one more, and carries branches
/// besides those that are left (ECS developer guide, "Increasing Amazon ECS Linux container instance
/// network interfaces").
#[must_use]
pub fn task_interfaces(instance_type: &str, trunk: bool) -> Option<u32> {
    let fields = |line: &'static str| {
        let mut fields = line.split('\t');
        (fields.next() == Some(instance_type)).then_some(())?;
        Some((fields.next()?.parse::<u32>().ok()?, fields.next()?.parse::<u32>().ok()?))
    };
    let (interfaces, branches) = TABLE.lines().find_map(fields)?;
    Some(if trunk && branches > 0 {
        branches.saturating_add(interfaces.saturating_sub(2))
    } else {
        interfaces.saturating_sub(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_interface_is_the_hosts() {
        let known = [
            ("t3.nano", 2),
            ("t3.medium", 3),
            ("t3.xlarge", 4),
            ("m5.large", 3),
            ("m5.xlarge", 4),
            ("m5.4xlarge", 8),
            ("m5.24xlarge", 15),
        ];
        for (name, interfaces) in known {
            assert_eq!(task_interfaces(name, false), Some(interfaces - 1), "{name}");
        }
        assert_eq!(task_interfaces("x0.none", false), None);
    }

    #[test]
    fn a_trunk_carries_branches_where_the_type_has_one() {
        let known = [("m5.large", 10), ("c5.xlarge", 20), ("m5.4xlarge", 60), ("m5.24xlarge", 120)];
        for (name, tasks) in known {
            assert_eq!(task_interfaces(name, true), Some(tasks), "{name}");
        }
        assert_eq!(task_interfaces("t3.medium", true), Some(2), "no trunk there");
    }

    #[test]
    fn the_table_is_whole() {
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split('\t').next().unwrap();
            assert!(task_interfaces(name, false).is_some(), "{line:?}");
            assert_eq!(line.split('\t').count(), 3, "{line:?}");
        }
    }
}
