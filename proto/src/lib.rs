//! `berth.v1`: the protocol between the agent and the control plane, generated from
//! `berth/v1/agent.proto`, where every message and field is documented. No logic lives here, but for
//! [`talk`], how frames travel where there is no gRPC, and [`sigv4`], how AWS wants requests signed: both
//! programs speak these as well.

pub mod sigv4;
pub mod talk;

/// The messages and services of `berth.v1`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, reason = "generated")]
#[allow(clippy::all, clippy::pedantic, clippy::restriction, clippy::nursery, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("berth.v1");
}

impl std::fmt::Debug for v1::RoleCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RoleCredentials({} of {})", self.role_arn, self.task_arn)
    }
}

/// The version of the protocol that this crate speaks; both sides send theirs.
pub const PROTOCOL_VERSION: u32 = 1;
