//! What expressions mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_core::resources::Resources;
use berth_core::units::Timestamp;

use super::Query;
use crate::model::{Instance, InstanceStatus};
use crate::scheduler::candidate::Candidate;

fn candidate() -> Candidate {
    let instance = Instance {
        arn: "arn:aws:ecs:r:1:container-instance/default/a".to_owned(),
        cluster: "default".to_owned(),
        host_key: "k".to_owned(),
        host_id: String::new(),
        status: InstanceStatus::Active,
        drained_by_host: false,
        version: 1,
        total: Resources::default(),
        attributes: [("stack", "prod"), ("ecs.instance-type", "t2.micro"), ("flag", ""), ("size", "12")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        agent_version: "1.10.2".to_owned(),
        agent_hash: String::new(),
        engine_version: String::new(),
        hostname: String::new(),
        tags: BTreeMap::new(),
        registered_at: Timestamp(1_529_280_000_000), // 2018-06-18T00:00:00Z
        gpu_ids: Vec::new(),
        outbox: crate::model::OutboxCursor::default(),
        estranged: false,
    };
    Candidate {
        instance: Arc::new(instance),
        connected: true,
        in_use: Resources::default(),
        live: 2,
        running: 1,
        groups: [("family:web".to_owned(), 2)].into(),
    }
}

#[test]
fn expressions_mean_what_the_guide_says() {
    let candidate = candidate();
    for (text, expected) in [
        ("attribute:stack == prod", true),
        ("attribute:stack equals 'prod'", true),
        ("attribute:stack != prod", false),
        ("attribute:nothing != prod", false),
        ("!(attribute:nothing == prod)", true),
        ("attribute:flag exists", true),
        ("attribute:flag !exists", false),
        ("attribute:nothing not_exists", true),
        ("attribute:ecs.instance-type =~ t2.*", true),
        ("attribute:ecs.instance-type =~ t2", false),
        ("attribute:ecs.instance-type !~ \"g[0-9].*\"", true),
        ("attribute:stack in [test, prod]", true),
        ("attribute:stack not_in [test,prod]", false),
        ("attribute:stack !in [test]", true),
        ("attribute:size > 9", true),
        ("attribute:stack==prod&&attribute:flag exists", true),
        ("attribute:stack == test or agentConnected == true and runningTasksCount <= 1", true),
        ("agentVersion > 1.9", true),
        ("agentVersion == 1.10.2", true),
        ("registeredAt >= 2018-06-18", true),
        ("registeredAt > 2018-06-18T00:00:01", false),
        ("registeredAt < 2018-06-18T09:00:01+09:00", true),
        ("runningTasksCount < 1", false),
        ("task:group == family:web", true),
        ("task:group != family:web", false),
        ("not (task:group == family:db)", true),
    ] {
        let query = Query::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(query.matches(&candidate, Timestamp(0)), expected, "{text}");
    }
}

#[test]
fn what_is_no_expression_is_refused_with_the_place() {
    for (text, at) in [
        ("", 1),
        ("attribute:", 1),
        ("attribute:a ==", 15),
        ("attribute:a == b c", 18),
        ("(attribute:a == b", 18),
        ("attribute:a in b", 16),
        ("attribute:a == [b]", 16),
        ("attribute:a =~ (", 16),
        ("attribute:a == 'b", 16),
        ("nonsense == 1", 1),
        ("runningTasksCount > many", 21),
    ] {
        let error = Query::parse(text).unwrap_err();
        assert_eq!(error.at, at, "{text}: {error}");
    }
    assert!(Query::parse(&"!".repeat(1999)).is_err());
    assert!(Query::parse(&"a".repeat(2001)).is_err());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,60}") {
        let _ = Query::parse(&text);
    }

    #[test]
    fn nor_does_one_of_its_own_words(words in proptest::collection::vec(proptest::sample::select(vec![
        "attribute:a", "task:group", "==", "!=", "in", "[", "]", "(", ")", "!", "&&", "or", "x", "'y'", ",", "exists", "=~",
    ]), 0..20)) {
        let _ = Query::parse(&words.join(" "));
    }
}
