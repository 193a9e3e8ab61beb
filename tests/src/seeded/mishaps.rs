//! What may happen to a host: orders, hands on its containers, trouble of the engine, the control plane, the disk
//! and the agent.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use berth_agent::runtime::Runtime as _;
use berth_agent::store::StoreError;
use berth_core::ids::EngineId;
use berth_core::task::{Fact, Health};
use berth_proto::v1::TaskStatus;
use tokio::time::sleep;

use super::climate::Climate;
use super::control_plane::{ControlPlane, Manner, task_of};
use super::store::short;
use super::story::Teller;
use super::world::{Wish, World};

const HOUR: Duration = Duration::from_secs(3600);

impl Teller {
    fn one_of_the_tasks(&self) -> Option<String> {
        let all: Vec<String> = self.world.known().tasks.keys().cloned().collect();
        self.world.choose(|chance| chance.pick(&all).cloned())
    }

    /// Something happens.
    pub(super) async fn step(&mut self) -> Result<()> {
        match self.world.below(32) {
            0..=7 => self.ask(),
            8 | 9 => {
                for _ in 0..=self.world.below(6) {
                    self.ask();
                }
            }
            10..=12 => {
                if let Some(arn) = self.one_of_the_tasks() {
                    self.stop(&arn);
                }
            }
            13..=15 => self.by_hand().await,
            16..=18 => self.trouble_of_the_engine().await?,
            19..=22 => self.trouble_of_the_control_plane().await?,
            23..=25 => {
                self.die().await;
                sleep(self.world.span(Duration::from_secs(5))).await;
                self.live().await?;
            }
            26 => self.stop_the_agent().await?,
            27 => {
                self.world.note(format_args!("disk full"));
                self.world.disk().fail_with(Some(full()));
                self.meanwhile(Duration::from_secs(40), |world, _| {
                    world.disk().fail_with(None);
                    world.note(format_args!("disk has room"));
                })
                .await?;
            }
            28 => self.occupy().await?,
            29 => self.lose_the_disk().await?,
            30 => self.put_the_clock(),
            _ => {
                let climate = self.world.choose(Climate::of);
                self.world.note(format_args!("{climate:?}"));
                self.world.set_climate(climate);
            }
        }
        Ok(())
    }

    /// Somebody on the host does something to a container, or it does so itself.
    async fn by_hand(&self) {
        let containers = self.world.engine.containers();
        let of = |fact: &Fact| match fact {
            Fact::Created { id }
            | Fact::Running { id, .. }
            | Fact::Exited { id, .. }
            | Fact::Silent { id } => Some(id.clone()),
            Fact::Missing => None,
        };
        let all: Vec<(String, EngineId)> = containers
            .iter()
            .filter_map(|(request, fact)| Some((request.task.arn.to_string(), of(fact)?)))
            .collect();
        let Some((arn, id)) = self.world.choose(|chance| chance.pick(&all).cloned()) else { return };
        if let Some(asked) = self.world.known().tasks.get_mut(&arn) {
            asked.may_end = true;
        }
        let engine = &self.world.engine;
        let what = self.world.below(6);
        self.world.note(format_args!("by hand {what} to {} of {}", short(id.as_str()), short(&arn)));
        match what {
            0 => engine.exit(&id, 1),
            1 => engine.exit(&id, 0),
            2 => {
                engine.oom(&id);
                if let Some(task) = task_of(&arn) {
                    self.world.cgroups.run_out_of_memory(task.id());
                }
            }
            3 => engine.remove_behind_your_back(&id),
            4 => engine.health(&id, Health::Unhealthy),
            _ => {
                let heard = self.control_plane.heard(&arn);
                let ended = heard.is_some_and(|change| change.status() == TaskStatus::Stopped);
                if let Some(asked) = self.world.known().tasks.get_mut(&arn) {
                    (asked.meddled, asked.may_start_again) = (true, true);
                    asked.risen |= ended;
                }
                // Refused where its ports are taken.
                drop(engine.start(&id).await);
            }
        }
    }

    async fn trouble_of_the_engine(&mut self) -> Result<()> {
        let engine = self.world.engine.clone();
        let what = self.world.below(6);
        self.world.note(format_args!("engine {what}"));
        match what {
            0 => {
                engine.down();
                self.meanwhile(Duration::from_secs(30), |world, _| world.engine.up()).await?;
            }
            1 => {
                // It is killed, and everything with it.
                engine.down();
                self.touch_all();
                for (_, fact) in engine.containers() {
                    if let Fact::Running { id, .. } = fact {
                        engine.exit(&id, 137);
                    }
                }
                self.meanwhile(Duration::from_secs(3), |world, _| world.engine.up()).await?;
            }
            2 => {
                self.world.known().excuses_failures = true;
                self.world.engine_hangs.set(true);
                self.meanwhile(Duration::from_secs(400), |world, _| world.engine_hangs.set(false)).await?;
            }
            3 => {
                engine.lose_events(true);
                self.by_hand().await;
                self.meanwhile(Duration::from_secs(20), |world, _| world.engine.lose_events(false)).await?;
            }
            4 => {
                let namespaces: Vec<_> = self.world.network.namespaces().into_keys().collect();
                if let Some(task) = self.world.choose(|chance| chance.pick(&namespaces).cloned()) {
                    if let Some(asked) = self.world.known().tasks.get_mut(task.as_str()) {
                        asked.may_end = true;
                    }
                    self.world.network.end_holder(&task);
                }
            }
            _ => {
                engine.down();
                engine.up();
            }
        }
        self.world.note(format_args!("engine well"));
        Ok(())
    }

    fn touch_all(&self) {
        for asked in self.world.known().tasks.values_mut() {
            asked.may_end = true;
        }
    }

    async fn trouble_of_the_control_plane(&mut self) -> Result<()> {
        let what = self.world.below(9);
        self.world.note(format_args!("control plane {what}"));
        let for_a_while = Duration::from_secs(120);
        match what {
            0 | 1 => self.control_plane.cut(),
            2 => self.control_plane_is(Manner::Away, for_a_while).await?,
            3 => self.control_plane_is(Manner::Away, HOUR).await?,
            4 => self.control_plane_is(Manner::Deaf, for_a_while).await?,
            5 | 6 => self.control_plane_is(Manner::Slow(Duration::from_secs(8)), for_a_while).await?,
            7 => self.control_plane_is(Manner::Lying, for_a_while).await?,
            _ => {
                if self.world.once_in(4) {
                    self.control_plane.forget_all();
                    for (arn, asked) in &mut self.world.known().tasks {
                        let heard = self.control_plane.heard(arn);
                        let ran = heard.is_some_and(|change| change.status() == TaskStatus::Running);
                        // What ran runs on; of what was asked for and did not run yet, nobody knows any more.
                        if !(ran && asked.wish == Wish::Run) {
                            asked.wish = Wish::Nothing;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn control_plane_is(&mut self, manner: Manner, longest: Duration) -> Result<()> {
        self.world.note(format_args!("control plane {manner:?}"));
        self.control_plane.behave(manner);
        if manner == Manner::Lying {
            self.control_plane.cut();
        }
        // All of an hour, and less of what is short.
        let time = if longest == HOUR { HOUR } else { self.world.span(longest) };
        self.later(time, move |world, plane| {
            plane.behave(Manner::Fine);
            if manner == Manner::Lying {
                plane.cut();
            }
            world.note(format_args!("control plane fine"));
        });
        self.pass(time / 2).await?;
        if self.world.once_in(2) {
            self.by_hand().await;
        }
        self.pass(time / 2).await
    }

    /// Has something happen after that time, whatever else happens until then.
    fn later(&self, after: Duration, act: impl FnOnce(&World, &ControlPlane) + Send + 'static) {
        let (world, plane) = (Arc::clone(&self.world), self.control_plane.clone());
        self.world.tasks.spawn(async move {
            sleep(after).await;
            act(&world, &plane);
        });
    }

    /// The same after a time shorter than that, which goes by.
    async fn meanwhile(
        &mut self,
        bound: Duration,
        act: impl FnOnce(&World, &ControlPlane) + Send + 'static,
    ) -> Result<()> {
        let time = self.world.span(bound);
        self.later(time, act);
        self.pass(time).await
    }

    /// The host learns the time from its network, and may have been far off.
    fn put_the_clock(&self) {
        let by =
            self.world.choose(|chance| chance.pick(&[1_500, 90_000, 86_400_000]).copied()).unwrap_or(1_500);
        let by = if self.world.once_in(2) { by } else { -by };
        if self.world.once_in(2) {
            self.world.put_clock(by);
        } else {
            self.world.put_clock_at_next_write(by);
        }
    }

    async fn stop_the_agent(&mut self) -> Result<()> {
        self.world.note(format_args!("agent terminated"));
        if let Some(life) = self.life.take() {
            life.stop().await;
        }
        sleep(self.world.span(Duration::from_secs(5))).await;
        self.live().await
    }

    /// Somebody else takes ports.
    async fn occupy(&mut self) -> Result<()> {
        let first = 40_000 + u16::try_from(self.world.below(90))?;
        let tcp = berth_core::units::Protocol::Tcp;
        self.world.note(format_args!("ports {first} and on are taken"));
        (first..first + 4).for_each(|port| self.world.engine.occupy(port, tcp));
        // Whoever chose them before may find them taken once more.
        self.touch_all();
        self.meanwhile(Duration::from_secs(20), move |world, _| {
            (first..first + 4).for_each(|port| world.engine.vacate(port, tcp));
        })
        .await
    }
}

fn full() -> StoreError {
    StoreError::Io { what: "write", path: "memory".to_owned(), detail: "no space left".to_owned() }
}
