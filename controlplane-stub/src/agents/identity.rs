//! Whose an instance is: the host's whose certificate it was registered with. An ARN is no secret, and a certificate
//! is what every host has.

use super::listener::Peer;
use crate::arn;
use crate::model::Instance;
use crate::tls::HostId;

/// The host that a caller has proved to be; `None` in plaintext, where nobody proves anything.
pub(super) fn proved(peer: Peer) -> Option<HostId> {
    match peer {
        Peer::Host(host) => Some(host),
        Peer::Local | Peer::Stranger => None,
    }
}

/// Whether the instance is that host's: registered with its certificate, or with the key that it enrolled with.
pub(super) fn is_of(instance: &Instance, host: &HostId) -> bool {
    let enrolled = || !instance.host_key.is_empty() && *host == HostId::of_key(&instance.host_key);
    instance.host_id == host.as_str() || enrolled()
}

/// What a host is told that claims an instance of another, which is also told here.
pub(super) fn refusal(instance: &Instance, host: &HostId) -> String {
    tracing::warn!(
        instance = instance.arn,
        %host,
        "a host claims an instance that is not its own, and is refused"
    );
    let (cluster, id) = (&instance.cluster, arn::id_of(&instance.arn));
    format!(
        "{} belongs to a host with another certificate. If it is this host, which lost its state and enrolled anew: \
         deregister that instance, which ends what it runs (aws ecs deregister-container-instance \
         --cluster {cluster} --container-instance {id} --force), and start this agent again; it registers a new one",
        instance.arn
    )
}
