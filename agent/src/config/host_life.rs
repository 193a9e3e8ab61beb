//! What the agent does when its host goes, and who says so.

use std::path::PathBuf;

use berth_core::units::Millis;

use super::read::Reader;

/// Where every EC2 instance finds what is known of it.
const INSTANCE_METADATA: &str = "http://169.254.169.254";

/// How the end of the host is learnt of, and how long tasks have then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLife {
    /// Longest that tasks have to stop when the host shuts down; zero where they are left to the engine.
    pub shutdown_timeout: Millis,
    /// The file whose appearance says that the host is taken back.
    pub notice_file: Option<PathBuf>,
    /// Where EC2's instance metadata is asked for notices; nowhere, where it is not.
    pub instance_metadata: Option<String>,
}

/// Reads it.
pub(super) fn read(r: &mut Reader<'_>) -> HostLife {
    let spot = r.flag("ECS_ENABLE_SPOT_INSTANCE_DRAINING", false);
    let usual = INSTANCE_METADATA.to_owned();
    let endpoint = r.read("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://address[:port]", usual, |v| {
        ["http://", "https://"].iter().any(|scheme| v.starts_with(scheme)).then(|| v.to_owned())
    });
    HostLife {
        shutdown_timeout: r.span("BERTH_SHUTDOWN_TIMEOUT", Millis::from_secs(120), Millis(0)),
        notice_file: r.read("BERTH_TERMINATION_NOTICE_FILE", "an absolute path", None, |v| {
            v.starts_with('/').then(|| Some(PathBuf::from(v)))
        }),
        instance_metadata: spot.then_some(endpoint),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Variables};

    #[test]
    fn nothing_is_asked_unless_the_operator_says_so() {
        let read = |pairs: &[(&str, &str)]| Config::read(&pairs.iter().copied().collect::<Variables>());
        let plain =
            read(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://[fd00:ec2::254]")]).unwrap().host_life;
        assert_eq!((plain.notice_file, plain.instance_metadata), (None, None));
        assert_eq!(plain.shutdown_timeout.0, 120_000);
        let spot = read(&[("ECS_ENABLE_SPOT_INSTANCE_DRAINING", "true")]).unwrap().host_life;
        assert_eq!(spot.instance_metadata.as_deref(), Some("http://169.254.169.254"));
        let wrong = read(&[
            ("BERTH_TERMINATION_NOTICE_FILE", "notice"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "169.254.169.254"),
            ("BERTH_SHUTDOWN_TIMEOUT", "soon"),
        ]);
        let wrong = wrong.unwrap_err().to_string();
        for name in ["_NOTICE_FILE=\"notice\"", "_SERVICE_ENDPOINT=\"169", "_SHUTDOWN_TIMEOUT=\"soon\""] {
            assert!(wrong.contains(name), "{wrong}");
        }
    }
}
