//! Host ports that the agent chooses, without a race: a chosen port is held by a bound socket until
//! the moment the engine is told to start the container, and no two containers are given the same.
//!
//! Between letting go and the engine's own bind somebody else can still be faster. The engine then
//! refuses to start, and the core asks for other ports.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use berth_core::ids::{ContainerName, TaskArn};
use berth_core::spec::PortMapping;
use berth_core::task::PortBinding;
use berth_core::units::{PortRange, Protocol};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

/// Why no port was chosen.
#[derive(Debug, thiserror::Error)]
#[error("no {count} consecutive free {protocol} host ports in {range} (ECS_DYNAMIC_HOST_PORT_RANGE)")]
pub struct NoPorts {
    count: u16,
    protocol: Protocol,
    range: PortRange,
}

type Owner = (TaskArn, ContainerName);

/// Keeps a port from everybody else for as long as what it returns is there.
type Hold = fn(Protocol, u16) -> io::Result<Vec<OwnedFd>>;

/// Chooses and holds host ports.
#[derive(Debug)]
pub struct PortChooser {
    range: PortRange,
    hold: Hold,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Who has which port, from the choice until the task is gone.
    taken: HashMap<(Protocol, u16), Owner>,
    /// Sockets that keep chosen ports from others until the container starts.
    held: HashMap<Owner, Vec<OwnedFd>>,
    /// Where the next search begins: a port that was just given back rests for a while.
    next: u16,
}

impl PortChooser {
    /// A chooser of ports within `range`.
    #[must_use]
    pub fn new(range: PortRange) -> Self {
        Self::holding(range, hold)
    }

    /// The same where there is no host: for simulations, which have nobody else on it.
    #[must_use]
    pub fn simulated(range: PortRange) -> Self {
        Self::holding(range, |_, _| Ok(Vec::new()))
    }

    fn holding(range: PortRange, hold: Hold) -> Self {
        Self { range, hold, inner: Mutex::new(Inner { next: range.first(), ..Inner::default() }) }
    }

    /// Chooses host ports for those mappings of a container that leave them open, and holds them.
    /// Ports that the container had before are given back first.
    ///
    /// # Errors
    /// [`NoPorts`] when the range has no room.
    pub fn choose(
        &self,
        task: &TaskArn,
        container: &ContainerName,
        mappings: &[PortMapping],
    ) -> Result<Vec<PortBinding>, NoPorts> {
        let owner = (task.clone(), container.clone());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.give_back(&owner);
        let mut chosen = Vec::new();
        for mapping in mappings.iter().filter(|m| m.host.is_none()) {
            let Some(host_ports) = inner.find(self.range, self.hold, mapping, &owner) else {
                inner.give_back(&owner);
                return Err(NoPorts {
                    count: mapping.container.count(),
                    protocol: mapping.protocol,
                    range: self.range,
                });
            };
            chosen.push(PortBinding {
                container: container.clone(),
                container_ports: mapping.container,
                host_ports,
                protocol: mapping.protocol,
            });
        }
        Ok(chosen)
    }

    /// Lets go of the sockets, for the engine to bind the ports. They stay the container's.
    pub fn hand_over(&self, task: &TaskArn, container: &ContainerName) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.held.remove(&(task.clone(), container.clone()));
    }

    /// Takes note of ports that a container has already.
    pub fn adopt(&self, task: &TaskArn, bindings: &[PortBinding]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for binding in bindings {
            for port in binding.host_ports.ports() {
                inner.taken.insert((binding.protocol, port), (task.clone(), binding.container.clone()));
            }
        }
    }

    /// Gives back what a container has.
    pub fn give_back(&self, task: &TaskArn, container: &ContainerName) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.give_back(&(task.clone(), container.clone()));
    }
}

impl Inner {
    fn give_back(&mut self, owner: &Owner) {
        self.held.remove(owner);
        self.taken.retain(|_, who| who != owner);
    }

    fn find(
        &mut self,
        range: PortRange,
        hold: Hold,
        mapping: &PortMapping,
        owner: &Owner,
    ) -> Option<PortRange> {
        let count = mapping.container.count();
        let last_start = range.last().checked_sub(count - 1).filter(|last| *last >= range.first())?;
        let from = self.next.clamp(range.first(), last_start);
        for first in (from..=last_start).chain(range.first()..from) {
            let wanted = PortRange::new(first, first + (count - 1))?;
            if wanted.ports().any(|port| self.taken.contains_key(&(mapping.protocol, port))) {
                continue;
            }
            let sockets: io::Result<Vec<Vec<OwnedFd>>> =
                wanted.ports().map(|port| hold(mapping.protocol, port)).collect();
            if let Ok(sockets) = sockets {
                self.taken.extend(wanted.ports().map(|port| ((mapping.protocol, port), owner.clone())));
                self.held.entry(owner.clone()).or_default().extend(sockets.into_iter().flatten());
                self.next = if wanted.last() >= last_start { range.first() } else { wanted.last() + 1 };
                return Some(wanted);
            }
        }
        None
    }
}

/// Binds a port on every address of the host, so that nobody else can.
fn hold(protocol: Protocol, port: u16) -> io::Result<Vec<OwnedFd>> {
    let v4 = hold_on(protocol, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    match hold_on(protocol, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Ok(v6) => Ok(vec![v4, v6]),
        // A host without IPv6.
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)) => {
            Ok(vec![v4])
        }
        Err(e) => Err(e),
    }
}

fn hold_on(protocol: Protocol, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn owner(n: u32) -> (TaskArn, ContainerName) {
        (
            TaskArn::new(format!("arn:aws:ecs:r:1:task/c/{n:032x}")).unwrap(),
            ContainerName::new("web").unwrap(),
        )
    }

    fn dynamic(container: &str, protocol: Protocol) -> PortMapping {
        PortMapping { container: PortRange::parse(container).unwrap(), host: None, protocol }
    }

    #[test]
    fn a_chosen_port_is_held_until_it_is_handed_over() {
        let chooser = PortChooser::new(PortRange::parse("20100-20199").unwrap());
        let (task, web) = owner(1);
        let chosen = chooser.choose(&task, &web, &[dynamic("80", Protocol::Tcp)]).unwrap();
        let port = chosen[0].host_ports.first();
        assert!(TcpListener::bind(("0.0.0.0", port)).is_err());
        chooser.hand_over(&task, &web);
        assert!(TcpListener::bind(("0.0.0.0", port)).is_ok());
    }

    #[test]
    fn ports_of_others_are_left_alone_and_ranges_are_contiguous() {
        let chooser = PortChooser::new(PortRange::parse("20200-20209").unwrap());
        let _foreign = UdpSocket::bind(("0.0.0.0", 20203)).unwrap();
        let (task, web) = owner(1);
        let chosen = chooser.choose(&task, &web, &[dynamic("5000-5004", Protocol::Udp)]).unwrap();
        assert_eq!(chosen[0].host_ports, PortRange::parse("20204-20208").unwrap());
        let (other, _) = owner(2);
        let refused = chooser.choose(&other, &web, &[dynamic("5000-5004", Protocol::Udp)]).unwrap_err();
        assert!(refused.to_string().contains("ECS_DYNAMIC_HOST_PORT_RANGE"));
        chooser.give_back(&task, &web);
        assert!(chooser.choose(&other, &web, &[dynamic("5000-5004", Protocol::Udp)]).is_ok());
    }

    #[test]
    fn no_two_containers_get_the_same_port() {
        let chooser = PortChooser::new(PortRange::parse("20300-20349").unwrap());
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..50 {
            let (task, web) = owner(n);
            let chosen = chooser.choose(&task, &web, &[dynamic("80", Protocol::Tcp)]).unwrap();
            chooser.hand_over(&task, &web);
            assert!(seen.insert(chosen[0].host_ports.first()));
        }
    }
}
