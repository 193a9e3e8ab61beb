//! One host in a world of its own, in which everything that is chance follows from a seed: the real core, engine
//! and session on an engine, networks, cgroups, a store, a clock and a control plane in memory. Hours of it pass
//! in milliseconds, and the same seed has the same story to the last line.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`story`] | what happens to the host, from its first task until nothing is left |
//! | `mishaps` | all that may happen to it |
//! | [`world`] | what outlives the agent, and what is known of it |
//! | [`trace`] | what happened, line by line |
//! | [`climate`] | which faults are about, and how often they strike |
//! | [`life`] | one life of the agent, wired as the daemon wires it |
//! | [`engine`] | the container engine as a process of its own, which goes on when the agent dies |
//! | [`store`] | the state as a writer of its own has it |
//! | [`control_plane`] | the other end of the session |
//! | [`tasks`] | the tasks that are asked for |
//! | [`check`] | what must be true, always and in the end |
//!
//! The session is the real one, with its codec and its messages, and calls the control plane's service without a
//! connection between them: sockets and HTTP/2 have threads and times of their own, and the tests beside this one
//! have both for real. What is not real is below the agent's ports, and the line.

pub mod check;
pub mod climate;
pub mod control_plane;
pub mod engine;
pub mod life;
mod mishaps;
pub mod store;
pub mod story;
pub mod tasks;
pub mod trace;
pub mod world;

pub use story::{Story, Teller, play, tell};
