//! Berth from outside: what a test needs to drive the real programs against a real engine.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`cluster`] | a control plane with one agent, and the removal of all they made |
//! | [`control_plane`] | the real control plane as a child process |
//! | [`agent`] | the real agent as a child process |
//! | [`program`] | any child process: its output, its end, its death when the test ends |
//! | [`engine`] | the container engine itself, beside Berth: what is there, and its raw floor |
//! | [`own_engine`] | an engine of the test's own, for what would stay in a shared one |
//! | [`volume_plugin`] | a volume plug-in of a test |
//! | [`endpoint`] | where an agent under test serves its tasks |
//! | [`ecs`] | a small client for the JSON API |
//! | [`aws`] | the AWS command line |
//! | [`demo`] | the demo image and definitions that use it |
//! | [`secured`] | a control plane that speaks TLS |
//! | [`strangers`] | who else is near a host, and what its processes listen at |
//! | [`http`] | HTTP requests of a test |
//! | [`keep_alive`] | the same on a connection that stays, from inside a container's network |
//! | [`manager`] | a service manager of a test, as a program sees it |
//! | [`logind`] | a system bus and a logind of a test |
//! | [`server`] | a web server of a test |
//! | [`python`] | Python programs in containers |
//! | [`registry`] | a registry of images that can be made to fail |
//! | [`mod@bench`] | what the benchmark stands on |
//! | [`expect`] | asking again until an answer is there, where no event tells |
//! | [`files`] | what is written in files, and who may read them |
//! | [`fuzz`] | input that nobody would send |
//! | [`vpc`] | subnets and security groups of a test, and what a host has of networks |
//! | [`faults`] | somebody before and after everything that the agent does to the world |
//! | [`seeded`] | one host in a world that follows from a seed |
//! | [`sim`] | simulated hosts, and parts of a real host that can be broken |
//!
//! The programs are taken from the folder of the test's own build; `make test` builds them first.
//! Every cluster has a name of its own, so tests run in parallel on one engine.

pub mod agent;
pub mod aws;
pub mod bench;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod ecs;
pub mod endpoint;
pub mod engine;
pub mod expect;
pub mod faults;
pub mod files;
pub mod fuzz;
pub mod http;
pub mod keep_alive;
pub mod logind;
pub mod manager;
pub mod own_engine;
pub mod program;
pub mod python;
pub mod registry;
pub mod secured;
pub mod seeded;
pub mod server;
pub mod sim;
pub mod strangers;
pub mod volume_plugin;
pub mod vpc;

pub use agent::Agent;
pub use aws::Aws;
pub use cluster::Cluster;
pub use control_plane::ControlPlane;
pub use ecs::{Ecs, EcsError};
pub use endpoint::Endpoint;
pub use engine::Engine;
pub use expect::eventually;
pub use keep_alive::KeepAlive;
pub use logind::Logind;
pub use manager::Manager;
pub use own_engine::OwnEngine;
pub use registry::{Fault, Registry};
pub use server::Server;
pub use volume_plugin::VolumePlugin;
