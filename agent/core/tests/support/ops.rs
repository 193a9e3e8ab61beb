//! What can happen in the world, to choose from.

use berth_core::ids::{AttemptId, ContainerName};
use berth_core::task::{Act, ResourceKey};
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::Crash;

/// How an act ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Works,
    Away { effect: bool },
    TimedOut { effect: bool },
    Refused,
    PortTaken,
    NoSuchImage,
}

/// Something happens. Numbers choose among what there is.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// An act has its effect; its answer is on the way.
    Effect(u8),
    /// An act answers.
    Finish(u8, End),
    /// An answer comes a second time.
    Repeat(u8),
    /// A hint arrives, and maybe arrives again.
    Hint {
        which: u8,
        twice: bool,
        keep: bool,
    },
    LoseHint(u8),
    /// The events' connection came back: everything is listed.
    Resync,
    /// A container ends by itself.
    Exit {
        which: u8,
        code: i32,
        oom: bool,
    },
    Health {
        which: u8,
        good: bool,
    },
    Advance(u32),
    Deadline,
    Stop,
    /// The host goes, in so many milliseconds.
    HostGoes(u32),
    Acknowledge,
    Crash {
        at: Crash,
        effects: u16,
    },
    /// The agent dies between two events.
    Restart {
        effects: u16,
    },
    Outage(bool),
    MakeRoom,
    /// Somebody else starts what has stopped, or removes something, or prunes images.
    MeddleStart(u8),
    MeddleRemove(u8),
    Prune,
    /// The container that holds the task's network ends.
    LoseNamespace,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        10 => Just(End::Works),
        2 => any::<bool>().prop_map(|effect| End::Away { effect }),
        1 => any::<bool>().prop_map(|effect| End::TimedOut { effect }),
        1 => Just(End::Refused),
        2 => Just(End::PortTaken),
        1 => Just(End::NoSuchImage),
    ]
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![Just(Crash::BeforePersist), (0..4u8).prop_map(Crash::AfterActs)]
}

/// What can happen while nothing is wrong with the task itself: the engine may be away, the agent
/// may die, hints may get lost.
pub(crate) fn harmless() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any::<u8>().prop_map(Op::Effect),
        12 => any::<u8>().prop_map(|n| Op::Finish(n, End::Works)),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(n, effect)| Op::Finish(n, End::Away { effect })),
        1 => any::<u8>().prop_map(Op::Repeat),
        5 => (any::<u8>(), any::<bool>(), any::<bool>())
            .prop_map(|(which, twice, keep)| Op::Hint { which, twice, keep }),
        1 => any::<u8>().prop_map(Op::LoseHint),
        1 => Just(Op::Resync),
        1 => (0..4_000u32).prop_map(Op::Advance),
        3 => Just(Op::Deadline),
        1 => (crash(), any::<u16>()).prop_map(|(at, effects)| Op::Crash { at, effects }),
        1 => any::<u16>().prop_map(|effects| Op::Restart { effects }),
        1 => any::<bool>().prop_map(Op::Outage),
        1 => Just(Op::MakeRoom),
    ]
}

/// Anything at all.
pub(crate) fn anything() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => harmless(),
        8 => (any::<u8>(), end()).prop_map(|(n, end)| Op::Finish(n, end)),
        2 => (any::<u8>(), prop_oneof![Just(0), Just(1), Just(137)], any::<bool>())
            .prop_map(|(which, code, oom)| Op::Exit { which, code, oom }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(which, good)| Op::Health { which, good }),
        1 => Just(Op::Stop),
        1 => (0..90_000u32).prop_map(Op::HostGoes),
        1 => Just(Op::Acknowledge),
        1 => any::<u8>().prop_map(Op::MeddleStart),
        1 => any::<u8>().prop_map(Op::MeddleRemove),
        1 => Just(Op::Prune),
        1 => Just(Op::LoseNamespace),
    ]
}

/// What becomes of a container that is left alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fate {
    /// With which code it ends, if another waits for its end.
    pub(crate) code: i32,
    /// Whether it becomes healthy.
    pub(crate) healthy: bool,
}

/// The attempt of an act, and the node that it is at.
pub(crate) fn node(act: &Act) -> (AttemptId, Result<ResourceKey, ContainerName>) {
    match act {
        Act::Acquire { attempt, resource } | Act::Release { attempt, resource } => {
            (*attempt, Ok(resource.clone()))
        }
        Act::Create { attempt, container, .. }
        | Act::Start { attempt, container, .. }
        | Act::Inspect { attempt, container, .. }
        | Act::Stop { attempt, container, .. }
        | Act::Remove { attempt, container, .. } => (*attempt, Err(container.clone())),
        Act::Abandon { .. } | Act::ReturnGrant | Act::Forget => panic!("{act:?} has no node"),
    }
}
