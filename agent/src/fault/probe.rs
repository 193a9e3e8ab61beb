//! What this kernel can do: each thing is done once, in a namespace that is thrown away.

use std::collections::BTreeSet;
use std::io;

use berth_core::attachment::Direction;
use berth_core::units::Protocol;

use super::{Hole, Impairment, Kind, plan};
use crate::network::netlink::Netlink;
use crate::network::netns::{Namespace, on_own_thread};
use crate::supervise::Tracker;

const TABLE: &str = "berth-fault-probe";
const LINK: &str = "lo";

/// The kinds of faults that work.
pub async fn kinds(tracker: &Tracker) -> BTreeSet<Kind> {
    let tracker = tracker.clone();
    let tried = on_own_thread(move || async move {
        let namespace = Namespace::fresh().await?;
        let mut working = BTreeSet::new();
        match namespace.enter(hole).await {
            Ok(()) => {
                working.insert(Kind::BlackHole);
            }
            Err(error) => {
                tracing::info!(%error, "tasks cannot make black holes: nf_tables does not work here");
            }
        }
        let links = Netlink::inside(&namespace, &tracker).await?;
        match impairment(&links).await {
            Ok(()) => working.extend([Kind::Latency, Kind::PacketLoss]),
            Err(error) => {
                tracing::info!(%error, "tasks cannot delay or lose packets: this kernel lacks netem, prio or u32");
            }
        }
        Ok::<_, io::Error>(working)
    });
    tried.await.flatten().unwrap_or_else(|error| {
        tracing::info!(%error, "tasks cannot break their networks: CAP_SYS_ADMIN and CAP_NET_ADMIN are needed");
        BTreeSet::new()
    })
}

fn hole() -> io::Result<()> {
    let hole = Hole { direction: Direction::Ingress, protocol: Protocol::Tcp, port: 1 };
    let chain = plan::chain(TABLE, hole);
    chain.add(hole.direction, &plan::rules(hole, &[], None))?;
    plan::note(TABLE, Kind::Latency, LINK).note()
}

async fn impairment(links: &Netlink) -> io::Result<()> {
    for discipline in plan::disciplines(Impairment::Loss(1)) {
        links.discipline(LINK, &discipline).await?;
    }
    let everywhere = berth_core::attachment::Cidr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0);
    for filter in plan::filters(everywhere.as_slice(), &[]) {
        links.filter(LINK, &filter).await?;
    }
    Ok(())
}
