//! The Berth agent: joins a host to a cluster, reports what it can hold, and runs the tasks that
//! are placed on it.
//!
//! A module imports only downwards. Commands go down, events come up.
//!
//! | floor | rooms | one job |
//! | --- | --- | --- |
//! | 6 | [`daemon`], [`arguments`], [`ask`] | build, start order, stop order; what an operator types |
//! | 5 | [`session`], [`endpoint`] | the conversation with the control plane; what operators ask |
//! | 4 | [`engine`] | the shell round the core: persists, then acts, feeds back what it observes |
//! | 3 | [`runtime`], [`cgroup`], [`network`], [`gpu`], [`image`], [`object`], [`secret`], [`environment`], [`firelens`], [`credentials`], [`metadata_file`], [`fault`], [`host_life`], [`contained`] | one external system each |
//! | 2 | [`store`], [`journal`], [`supervise`], [`telemetry`], [`web`], [`backoff`], [`effects`], [`clock`], [`random`], [`config`] | state, owned futures, logs, HTTP, pauses, where the world is touched, time, chance, configuration |

pub mod arguments;
pub mod ask;
pub mod backoff;
pub mod cgroup;
pub mod clock;
pub mod config;
pub mod contained;
pub mod credentials;
pub mod daemon;
pub mod effects;
pub mod endpoint;
pub mod engine;
pub mod environment;
pub mod fault;
pub mod firelens;
pub mod gpu;
pub mod host;
pub mod host_life;
pub mod image;
pub mod journal;
pub mod metadata_file;
pub mod network;
pub mod object;
pub mod random;
pub mod runtime;
pub mod secret;
pub mod session;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod usage;
pub mod web;
