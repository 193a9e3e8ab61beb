//! A control plane for Berth agents that speaks the ECS JSON API.
//!
//! | module | its one job |
//! | --- | --- |
//! | `main` | arguments, wiring, start and stop order |
//! | [`api`] | ECS's JSON 1.1 over HTTP: typed requests, ECS's errors; writes desired state only |
//! | `agents` | the gRPC side: enrolment, registration, sessions; writes observed state only |
//! | `controller` | applies what the scheduler plans by compare-and-swap |
//! | `scheduler` | pure: read-only view in, plan out |
//! | [`store`] | read, transactional compare-and-swap, watch |
//! | [`model`] | the records |

pub mod agents;
pub mod api;
pub mod arn;
pub mod cli;
pub mod clock;
pub mod controller;
pub mod daemon;
pub mod model;
pub mod scheduler;
pub mod simulated;
pub mod state;
pub mod store;
pub mod supervise;
pub mod tls;
