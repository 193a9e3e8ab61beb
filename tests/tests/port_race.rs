//! Promise: a host port that the agent chooses is bound by its container, whatever else on the host
//! reaches for the same ports at the same time.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow, ensure};
use berth_tests::cluster::host_port;
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, demo};
use serde_json::json;

/// The agent's range in this test, and that of whoever competes with it.
const RANGE: (u16, u16) = (24_100, 24_129);
const TASKS: usize = 10;

/// Binds and lets go of ports of the range until it is dropped.
struct Rival {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    bound: Arc<AtomicU32>,
}

impl Rival {
    fn start() -> Self {
        let (stop, bound) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let threads = (0..2_u16)
            .map(|offset| {
                let (stop, bound) = (Arc::clone(&stop), Arc::clone(&bound));
                thread::spawn(move || {
                    let mut port = RANGE.0 + offset;
                    while !stop.load(Ordering::Relaxed) {
                        port = if port + 3 > RANGE.1 { RANGE.0 + offset } else { port + 3 };
                        if let Ok(listener) = TcpListener::bind(("0.0.0.0", port)) {
                            bound.fetch_add(1, Ordering::Relaxed);
                            // Long enough to be in the way of a container that starts now.
                            thread::park_timeout(std::time::Duration::from_millis(3));
                            drop(listener);
                        }
                    }
                })
            })
            .collect();
        Self { stop, threads, bound }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[tokio::test]
async fn chosen_ports_are_had_though_others_reach_for_them() -> Result<()> {
    let range = format!("{}-{}", RANGE.0, RANGE.1);
    let cluster = Cluster::start_with(&[("ECS_DYNAMIC_HOST_PORT_RANGE", &range)]).await?;
    let one = demo::container_with("one", &[], json!({ "portMappings": [{ "containerPort": 8080 }] }));
    let definition = cluster.register(demo::task("race", "bridge", json!([one]))).await?;
    let rival = Rival::start();
    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        tasks.push(cluster.run_definition(&definition).await?);
    }
    let mut ports = BTreeSet::new();
    for arn in &tasks {
        let task = cluster.until(arn, "RUNNING", PATIENCE).await?;
        ports.insert(host_port(&task, "one", 8080, "tcp")?);
    }
    ensure!(rival.bound.load(Ordering::Relaxed) > 0, "nobody competed");
    ensure!(ports.len() == TASKS, "two tasks share a port: {ports:?}");
    let strangers: Vec<_> = ports.iter().filter(|port| !(RANGE.0..=RANGE.1).contains(*port)).collect();
    strangers.is_empty().then_some(()).ok_or_else(|| anyhow!("outside the range: {strangers:?}"))
}
