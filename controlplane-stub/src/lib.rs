//! A control plane for Berth agents that speaks the ECS JSON API.
//!
//! | module | its one job |
//! | --- | --- |
//! | `main`, [`cli`], [`daemon`] | arguments, wiring, start and stop order |
//! | [`api`] | ECS's JSON 1.1 over HTTP: typed requests, ECS's errors; writes desired state only |
//! | [`agents`] | the gRPC side: enrolment, registration, sessions; writes observed state only |
//! | [`simulated`] | development: agents of this process over the real sessions |
//! | [`remote`] | programs in containers and logs, for operators who are elsewhere |
//! | [`operator`] | the other side of that: what the command `berth` does |
//! | [`controller`] | applies what the scheduler plans; the one owner of placement |
//! | [`scheduler`] | pure: read-only view in, plan out |
//! | [`store`] | read, transactional compare-and-swap, watch |
//! | [`credentials`] | credentials for the roles of tasks |
//! | [`vpc`] | subnets, security groups, addresses for tasks |
//! | [`tls`] | the certificate authority, join tokens, certificates of hosts |
//! | [`model`], [`arn`], [`state`] | the records, their names, and what request handlers work with |
//! | [`supervise`], [`clock`], [`hex`] | owned futures; the time; bytes as text |
//! | `ownership` | whose the files of the data directory are |

pub mod agents;
pub mod api;
pub mod arn;
pub mod cli;
pub mod clock;
pub mod controller;
pub mod credentials;
pub mod daemon;
pub mod hex;
pub mod model;
pub mod operator;
mod ownership;
pub mod remote;
pub mod scheduler;
pub mod simulated;
pub mod state;
pub mod store;
pub mod supervise;
pub mod tls;
pub mod vpc;
