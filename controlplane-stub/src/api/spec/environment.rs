//! What a container finds in its environment, what of it is kept elsewhere, and its restart policy.

use berth_core::spec::{EnvVar, RestartPolicy, SecretRef};
use berth_core::units::Millis;

use crate::api::task_definition::input::{self, EnvironmentFile, Pair};

/// How long a container must have run to be started again, where the policy does not say (developer
/// guide, "Container restart policy").
const ATTEMPT_PERIOD_SECONDS: u64 = 300;

/// The definition's variables; an override of the same name takes the place of its value.
pub(super) fn environment(own: &[Pair], changed: &[Pair]) -> Vec<EnvVar> {
    let mut merged: Vec<EnvVar> = Vec::with_capacity(own.len() + changed.len());
    for pair in own.iter().chain(changed) {
        match merged.iter_mut().find(|variable| variable.name == pair.name) {
            Some(variable) => variable.value.clone_from(&pair.value),
            None => merged.push(EnvVar { name: pair.name.clone(), value: pair.value.clone() }),
        }
    }
    merged
}

/// The files of an override win over the definition's, which come after them.
pub(super) fn files(own: &[EnvironmentFile], changed: &[EnvironmentFile]) -> Vec<String> {
    changed.iter().chain(own).map(|file| file.value.clone()).collect()
}

/// An entry of `secrets` or `secretOptions`.
pub(super) fn secret(secret: &input::Secret) -> SecretRef {
    SecretRef { name: secret.name.clone(), value_from: secret.value_from.clone() }
}

/// `restartPolicy`, where it is enabled; it was checked at registration.
pub(super) fn restart_policy(policy: &input::RestartPolicy) -> Option<RestartPolicy> {
    (policy.enabled == Some(true)).then(|| RestartPolicy {
        ignored_exit_codes: policy.ignored_exit_codes.iter().filter_map(|c| i32::try_from(*c).ok()).collect(),
        attempt_period: Millis::from_secs(
            policy
                .restart_attempt_period
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or(ATTEMPT_PERIOD_SECONDS),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_counts_only_where_it_is_enabled() {
        let off = input::RestartPolicy { restart_attempt_period: Some(60), ..Default::default() };
        assert_eq!(restart_policy(&off), None);
        let on =
            input::RestartPolicy { enabled: Some(true), ignored_exit_codes: vec![0], ..Default::default() };
        let policy = restart_policy(&on).unwrap();
        assert_eq!((policy.ignored_exit_codes, policy.attempt_period.0), (vec![0], 300_000));
    }
}
