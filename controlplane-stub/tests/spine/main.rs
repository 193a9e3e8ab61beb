//! The control plane over real gRPC on loopback, driven by a small client.

mod client;
mod enrolment;
mod launching;
mod listening;
mod registering;
mod sessions;
mod simulating;
