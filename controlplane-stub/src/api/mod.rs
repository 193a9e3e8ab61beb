//! ECS's JSON 1.1 API over HTTP: one route, one operation for each `X-Amz-Target`.
//!
//! | module | its one job |
//! | --- | --- |
//! | `server` | connections: limits, deadlines, shutdown |
//! | `wire` | a request in, a response out; what a panic or a bad body becomes |
//! | `sigv4` | who signed the request |
//! | `shape` | the request's members and their types |
//! | `dispatch` | the handler of each operation |
//! | `context` | what every handler is given; names and ARNs looked up |
//! | `account` | what is set for the account |
//! | `cluster`, `task_definition`, `instance`, `attribute`, `task`, `tag`, `setting`, `service` | one ECS resource each |
//! | `spec` | a definition with its overrides as a task specification |
//! | `dev` | routes that only a development server has |

mod account;
mod attribute;
mod cluster;
mod context;
mod dev;
mod dispatch;
mod error;
mod instance;
mod page;
mod server;
mod service;
mod setting;
mod shape;
mod sigv4;
mod spec;
mod tag;
mod task;
mod task_definition;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod wire;

pub use server::serve;
