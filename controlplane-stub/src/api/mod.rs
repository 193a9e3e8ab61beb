//! ECS's JSON 1.1 API over HTTP.

mod error;
mod hex;
mod page;
mod shape;
mod sigv4;
