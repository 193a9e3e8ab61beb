//! The control plane over real gRPC on loopback, driven by a small client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

mod adopting;
mod certified;
mod client;
mod enrolment;
mod launching;
mod listening;
mod process;
mod registering;
mod sessions;
mod simulating;
