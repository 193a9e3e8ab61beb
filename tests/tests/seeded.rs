//! Promise: whatever befalls a host, and in whatever order, nothing is lost, doubled or left behind. Thousands of
//! stories, each of which follows from its seed: `BERTH_SEED` tells one again, line by line, with the agent's log;
//! `BERTH_SEEDS` says how many there are, `BERTH_FIRST_SEED` where they begin (others each day, unless told; `random`:
//! with others than in any run before), `BERTH_TWICE` how many there are to one that is told twice. The last number
//! of a run is the same in every run of the same stories.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use berth_agent::engine::Departure;
use berth_agent::runtime::fake::Call;
use berth_agent::runtime::{CreateRequest, Runtime as _};
use berth_agent::store::Store as _;
use berth_core::task::{Fact, StopCause, StopCode};
use berth_core::units::Millis;
use berth_proto::v1;
use berth_tests::seeded::climate::Climate;
use berth_tests::seeded::control_plane::Manner;
use berth_tests::seeded::world::Asked;
use berth_tests::seeded::{Story, Teller, play, tell};

/// How long a run's stories are the same, unless told: what fails for a second one on one day is the change's.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Stories of a run, unless told.
const STORIES: u64 = 2200;
/// On a slow machine, as many as can be told in this time; but never fewer than that many, which would prove little.
const TIME: Duration = Duration::from_secs(115);
const FEWEST: u64 = 1000;
/// Time enough for what was asked for to come about.
const SOON: Duration = Duration::from_secs(10);
/// In so many the agent dies more than once in each.
const MORTAL: u64 = 100;
/// One of so many is told twice, and must be the same.
const TWICE: u64 = 25;
/// At least as many threads as CI has processors; each story has one to itself.
const THREADS: usize = 2;

fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{variable}={text} is no number"))
}

/// What went wrong in a story, with how to hear it again.
fn verdict(seed: u64, story: &Story) -> Result<()> {
    let Some(wrong) = &story.wrong else { return Ok(()) };
    bail!("BERTH_SEED={seed}: {wrong}\n--- its last lines ---\n{}", last(&story.lines, 60));
}

fn last(lines: &[String], count: usize) -> String {
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The first line in which two tellings differ.
fn difference(seed: u64) -> Result<String> {
    let (one, other) = (tell(seed, true)?.lines, tell(seed, true)?.lines);
    let at = one.iter().zip(&other).position(|(a, b)| a != b).unwrap_or_else(|| one.len().min(other.len()));
    let from = at.saturating_sub(20);
    Ok(format!(
        "line {at}\n{}\n<<< {:?}\n>>> {:?}",
        one[from..at].join("\n"),
        one.get(at).map_or("", |line| line),
        other.get(at).map_or("", |line| line)
    ))
}

#[test]
fn nothing_is_lost_doubled_or_left_behind_whatever_happens() -> Result<()> {
    if let Some(seed) = number("BERTH_SEED")? {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_test_writer().finish();
        let story = tracing::subscriber::with_default(log, || tell(seed, true))?;
        println!("{}", story.lines.join("\n"));
        return verdict(seed, &story);
    }
    let told = number("BERTH_SEEDS")?;
    let count = told.unwrap_or(STORIES);
    let twice = number("BERTH_TWICE")?.unwrap_or(TWICE).max(1);
    let first = match std::env::var("BERTH_FIRST_SEED").as_deref() {
        Ok("random") => uuid::Uuid::new_v4().as_u64_pair().0 >> 32,
        _ => match number("BERTH_FIRST_SEED")? {
            Some(first) => first,
            None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / DAY.as_secs() * STORIES,
        },
    };
    println!("BERTH_FIRST_SEED={first} BERTH_SEEDS={count} tells these stories again");
    let began = Instant::now();
    let [next, stories, tasks, lives, millis, all] = [const { AtomicU64::new(0) }; 6];
    let wrong = Mutex::new(Vec::new());
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count || told.is_none() && at >= FEWEST && began.elapsed() > TIME {
                return;
            }
            let seed = first.wrapping_add(at);
            match tell_one(seed, at.is_multiple_of(twice)) {
                Ok(story) => {
                    stories.fetch_add(1, Ordering::Relaxed);
                    tasks.fetch_add(story.tasks, Ordering::Relaxed);
                    lives.fetch_add(story.lives, Ordering::Relaxed);
                    all.fetch_add(story.digest.1, Ordering::Relaxed);
                    millis.fetch_add(u64::try_from(story.millis).unwrap_or_default(), Ordering::Relaxed);
                }
                Err(why) => {
                    println!("{}", why.to_string().lines().next().unwrap_or_default());
                    wrong.lock().unwrap().push(why);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        (0..THREADS).for_each(|_| drop(scope.spawn(work)));
    });
    let [stories, tasks, lives, millis] = [stories, tasks, lives, millis].map(AtomicU64::into_inner);
    println!(
        "{stories} stories, {tasks} tasks, {lives} lives of the agent, {} h of its time, in {:.1} s; all of them are {:016x}",
        millis / 3_600_000,
        began.elapsed().as_secs_f64(),
        all.into_inner()
    );
    let wrong = wrong.into_inner().unwrap();
    ensure!(wrong.is_empty(), "{} stories ended badly; the first: {}", wrong.len(), wrong[0]);
    ensure!(stories >= FEWEST.min(count), "only {stories} stories in {TIME:?}");
    ensure!(lives > stories || stories < MORTAL, "the agent never died");
    Ok(())
}

/// Tells one, and, where that is asked for, once more.
fn tell_one(seed: u64, twice: bool) -> Result<Story> {
    let story = tell(seed, false)?;
    verdict(seed, &story)?;
    if twice && tell(seed, false)?.digest != story.digest {
        bail!("BERTH_SEED={seed} is not the same twice: {}", difference(seed)?);
    }
    Ok(story)
}

/// A task of one container that stays until it is stopped, or does what its image does.
fn task(image: &str, memory_mib: u32) -> v1::TaskSpec {
    let one = v1::ContainerSpec {
        name: "one".to_owned(),
        image: image.to_owned(),
        essential: true,
        memory_mib,
        restart_policy: (image != "steady")
            .then(|| v1::RestartPolicy { ignored_exit_codes: Vec::new(), attempt_period_ms: 60_000 }),
        ..v1::ContainerSpec::default()
    };
    v1::TaskSpec {
        family: "story".to_owned(),
        revision: 1,
        network_mode: "none".to_owned(),
        containers: vec![one],
        ..v1::TaskSpec::default()
    }
}

/// Plays it, and shows what happened where it went wrong.
fn played(script: impl AsyncFnOnce(&mut Teller) -> Result<()>) -> Result<()> {
    let story = play(7, false, script)?;
    let Some(wrong) = &story.wrong else { return Ok(()) };
    bail!("{wrong}\n--- its last lines ---\n{}", last(&story.lines, 80));
}

#[test]
fn who_waits_is_not_granted_after_a_restart_what_others_hold() -> Result<()> {
    played(async |teller: &mut Teller| {
        teller.begin().await?;
        let first = teller.run(task("steady", 1000), Asked::to_run());
        teller.pass(SOON).await?;
        // It waits, and is older than the one that passes it by.
        let waits = teller.run(task("steady", 1500), Asked::to_run());
        teller.pass(SOON).await?;
        teller.run(task("steady", 1000), Asked::to_run());
        teller.pass(SOON).await?;
        teller.stop(&first);
        teller.pass(SOON).await?;
        teller.kill().await?;
        teller.pass(SOON).await?;
        let heard = teller.control_plane.heard(&waits).context("nothing was heard of it")?;
        ensure!(heard.status() == v1::TaskStatus::Pending, "it is {}", heard.status().as_str_name());
        teller.end().await
    })
}

#[test]
fn what_has_not_begun_when_the_host_is_to_go_does_not_and_what_runs_goes_on() -> Result<()> {
    played(async |teller: &mut Teller| {
        teller.begin().await?;
        let runs = teller.run(task("steady", 1500), Asked::to_run());
        teller.pass(SOON).await?;
        let ends = Asked { may_end: true, ..Asked::to_run() };
        let waits = teller.run(task("steady", 1000), ends.clone());
        teller.pass(SOON).await?;
        let cause = StopCause::new(StopCode::TerminationNotice, "the host is to be terminated");
        let departure = Departure { cause, deadline: None, stops: false };
        teller.engine().context("it lives")?.depart(Some(departure)).await;
        let late = teller.run(task("steady", 100), ends);
        teller.pass(SOON).await?;
        let status = |teller: &Teller, task: &str| {
            let heard = teller.control_plane.heard(task).context("nothing was heard of it")?;
            anyhow::Ok((heard.status(), heard.stop.map(|stop| stop.code).unwrap_or_default()))
        };
        for task in [&waits, &late] {
            assert_eq!(status(teller, task)?, (v1::TaskStatus::Stopped, "TerminationNotice".to_owned()));
        }
        assert_eq!(status(teller, &runs)?.0, v1::TaskStatus::Running);
        teller.engine().context("it lives")?.depart(None).await;
        let next = teller.run(task("steady", 100), Asked::to_run());
        teller.pass(SOON).await?;
        assert_eq!(status(teller, &next)?.0, v1::TaskStatus::Running);
        teller.end().await
    })
}

#[test]
fn what_happened_in_an_hour_without_a_control_plane_is_told_in_order() -> Result<()> {
    played(async |teller: &mut Teller| {
        teller.begin().await?;
        let ends = Asked { may_start_again: true, ..Asked::to_run() };
        let looping = teller.run(task("looping", 100), ends);
        let steady = teller.run(task("steady", 100), Asked::to_run());
        teller.pass(SOON).await?;
        let before = teller.control_plane.told();
        teller.control_plane.behave(Manner::Away);
        teller.pass(Duration::from_secs(1800)).await?;
        teller.kill().await?;
        teller.pass(Duration::from_secs(1800)).await?;
        ensure!(teller.control_plane.told() == before, "something was told to nobody");
        teller.control_plane.behave(Manner::Fine);
        teller.pass(Duration::from_secs(30)).await?;
        // That the order is kept, the control plane sees to.
        let told = teller.control_plane.told() - before;
        ensure!(told > 10, "{told} state changes of an hour of restarts");
        for task in [&looping, &steady] {
            let heard = teller.control_plane.heard(task).context("nothing was heard of it")?;
            ensure!(heard.status() == v1::TaskStatus::Running, "{heard:?}");
        }
        let reason = teller.control_plane.heard(&looping).context("heard")?.containers[0].reason.clone();
        ensure!(reason.contains("restarted"), "{reason}");
        teller.end().await
    })
}

#[test]
fn what_was_heard_and_never_confirmed_on_disk_holds_nothing_up() -> Result<()> {
    played(async |teller: &mut Teller| {
        teller.begin().await?;
        let ends = Asked { may_start_again: true, ..Asked::to_run() };
        for _ in 0..3 {
            teller.run(task("looping", 100), ends.clone());
        }
        teller.pass(SOON).await?;
        teller.control_plane.behave(Manner::Away);
        teller.pass(Duration::from_secs(3600)).await?;
        let before = teller.control_plane.told();
        // The control plane is fast, and the disk so slow that nothing of what it confirms becomes durable.
        teller.world.set_climate(Climate { wait: 1, longest: Duration::from_secs(60), ..Climate::FAIR });
        teller.control_plane.behave(Manner::Fine);
        for _ in 0..100_000 {
            if teller.control_plane.told() - before > 40 {
                break;
            }
            teller.pass(Duration::from_millis(5)).await?;
        }
        teller.world.set_climate(Climate::FAIR);
        teller.kill().await?;
        let heard = teller.control_plane.told();
        let next = teller.world.disk().outbox().after(0, 1).first().map_or(heard, |entry| entry.sequence);
        ensure!(heard - next > 32, "{next} is the next to be confirmed, and {heard} was heard");
        teller.pass(Duration::from_secs(60)).await?;
        let left = teller.world.disk().outbox().after(0, usize::MAX).len();
        ensure!(left < 3, "{left} state changes are yet to be told");
        teller.end().await
    })
}

/// Begins with a task that runs, is stopped, and is known to nobody any more; and what its container was made of.
async fn forgotten(teller: &mut Teller, asked: Asked) -> Result<(String, CreateRequest)> {
    teller.begin().await?;
    let ended = teller.run(task("steady", 100), asked);
    teller.pass(SOON).await?;
    let (request, _) = teller.world.engine.containers().pop().context("no container")?;
    teller.stop(&ended);
    teller.pass(Duration::from_secs(200)).await?;
    ensure!(teller.world.disk().load().await?.tasks.is_empty(), "it is still known");
    Ok((ended, request))
}

#[test]
fn a_container_that_came_late_raises_no_task_from_the_dead() -> Result<()> {
    played(async |teller: &mut Teller| {
        let (ended, request) = forgotten(teller, Asked::to_run()).await?;
        // The engine had been asked for it by a life that is over, and is too busy to say what became of it.
        teller.world.engine.create(request).await?;
        teller.world.engine.delay(Call::Inspect, Millis::from_secs(5));
        teller.kill().await?;
        teller.pass(SOON).await?;
        let heard = teller.control_plane.heard(&ended).context("nothing was heard of it")?;
        ensure!(heard.status() == v1::TaskStatus::Stopped, "it is {}", heard.status().as_str_name());
        ensure!(teller.world.disk().load().await?.tasks.is_empty(), "it was taken for one that is here");
        teller.world.engine.delay(Call::Inspect, Millis(0));
        teller.end().await
    })
}

#[test]
fn a_container_that_is_started_after_its_task_was_forgotten_is_ended() -> Result<()> {
    played(async |teller: &mut Teller| {
        let (_, request) = forgotten(teller, Asked { may_start_again: true, ..Asked::to_run() }).await?;
        // The engine was late with it, and somebody finds it.
        let late = teller.world.engine.create(request).await?;
        teller.world.engine.start(&late).await?;
        teller.pass(Duration::from_secs(900)).await?;
        let there = teller.world.engine.containers();
        ensure!(there.is_empty(), "{there:?}");
        teller.end().await
    })
}

#[test]
fn a_container_that_started_behind_a_lost_record_is_made_anew() -> Result<()> {
    played(async |teller: &mut Teller| {
        const ANSWER: Millis = Millis::from_secs(2);
        teller.begin().await?;
        teller.world.engine.delay(Call::Start, Millis::from_secs(60));
        let asked = teller.run(task("steady", 100), Asked::to_run());
        teller.pass(SOON).await?;
        let (_, made) = teller.world.engine.containers().pop().context("no container")?;
        let Fact::Created { id } = made else { bail!("it is {made:?}") };
        // Its start comes about after the next life has seen that it never ran, and before it is removed for that.
        teller.world.engine.delay(Call::Start, Millis(0));
        teller.world.engine.delay(Call::Inspect, ANSWER);
        teller.control_plane.behave(Manner::Away);
        let world = Arc::clone(&teller.world);
        let starts = async {
            tokio::time::sleep(ANSWER.as_duration() * 3 / 2).await;
            world.engine.start(&id).await
        };
        let (lost, started) = tokio::join!(teller.lose_the_disk(), starts);
        lost?;
        started?;
        ensure!(teller.world.disk().load().await?.tasks.is_empty(), "it is taken for a task that runs");
        teller.world.engine.delay(Call::Inspect, Millis(0));
        teller.control_plane.behave(Manner::Fine);
        teller.pass(Duration::from_secs(60)).await?;
        let heard = teller.control_plane.heard(&asked).context("nothing was heard of it")?;
        ensure!(heard.status() == v1::TaskStatus::Running, "{heard:?}");
        let there = teller.world.engine.containers();
        let [(_, Fact::Running { id: anew, .. })] = &there[..] else { bail!("{there:?}") };
        ensure!(*anew != id, "it is the one of before");
        teller.end().await
    })
}

#[test]
fn what_is_left_of_a_task_that_is_told_stopped_at_once_goes() -> Result<()> {
    played(async |teller: &mut Teller| {
        teller.begin().await?;
        let gone = teller.run(task("steady", 100), Asked::to_run());
        teller.pass(SOON).await?;
        let (_, runs) = teller.world.engine.containers().pop().context("no container")?;
        let Fact::Running { id, .. } = runs else { bail!("it is {runs:?}") };
        // Of the container and the record nothing is left, and the host is slow to tell what else there is.
        teller.world.engine.remove_behind_your_back(&id);
        teller.world.set_climate(Climate { wait: 1, longest: Duration::from_secs(2), ..Climate::FAIR });
        teller.lose_the_disk().await?;
        teller.pass(SOON).await?;
        teller.world.set_climate(Climate::FAIR);
        let heard = teller.control_plane.heard(&gone).context("nothing was heard of it")?;
        ensure!(heard.status() == v1::TaskStatus::Stopped, "{heard:?}");
        teller.end().await
    })
}

#[test]
fn a_wait_is_as_long_as_it_is_to_be_whatever_the_clock_does_while_it_begins() -> Result<()> {
    const DAY_MS: i64 = 86_400_000;
    const PATIENCE: Duration = Duration::from_secs(60);
    const LOOK: Duration = Duration::from_millis(200);
    const ROUNDS: u64 = 100;
    // One for another that never says whether it is well.
    let mut waiting = task("steady", 100);
    let check = v1::HealthCheck {
        command: vec!["CMD".to_owned(), "true".to_owned()],
        interval_ms: 5_000,
        timeout_ms: 5_000,
        retries: 3,
        start_period_ms: 0,
    };
    let silent = v1::ContainerSpec {
        name: "silent".to_owned(),
        start_timeout_ms: u64::try_from(PATIENCE.as_millis())?,
        health_check: Some(check),
        ..waiting.containers[0].clone()
    };
    waiting.containers[0].depends_on =
        vec![v1::Dependency { container: silent.name.clone(), condition: "HEALTHY".to_owned() }];
    waiting.containers.push(silent);
    played(async |teller: &mut Teller| {
        teller.begin().await?;
        // It is started, the engine tells so as an event, and answers; then nothing wakes who waits.
        teller.world.engine.delay(Call::Inspect, Millis(20));
        let mut judged = 0;
        for (by, after_ms) in [DAY_MS, -DAY_MS].into_iter().cycle().zip(0..ROUNDS) {
            let asked = Asked { may_end: true, ..Asked::to_run() };
            let task = teller.run(waiting.clone(), asked);
            teller.pass(Duration::from_millis(after_ms / 2)).await?;
            teller.world.put_clock_at_next_write(by);
            let what = format!("the clock was put by {by} ms in the write after {} ms", after_ms / 2);
            let status = |teller: &Teller| teller.control_plane.heard(&task).map(|heard| heard.status());
            let (began, made) = loop {
                teller.pass(LOOK).await?;
                ensure!(status(teller) != Some(v1::TaskStatus::Stopped), "{what}: it did not wait");
                let containers = teller.world.engine.containers();
                let own = containers.iter().filter(|(request, _)| request.task.arn.as_str() == task);
                if own.clone().any(|(_, fact)| matches!(fact, Fact::Running { .. })) {
                    break (tokio::time::Instant::now(), own.count());
                }
            };
            while status(teller) != Some(v1::TaskStatus::Stopped) {
                teller.pass(LOOK).await?;
                ensure!(began.elapsed() < PATIENCE * 6, "{what}: it waits still");
            }
            let waited = began.elapsed();
            ensure!(waited + LOOK >= PATIENCE, "{what}: it waited {waited:?}");
            // One that is still being made, which may take minutes, waits for that first.
            if made == 2 {
                ensure!(waited < PATIENCE + SOON, "{what}: it waited {waited:?}");
                judged += 1;
            }
            // Where nothing was written any more, it is moved now.
            teller.world.writes();
        }
        ensure!(judged > ROUNDS / 2, "{judged} of {ROUNDS} were made in time");
        teller.end().await
    })
}

#[test]
fn no_lie_about_what_runs_here_stops_it() -> Result<()> {
    played(async |teller: &mut Teller| {
        teller.begin().await?;
        let steady = teller.run(task("steady", 100), Asked::to_run());
        teller.pass(SOON).await?;
        for _ in 0..20 {
            // Empty manifests, old and new, and orders to stop what nobody asked about.
            teller.control_plane.behave(Manner::Lying);
            teller.control_plane.cut();
            teller.pass(Duration::from_secs(20)).await?;
        }
        teller.control_plane.behave(Manner::Fine);
        teller.control_plane.cut();
        teller.pass(Duration::from_secs(60)).await?;
        let heard = teller.control_plane.heard(&steady).context("nothing was heard of it")?;
        ensure!(heard.status() == v1::TaskStatus::Running && heard.stop.is_none(), "{heard:?}");
        teller.end().await
    })
}
