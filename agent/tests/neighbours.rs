//! What the neighbours on a link are asked, on a real kernel: two namespaces with a pair of links between them.
//!
//! Needs root; without it the tests fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::IpAddr;
use std::time::Duration;

use berth_agent::network::netlink::Netlink;
use berth_agent::network::netns::Namespace;
use berth_agent::supervise::Tracker;

const NEAR: &str = "near0";
const FAR: &str = "far0";
const ADDRESS: &str = "10.9.8.7";
/// Long enough for an answer from the same host.
const PATIENCE: Duration = Duration::from_secs(1);

/// Two links that work, each in a namespace of its own.
struct Wire {
    tracker: Tracker,
    namespace: Namespace,
    near: Netlink,
    far: Netlink,
    _other: Namespace,
}

impl Wire {
    async fn new() -> Self {
        let tracker = Tracker::new();
        let (namespace, other) = (Namespace::fresh().await.unwrap(), Namespace::fresh().await.unwrap());
        let far = Netlink::inside(&other, &tracker).await.unwrap();
        far.pair(FAR, "berth-test", NEAR, None, &namespace).await.unwrap();
        far.up(FAR).await.unwrap();
        let near = Netlink::inside(&namespace, &tracker).await.unwrap();
        near.up(NEAR).await.unwrap();
        // Without it the kernel takes no answers.
        near.up("lo").await.unwrap();
        Self { tracker, namespace, near, far, _other: other }
    }

    /// Whoever has the address, as the one who asks last hears it, after others that were not left to hear it.
    async fn asked(&self, times: usize) -> Option<IpAddr> {
        let address: IpAddr = ADDRESS.parse().unwrap();
        let mut last = None;
        for _ in 0..times {
            let question = self.near.ask(&self.namespace, NEAR, vec![address], &self.tracker);
            last = Some(question.await.unwrap());
        }
        last.unwrap().answer(PATIENCE).await.unwrap().map(|neighbour| neighbour.address)
    }
}

#[tokio::test]
async fn a_question_that_nobody_was_left_to_hear_the_answer_of_is_asked_again() {
    let wire = Wire::new().await;
    for times in 1..=3 {
        assert_eq!(wire.asked(times).await, None, "asked {times} times");
    }
    wire.far.address(FAR, format!("{ADDRESS}/24").parse().unwrap()).await.unwrap();
    for times in 1..=3 {
        assert_eq!(wire.asked(times).await, ADDRESS.parse().ok(), "asked {times} times");
    }
}
