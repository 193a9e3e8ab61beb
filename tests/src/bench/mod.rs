//! What the benchmark stands on: the agent between a control plane of its own and the raw engine.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`scripted`] | a control plane that sends what it is told and notes when the agent answers |
//! | [`raw`] | the engine's API with nothing between: the floor |
//! | [`process`] | the optimised programs as child processes |
//! | [`usage`] | CPU and memory of processes, from /proc |
//! | [`stats`] | medians, percentiles, differences within pairs |
//! | [`report`] | the table, and the same as JSON |
//! | [`site`] | the names of all that a benchmark makes, and its removal |

pub mod process;
pub mod raw;
pub mod report;
pub mod scripted;
pub mod site;
pub mod stats;
pub mod usage;

pub use process::BenchAgent;
pub use raw::Raw;
pub use report::{Report, Row};
pub use scripted::Scripted;
pub use site::Site;
pub use stats::Samples;
