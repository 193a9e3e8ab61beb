//! How an operation is called where it is told that it failed.

use std::fmt;

use super::plan::Operation;

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pair { inner, .. } => write!(f, "making the link {inner}"),
            Self::Vlan { parent, id, .. } => write!(f, "making VLAN {id} of {parent}"),
            Self::Child { parent, .. } => write!(f, "making an interface of {parent}"),
            Self::Take { mac } => write!(f, "taking the interface with the address {mac}"),
            Self::Switches { .. } => f.write_str("setting what the kernel has under /proc/sys/net"),
            Self::Frames { link, .. } => write!(f, "looking at the frames of {link}"),
            Self::Ask { link, .. } => write!(f, "asking who has the addresses of {link}"),
            Self::Guard => f.write_str("putting the security groups in force"),
            Self::Files => f.write_str("writing hosts, hostname and resolv.conf"),
            Self::Claim => f.write_str("taking the addresses"),
            Self::Announce { link } => write!(f, "telling the neighbours of the addresses of {link}"),
            Self::Mtu { link, bytes } => write!(f, "setting the largest packet of {link} to {bytes} bytes"),
            Self::Up { link, .. } => write!(f, "switching {link} on"),
            Self::Address { link, address } => write!(f, "giving {link} the address {address}"),
            Self::Route { to: Some(to), link, .. } => write!(f, "making the route to {to} by {link}"),
            Self::Route { to: None, link, .. } => write!(f, "making the default route by {link}"),
            Self::Blackhole { to } => write!(f, "closing the way to {to}"),
        }
    }
}
