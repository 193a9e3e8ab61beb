//! What the kernel has of tasks' networks, for people: read from the pinned namespaces alone, so that
//! it works beside a running agent and without one.

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::guard;
use super::netlink::Netlink;
use super::netns::{Namespace, Pins};
use super::plan::ENDPOINT_LINK;
use crate::supervise::Tracker;

/// Longest that the endpoint may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// The ids of the tasks that have a namespace.
#[must_use]
pub fn list(data_dir: &Path) -> Vec<String> {
    let mut names = Pins::new(data_dir).names();
    // Bridges of subnets have pins as well.
    names.retain(|name| name.len() == 32);
    names.sort();
    names
}

/// The interfaces, addresses, routes and rules of one task, by its id, the beginning of it, or its ARN, and
/// whether it reaches the agent's endpoint at that address.
///
/// # Errors
/// When it has no namespace here, or the agent may not enter it.
pub async fn inspect(
    data_dir: &Path,
    task: &str,
    endpoint: Option<SocketAddr>,
    tracker: &Tracker,
) -> io::Result<String> {
    let wanted = task.rsplit('/').next().unwrap_or(task);
    let none = |what: String| io::Error::new(io::ErrorKind::NotFound, what);
    let fitting: Vec<String> = list(data_dir).into_iter().filter(|id| id.starts_with(wanted)).collect();
    let id = match &fitting[..] {
        [id] => id,
        [] => return Err(none(format!("no task that has a network namespace here begins with {wanted}"))),
        several => return Err(none(format!("{} tasks here begin with {wanted}", several.len()))),
    };
    let namespace = Namespace::pinned(&Pins::new(data_dir).path(id))
        .map_err(|error| io::Error::new(error.kind(), format!("the network of task {id}: {error}")))?;
    let inside = Netlink::inside(&namespace, tracker).await?;
    let mut text = format!("task {id}\n");
    for link in inside.links().await? {
        let state = if link.is_up { "up" } else { "down" };
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        let _ = writeln!(text, "interface {} {state} {mac}", link.name);
        for address in inside.addresses(&link.name).await? {
            let _ = writeln!(text, "  address {address}");
        }
    }
    for route in inside.routes().await? {
        let _ = writeln!(text, "route {route}");
    }
    let rules = guard::count(&namespace).await?;
    let _ = writeln!(text, "rules {} ingress, {} egress", rules.0, rules.1);
    let link = inside.link(ENDPOINT_LINK).await?.is_some_and(|link| link.is_up);
    let _ = writeln!(text, "link to the agent's endpoint {}", if link { "up" } else { "missing" });
    if let Some(address) = endpoint {
        let reached = match namespace.enter(move || Ok(TcpStream::connect_timeout(&address, ANSWER))).await? {
            Ok(_) => "answers".to_owned(),
            Err(error) => format!("does not answer: {error}"),
        };
        let _ = writeln!(text, "the agent's endpoint {address} {reached}");
    }
    Ok(text)
}
