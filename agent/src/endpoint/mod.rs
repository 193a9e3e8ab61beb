//! What operators and tasks ask the agent. Reads immutable snapshots; never asks an actor.

pub mod introspection;
