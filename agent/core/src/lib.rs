//! What is true of a task without a host: identities, units, resources, task specifications, the
//! state machines of a task, and the ledger that grants resources.
//!
//! The crate is pure: no IO, clock, randomness or environment. Time comes in as
//! [`units::Timestamp`], what it wants done goes out as data ([`task::Act`]), and what became of
//! it comes back as [`task::Event`]. The agent's engine and the control plane's scheduler share
//! it, so that placement and admission cannot disagree about what fits.
//!
//! | floor | modules |
//! | --- | --- |
//! | 1 | [`task`], [`ledger`], [`spec`] |
//! | 0 | [`ids`], [`units`], [`resources`], [`attachment`], [`image`] |

pub mod attachment;
pub mod ids;
pub mod image;
pub mod ledger;
pub mod resources;
pub mod spec;
pub mod task;
pub mod units;
