//! What is to be done for a task's interface, as data: operations in order. Decides; touches nothing.
//! What is made outside the task's namespace has the task's id, the subnet's or the agent's in its
//! name, so that it is found again from these alone.

use std::net::{IpAddr, Ipv4Addr};

use berth_core::attachment::{Attachment, Cidr, MacAddress, Provider};
use berth_core::spec::TaskSpec;

/// The name of the task's interface inside.
pub const INTERFACE: &str = "eth0";
/// The name inside of the link to the agent's endpoint, as ECS has it.
pub const ENDPOINT_LINK: &str = "ecs-eth0";
/// Where the endpoint is.
pub const ENDPOINT: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);
/// The instance metadata service of clouds.
pub const INSTANCE_METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Where an operation takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The host's own network.
    Host,
    /// The namespace of the subnet's bridge.
    Fabric,
    /// The task's namespace.
    Task,
}

/// How a child is made of another interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    /// With a hardware address of its own.
    Macvlan(MacAddress),
    /// With that of its parent.
    Ipvlan,
}

/// One step. Each may have been done before: done again, it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A pair of links, one end in the task's namespace under its final name.
    Pair {
        /// Where the outer end is.
        outside: Place,
        /// The outer end's name.
        outer: String,
        /// The bridge that the outer end is a port of.
        bridge: Option<String>,
        /// The inner end's name.
        inner: &'static str,
        /// The inner end's hardware address; the kernel's choice where absent.
        mac: Option<MacAddress>,
    },
    /// A VLAN of an interface of the host, which the tasks of a subnet share.
    Vlan {
        /// The interface of the host.
        parent: String,
        /// The VLAN's number.
        id: u16,
        /// The link's name.
        name: String,
    },
    /// A child of an interface of the host, born in the task's namespace.
    Child {
        /// The interface of the host.
        parent: String,
        /// How it is made.
        child: Child,
    },
    /// An interface that somebody else plugs into the host moves into the task's namespace.
    Take {
        /// Its hardware address.
        mac: MacAddress,
    },
    /// How the task's namespace treats its addresses: it tells the neighbours of new ones, and it has
    /// IPv6, which the engine turns off in namespaces without a network of its own, where wanted.
    Switches {
        /// Whether there is IPv6.
        ipv6: bool,
        /// What the task's definition sets beyond that: name and value.
        controls: Vec<(String, String)>,
    },
    /// What a task puts on the wire is its own: looked at where frames leave by its interface, or come
    /// in by the far end of that.
    Frames {
        /// Where.
        place: Place,
        /// The link.
        link: String,
    },
    /// Who among the neighbours has these addresses? Answered at [`Operation::Claim`].
    Ask {
        /// The link, in the task's namespace.
        link: &'static str,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// The security groups are in force.
    Guard,
    /// The task's files say what its name, its addresses and its resolvers are.
    Files,
    /// The addresses are the task's, unless a neighbour has said that they are his.
    Claim,
    /// The neighbours are told of the addresses.
    Announce {
        /// The link, in the task's namespace.
        link: &'static str,
    },
    /// The largest packet.
    Mtu {
        /// The link, in the task's namespace.
        link: &'static str,
        /// In bytes.
        bytes: u32,
    },
    /// A link begins to work.
    Up {
        /// Where.
        place: Place,
        /// The link.
        link: String,
    },
    /// An address of a link in the task's namespace.
    Address {
        /// The link.
        link: &'static str,
        /// The address and its network.
        address: Cidr,
    },
    /// A route.
    Route {
        /// Where.
        place: Place,
        /// To whom; to everybody where absent.
        to: Option<Cidr>,
        /// By which neighbour; directly where absent.
        via: Option<IpAddr>,
        /// By which link.
        link: String,
    },
    /// Packets to there are thrown away, in the task's namespace.
    Blackhole {
        /// To whom.
        to: Cidr,
    },
}

/// What the host adds to an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Names the agent among those of the host.
    pub agent: String,
    /// The interface that children are made of.
    pub parent: String,
    /// The task's address on the link to the endpoint.
    pub endpoint_address: Ipv4Addr,
    /// The endpoint's port, where there is one.
    pub endpoint_port: Option<u16>,
    /// Whether the instance metadata service is hidden from the task.
    pub blocks_instance_metadata: bool,
}

/// The note on a link: whose it is, so that only what is ours is ever removed.
#[must_use]
pub fn note(agent: &str, whose: &str) -> String {
    format!("berth:{agent}:{whose}")
}

/// The name of something of a task's in the host's network: short enough for a link's, and found
/// again from the task's id alone.
#[must_use]
pub fn link_name(prefix: &str, task_id: &str) -> String {
    format!("{prefix}{}", task_id.get(..10).unwrap_or(task_id))
}

/// The name of the host's end of a task's link to the endpoint.
#[must_use]
pub fn endpoint_name(task_id: &str) -> String {
    link_name("be", task_id)
}

/// How the names of a bridge's ports begin.
const PORT: &str = "bv";

/// The name of a task's port of its subnet's bridge.
#[must_use]
pub fn port_name(task_id: &str) -> String {
    link_name(PORT, task_id)
}

/// Whether a port of a bridge is a task's.
#[must_use]
pub fn is_port(name: &str) -> bool {
    name.starts_with(PORT)
}

/// The name of the host's link into the bridge that an agent keeps for a subnet.
#[must_use]
pub fn bridge_name(agent: &str, subnet_id: &str) -> String {
    format!("bt{:010x}", hash(&format!("{agent}\0{subnet_id}")) & 0xff_ffff_ffff)
}

/// The name of the host's link to a VLAN that an agent makes for the tasks in it.
#[must_use]
pub fn vlan_name(agent: &str, id: u16) -> String {
    format!("bl{id}.{:06x}", hash(agent) & 0xff_ffff)
}

/// A name that is the same for the same agent, and for another another.
#[must_use]
pub fn agent_name(agent: &str) -> String {
    format!("{:016x}", hash(agent))
}

/// A number that is the same for the same agent, and for another most likely another.
#[must_use]
pub fn spread(agent: &str) -> u32 {
    u32::try_from(hash(agent) & 0xffff).unwrap_or_default()
}

/// FNV-1a: the same after every restart.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Everything that is to be done for the interface of a task. The neighbours are asked as soon as the
/// link works, and have until everything else is done to answer.
#[must_use]
pub fn operations(
    task_id: &str,
    attachment: &Attachment,
    controls: Vec<(String, String)>,
    site: &Site,
) -> Vec<Operation> {
    let ipv6 = attachment.addresses.iter().any(|address| address.address.is_ipv6());
    let mut operations = vec![
        Operation::Up { place: Place::Task, link: "lo".to_owned() },
        Operation::Switches { ipv6, controls },
    ];
    operations.extend(interface(task_id, attachment, site));
    if let Some(bytes) = attachment.mtu {
        operations.push(Operation::Mtu { link: INTERFACE, bytes });
    }
    operations.push(Operation::Guard);
    operations.push(Operation::Up { place: Place::Task, link: INTERFACE.to_owned() });
    let addresses = attachment.addresses.iter().map(|address| address.address).collect();
    operations.push(Operation::Ask { link: INTERFACE, addresses });
    operations.extend(endpoint(task_id, site));
    if site.blocks_instance_metadata {
        operations.extend(host(INSTANCE_METADATA).map(|to| Operation::Blackhole { to }));
    }
    operations.extend([Operation::Files, Operation::Claim]);
    operations.extend(
        attachment.addresses.iter().map(|address| Operation::Address { link: INTERFACE, address: *address }),
    );
    operations.extend(attachment.gateways.iter().map(|gateway| Operation::Route {
        place: Place::Task,
        to: None,
        via: Some(*gateway),
        link: INTERFACE.to_owned(),
    }));
    operations.push(Operation::Announce { link: INTERFACE });
    operations
}

/// What a task's containers set of their common network: the kernel's parameters below `net`. Two that
/// set the same one agree, or the later wins.
#[must_use]
pub fn network_controls(task: &TaskSpec) -> Vec<(String, String)> {
    let all = task.containers.iter().flat_map(|container| &container.system_controls);
    all.filter(|(name, _)| name.starts_with("net.")).cloned().collect()
}

fn interface(task_id: &str, attachment: &Attachment, site: &Site) -> Vec<Operation> {
    let frames = || Operation::Frames { place: Place::Task, link: INTERFACE.to_owned() };
    let child = |child| vec![Operation::Child { parent: site.parent.clone(), child }, frames()];
    match attachment.provider {
        Provider::HotPlug => vec![Operation::Take { mac: attachment.mac }, frames()],
        Provider::Vlan { id } => {
            let name = vlan_name(&site.agent, id);
            vec![
                Operation::Vlan { parent: site.parent.clone(), id, name: name.clone() },
                Operation::Up { place: Place::Host, link: name.clone() },
                Operation::Child { parent: name, child: Child::Macvlan(attachment.mac) },
                frames(),
            ]
        }
        Provider::Macvlan => child(Child::Macvlan(attachment.mac)),
        Provider::Ipvlan => child(Child::Ipvlan),
        Provider::Veth => {
            let outer = port_name(task_id);
            vec![
                Operation::Pair {
                    outside: Place::Fabric,
                    outer: outer.clone(),
                    bridge: Some(bridge_name(&site.agent, &attachment.subnet_id)),
                    inner: INTERFACE,
                    mac: Some(attachment.mac),
                },
                // Beyond the reach of what is in the task's namespace.
                Operation::Frames { place: Place::Fabric, link: outer.clone() },
                Operation::Up { place: Place::Fabric, link: outer },
            ]
        }
    }
}

fn endpoint(task_id: &str, site: &Site) -> Vec<Operation> {
    let outer = endpoint_name(task_id);
    let mut operations = vec![
        Operation::Pair {
            outside: Place::Host,
            outer: outer.clone(),
            bridge: None,
            inner: ENDPOINT_LINK,
            mac: None,
        },
        Operation::Up { place: Place::Host, link: outer.clone() },
        Operation::Up { place: Place::Task, link: ENDPOINT_LINK.to_owned() },
    ];
    if let (Some(own), Some(there)) = (host(site.endpoint_address), host(ENDPOINT)) {
        operations.push(Operation::Address { link: ENDPOINT_LINK, address: own });
        let inside = ENDPOINT_LINK.to_owned();
        operations.push(Operation::Route { place: Place::Task, to: Some(there), via: None, link: inside });
        operations.push(Operation::Route { place: Place::Host, to: Some(own), via: None, link: outer });
    }
    operations
}

fn host(address: Ipv4Addr) -> Option<Cidr> {
    Cidr::new(address.into(), 32)
}

#[cfg(test)]
mod tests {
    use berth_core::units::Millis;

    use super::*;

    fn attachment(provider: Provider) -> Attachment {
        Attachment {
            id: "a".to_owned(),
            interface_id: "eni-1".to_owned(),
            subnet_id: "subnet-1".to_owned(),
            provider,
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            addresses: vec!["10.0.0.5/24".parse().unwrap(), "fd00::5/64".parse().unwrap()],
            gateways: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            dns_servers: Vec::new(),
            dns_search_domains: Vec::new(),
            hostname: "ip-10-0-0-5".to_owned(),
            mtu: Some(1400),
            patience: Millis(1000),
            security_groups: Vec::new(),
        }
    }

    fn site() -> Site {
        Site {
            agent: "/data".to_owned(),
            parent: "ens5".to_owned(),
            endpoint_address: Ipv4Addr::new(169, 254, 172, 9),
            endpoint_port: Some(80),
            blocks_instance_metadata: true,
        }
    }

    const TASK: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn an_address_is_used_when_the_neighbours_were_asked_and_the_guard_is_up() {
        let operations = operations(TASK, &attachment(Provider::Macvlan), Vec::new(), &site());
        let at = |wanted: &dyn Fn(&Operation) -> bool| operations.iter().position(wanted).unwrap();
        let up = at(&|o| *o == Operation::Up { place: Place::Task, link: INTERFACE.to_owned() });
        let ask = at(&|o| matches!(o, Operation::Ask { .. }));
        let claim = at(&|o| *o == Operation::Claim);
        let address = at(&|o| matches!(o, Operation::Address { link: INTERFACE, .. }));
        assert!(at(&|o| *o == Operation::Guard) < up);
        assert!(at(&|o| matches!(o, Operation::Frames { .. })) < up);
        assert!(up < ask && ask < claim && claim < address);
        assert!(address < at(&|o| matches!(o, Operation::Route { to: None, .. })));
        let blackhole = Operation::Blackhole { to: "169.254.169.254/32".parse().unwrap() };
        assert!(operations.contains(&blackhole));
    }

    #[test]
    fn names_fit_a_link_and_are_found_again() {
        assert_eq!(link_name("be", TASK), "be0123456789");
        assert_eq!(bridge_name("/data", "subnet-1"), bridge_name("/data", "subnet-1"));
        assert_ne!(bridge_name("/data", "subnet-1"), bridge_name("/data", "subnet-2"));
        assert_ne!(bridge_name("/data", "subnet-1"), bridge_name("/other", "subnet-1"));
        assert!(bridge_name("/data", "subnet-1").len() <= 15);
    }
}
