//! What a task finds inside its namespaces beside links: its files of names and resolvers, and the
//! kernel's switches.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use berth_core::attachment::Attachment;

/// Sets how the network namespace of the thread treats its addresses (kernel documentation,
/// networking/ip-sysctl): neighbours are told of new ones, and are asked beforehand by the agent, not
/// by the kernel, which would take a second.
pub(super) fn set_switches(ipv6: bool, controls: &[(String, String)]) -> io::Result<()> {
    let set = |path: &str, value: &str| fs::write(Path::new("/proc/sys/net").join(path), value);
    set("ipv4/conf/all/arp_notify", "1")?;
    if ipv6 {
        for which in ["all", "default", "lo"] {
            set(&format!("ipv6/conf/{which}/disable_ipv6"), "0")?;
        }
        for which in ["all", "default"] {
            set(&format!("ipv6/conf/{which}/accept_dad"), "0")?;
        }
        set("ipv6/conf/all/ndisc_notify", "1")?;
    }
    for (name, value) in controls {
        let path = control_path(name).ok_or_else(|| io::Error::other(format!("{name} is no name")))?;
        set(&path, value)
            .map_err(|error| io::Error::new(error.kind(), format!("{name} = {value}: {error}")))?;
    }
    Ok(())
}

/// The file of a kernel parameter below `/proc/sys/net`: its name has dots for slashes, and slashes for
/// dots (sysctl(8)).
fn control_path(name: &str) -> Option<String> {
    let below = name.strip_prefix("net.")?;
    let path: String = below
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    path.split('/').all(|part| !part.is_empty() && part != ".." && part != ".").then_some(path)
}

/// Writes the task's own `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`. The engine gives a
/// container that joins another's network those of the holder, so they are changed in place.
pub(super) fn tell(holder: u32, attachment: &Attachment) -> io::Result<()> {
    let etc = Path::new("/proc").join(holder.to_string()).join("root/etc");
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if !attachment.hostname.is_empty() {
        for address in &attachment.addresses {
            hosts.push_str(&format!("{}\t{}\n", address.address, attachment.hostname));
        }
        overwrite(&etc.join("hostname"), &format!("{}\n", attachment.hostname))?;
    }
    overwrite(&etc.join("hosts"), &hosts)?;
    overwrite(&etc.join("resolv.conf"), &resolver(attachment))
}

fn resolver(attachment: &Attachment) -> String {
    if attachment.dns_servers.is_empty() {
        return fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    }
    let mut text = String::new();
    for server in &attachment.dns_servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !attachment.dns_search_domains.is_empty() {
        text.push_str(&format!("search {}\n", attachment.dns_search_domains.join(" ")));
    }
    text
}

/// The same file with another content: it is mounted in several places.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::control_path;

    #[test]
    fn a_parameter_is_a_file_below_net_and_nowhere_else() {
        assert_eq!(control_path("net.core.somaxconn").as_deref(), Some("core/somaxconn"));
        assert_eq!(
            control_path("net.ipv4.conf.eth0/1.arp_notify").as_deref(),
            Some("ipv4/conf/eth0.1/arp_notify")
        );
        for bad in ["kernel.shmmax", "net.", "net.//.//.kernel", "net..ipv4"] {
            assert_eq!(control_path(bad), None, "{bad}");
        }
    }
}
