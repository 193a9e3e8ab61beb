//! The door for what is kept elsewhere, and for restart policies.

use berth_core::spec::{RestartPolicy, SecretRef};
use berth_core::units::Millis;
use berth_proto::v1;

/// An entry of `secrets` or `secretOptions`.
pub(super) fn secret(message: v1::SecretRef) -> SecretRef {
    SecretRef { name: message.name, value_from: message.value_from }
}

/// `restartPolicy`, where it is enabled.
pub(super) fn restart_policy(message: v1::RestartPolicy) -> RestartPolicy {
    RestartPolicy {
        ignored_exit_codes: message.ignored_exit_codes,
        attempt_period: Millis(message.attempt_period_ms),
    }
}
