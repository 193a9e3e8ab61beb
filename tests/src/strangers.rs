//! Who else is near a host: a machine beside it on a wire, and what a process of the host listens at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::endpoint::Inside;
use crate::vpc::ip;

/// A network of its own with one wire to this host, as a machine beside it has. Ends with its value.
#[derive(Debug)]
pub struct Neighbour {
    process: Child,
    link: String,
    /// The address of the host on the wire.
    pub host: String,
}

impl Neighbour {
    /// A neighbour whose default route is the host.
    ///
    /// # Errors
    /// When there can be no such network.
    pub fn start() -> Result<Self> {
        let pid = std::process::id();
        // A network of four addresses, which is nobody else's of those that run at the same time.
        let of = |nth: u32| format!("10.255.{}.{}", pid / 64 % 256, pid % 64 * 4 + nth);
        let (host, own) = (of(1), of(2));
        let link = format!("stranger{}", pid % 100_000);
        let process = Command::new("unshare")
            .args(["--net", "sleep", "3600"])
            .stdin(Stdio::null())
            .spawn()
            .context("a network of its own")?;
        let (inside, made) = (process.id().to_string(), Self { process, link, host });
        let home = fs::read_link("/proc/self/ns/net")?;
        // `unshare` becomes the program once it is there.
        while fs::read_link(format!("/proc/{inside}/ns/net"))? == home {
            std::thread::yield_now();
        }
        ip(&["link", "add", &made.link, "type", "veth", "peer", "name", "eth0", "netns", &inside])?;
        ip(&["address", "add", &format!("{}/30", made.host), "dev", &made.link])?;
        ip(&["link", "set", &made.link, "up"])?;
        for words in [
            &["address", "add", &format!("{own}/30"), "dev", "eth0"][..],
            &["link", "set", "eth0", "up"],
            &["link", "set", "lo", "up"],
            &["route", "add", "default", "via", &made.host],
        ] {
            let done = Command::new("nsenter")
                .args(["--target", &inside, "--net", "--", "ip"])
                .args(words)
                .output()?;
            ensure!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(made)
    }

    /// Where requests come from that it makes.
    #[must_use]
    pub fn inside(&self) -> Inside {
        Inside { pid: i64::from(self.process.id()), environment: BTreeMap::new() }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // The link goes with the network, the network with its last process.
        let _ = ip(&["link", "delete", &self.link]);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Everything that a process listens at: `tcp ADDRESS:PORT`, `udp …`, `unix PATH`.
///
/// # Errors
/// When it is not there.
pub fn listens_at(pid: u32) -> Result<BTreeSet<String>> {
    let mut own = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed meanwhile listens no more.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let text = target.to_string_lossy().into_owned();
        own.extend(text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned));
    }
    let mut found = BTreeSet::new();
    for (protocol, listening) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07"), ("raw", "07")]
    {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{protocol}"))?;
        for line in table.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(at), Some(state), Some(inode)) = (words.get(1), words.get(3), words.get(9)) else {
                continue;
            };
            if *state == listening && own.contains(*inode) {
                found.insert(format!("{protocol} {}", address(at)?));
            }
        }
    }
    for line in fs::read_to_string(format!("/proc/{pid}/net/unix"))?.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        // The flag of a socket that accepts connections.
        if let (Some(&"00010000"), Some(inode)) = (words.get(3), words.get(6))
            && own.contains(*inode)
        {
            found.insert(format!("unix {}", words.get(7).copied().unwrap_or("without a name")));
        }
    }
    Ok(found)
}

/// An address of IPv4 as the kernel's tables have it; one of IPv6 stays as it is there.
fn address(text: &str) -> Result<String> {
    let (host, port) = text.split_once(':').context("an address")?;
    let port = u16::from_str_radix(port, 16)?;
    let Ok(host) = u32::from_str_radix(host, 16) else { return Ok(format!("{host}:{port}")) };
    Ok(format!("{}:{port}", std::net::Ipv4Addr::from(host.to_le_bytes())))
}
