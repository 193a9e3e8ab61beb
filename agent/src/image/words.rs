//! What engines and registries say when an image is not to be had: whether another try may help, and what a
//! user can do.

/// Whether trying again soon may help.
pub(super) fn is_passing(reason: &str) -> bool {
    if wants_login(reason) {
        return false;
    }
    let final_answers = [
        "not found",
        "manifest unknown",
        "invalid reference",
        "does not exist",
        "no such host",
        "registry auth",
    ];
    !final_answers.iter().any(|answer| reason.contains(answer))
}

/// Whether the registry wants a login, or another one.
pub(super) fn wants_login(reason: &str) -> bool {
    ["denied", "unauthorized", "no basic auth credentials"].iter().any(|answer| reason.contains(answer))
}

/// The reason with the image's name and what to do.
pub(super) fn with_hint(reference: &str, reason: &str) -> String {
    let hint = if reason.contains("no such host")
        || reason.contains("dial tcp")
        || reason.contains("connection refused")
    {
        "the registry cannot be reached from this host"
    } else if wants_login(reason) {
        "the image does not exist, or its registry wants a login"
    } else if reason.contains("not found") || reason.contains("manifest unknown") {
        "check the image's name and tag"
    } else if reason.to_ascii_lowercase().contains("toomanyrequests") {
        "the registry limits how often it is asked: log in there, or try later"
    } else if reason.contains("verification failed") {
        "what the registry sent is damaged: push the image again"
    } else {
        return format!("{reference}: {reason}");
    };
    format!("{reference}: {reason} ({hint})")
}
