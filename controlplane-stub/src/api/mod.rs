//! ECS's JSON 1.1 API over HTTP.
