//! Promise: a task that asks far too often, or holds connections and says nothing, takes nothing from another
//! task and nothing from the host's operator, and the agent ends as quickly as ever.

use std::collections::BTreeMap;
use std::fmt;
use std::net::TcpListener;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::endpoint::{ADDRESS, Inside};
use berth_tests::expect::{PATIENCE, here};
use berth_tests::{Cluster, Endpoint, KeepAlive, demo, eventually};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Requests of the flood, and the connections that they come on.
const FLOOD: usize = 10_000;
const CONNECTIONS: usize = 50;
/// Longest that sending them takes; the answers come when they come.
const SENT: Duration = Duration::from_secs(1);
/// How long connections are opened by the hundred, so many at once and so often.
const STORM: Duration = Duration::from_secs(5);
const BURST: usize = 300;
const EVERY: Duration = Duration::from_millis(100);
/// How often the other task asks meanwhile: within what it may.
const PACE: Duration = Duration::from_millis(25);
/// Longest that 99 of 100 of its answers may take; and where the machine itself is slower, so many times as long as
/// those of the floor.
const P99: Duration = Duration::from_millis(20);
const OF_FLOOR: u32 = 3;
/// How often it is looked at: what others do to this machine passes, and what the agent does wrong stays.
const LOOKS: usize = 3;
/// Longest that the agent waits for the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// Most connections that the agent takes from one address.
const MOST: usize = 64;

/// A cluster whose agent serves its tasks.
async fn cluster() -> Result<(Cluster, Endpoint)> {
    let endpoint = Endpoint::new()?;
    let address = endpoint.address();
    Ok((Cluster::start_with(&[("BERTH_ENDPOINT_ADDRESS", &address)]).await?, endpoint))
}

/// The inside of a task on the bridge.
async fn task(cluster: &Cluster, family: &str) -> Result<Inside> {
    let definition = demo::task(family, "bridge", json!([demo::container("app", &["sleep", "3600"])]));
    let arn = cluster.run(definition).await?;
    Inside::of(cluster, &arn, "app").await
}

/// A server that knows nothing of tasks and answers whoever asks. It is asked what the agent is asked, by the same at
/// the same time and over the same network: no answer is quicker on this machine as it is then.
struct Floor {
    host: String,
    _runtime: Runtime,
}

impl Floor {
    fn start() -> Result<Self> {
        // The agent has as many threads.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind((ADDRESS, 0)))?;
        let host = listener.local_addr()?.to_string();
        runtime.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(answers(connection));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { host, _runtime: runtime })
    }
}

/// Answers every request of a connection.
async fn answers(connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let (read, mut write) = connection.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        if line.is_empty() {
            write.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
        }
    }
    Ok(())
}

/// Sends the flood; how long that took, and how many answers had which status.
fn flood(host: &str, path: &str) -> Result<(Duration, BTreeMap<u16, usize>)> {
    let began = Instant::now();
    let connection = || {
        let mut connection = KeepAlive::connect(host)?;
        connection.ask(path, FLOOD / CONNECTIONS)?;
        let sent = began.elapsed();
        let answers = (0..FLOOD / CONNECTIONS).map(|_| Ok(connection.answer()?.0));
        anyhow::Ok((sent, answers.collect::<Result<Vec<u16>>>()?))
    };
    let (mut last, mut counts) = (Duration::ZERO, BTreeMap::new());
    thread::scope(|scope| {
        let all: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(connection)).collect();
        for one in all {
            let (sent, statuses) = one.join().map_err(|_| anyhow::anyhow!("a connection panicked"))??;
            last = last.max(sent);
            for status in statuses {
                *counts.entry(status).or_default() += 1;
            }
        }
        Ok((last, counts))
    })
}

/// How long answers took, sorted.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        Self(took)
    }

    fn at(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, p99, worst] = [50, 99, 100].map(|percent| self.at(percent));
        write!(f, "{} requests: median {median:?}, p99 {p99:?}, worst {worst:?}", self.0.len())
    }
}

/// Asks again and again, on one connection or each time on a new one.
struct Asker {
    host: String,
    path: String,
    anew: bool,
    connection: KeepAlive,
    took: Vec<Duration>,
}

impl Asker {
    fn new(host: &str, path: &str, anew: bool) -> Result<Self> {
        let connection = KeepAlive::connect(host)?;
        Ok(Self { host: host.to_owned(), path: path.to_owned(), anew, connection, took: Vec::new() })
    }

    fn ask(&mut self) -> Result<()> {
        let began = Instant::now();
        if self.anew {
            self.connection = KeepAlive::connect(&self.host)?;
        }
        self.connection.ask(&self.path, 1)?;
        let (status, body) = self.connection.answer()?;
        self.took.push(began.elapsed());
        ensure!(status == 200, "{status} {}", String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// How long the answers of the agent took until the end is told, and those of the floor, asked in turns with it.
fn measure(
    agent: &(String, String),
    floor: &str,
    anew: bool,
    end: &mpsc::Receiver<()>,
) -> Result<(Times, Times)> {
    let mut agent = Asker::new(&agent.0, &agent.1, anew)?;
    let mut floor = Asker::new(floor, "/", anew)?;
    loop {
        let began = Instant::now();
        agent.ask()?;
        floor.ask()?;
        match end.recv_timeout(PACE.saturating_sub(began.elapsed())) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return Ok((Times::of(agent.took), Times::of(floor.took))),
        }
    }
}

/// Has the greedy one do something to the agent, and at the same time to the floor; what that yields of the agent,
/// and how long the answers of both to the modest one took meanwhile.
async fn beside<T: Send + 'static>(
    modest: &Inside,
    greedy: &Inside,
    anew: bool,
    what: fn(&str, &str) -> Result<T>,
) -> Result<(T, Times, Times)> {
    // Neither begins nor ends within another runtime.
    let server = tokio::task::spawn_blocking(Floor::start).await??;
    let (end, ended) = mpsc::channel::<()>();
    let (agent, floor) = (modest.endpoint()?, server.host.clone());
    let measured = modest.run(move || measure(&agent, &floor, anew, &ended));
    let ((host, path), floor) = (greedy.endpoint()?, server.host.clone());
    let done = greedy.run(move || {
        // However it ends, the measurement ends with it.
        let _end = end;
        thread::scope(|scope| {
            let beside = scope.spawn(|| what(&floor, &path));
            let done = what(&host, &path);
            beside
                .join()
                .map_err(|_| anyhow::anyhow!("at the floor: it panicked"))?
                .context("at the floor")?;
            done
        })
    });
    let (times, done) = tokio::join!(measured, done);
    tokio::task::spawn_blocking(move || drop(server)).await?;
    let (took, floor) = times.context("the modest task")?;
    Ok((done.context("the greedy task")?, took, floor))
}

/// The same until the modest one has been answered as it should; what the last look yielded of the agent.
async fn unharmed<T: Send + 'static>(
    modest: &Inside,
    greedy: &Inside,
    anew: bool,
    what: fn(&str, &str) -> Result<T>,
) -> Result<T> {
    let mut seen = String::new();
    for _ in 0..LOOKS {
        let (done, took, floor) = beside(modest, greedy, anew, what).await?;
        let most = here(P99).max(floor.at(99) * OF_FLOOR);
        let look = format!("the other, {took}, where {most:?} is allowed; the floor, {floor}");
        println!("{look}");
        if took.at(99) < most {
            return Ok(done);
        }
        seen = seen + "\n" + &look;
    }
    bail!("{LOOKS} times: {seen}")
}

#[tokio::test]
async fn ten_thousand_requests_of_one_task_do_not_slow_another() -> Result<()> {
    let (cluster, _endpoint) = cluster().await?;
    let (greedy, modest) = (task(&cluster, "greedy").await?, task(&cluster, "modest").await?);
    let began = Instant::now();
    let (sent, counts) = unharmed(&modest, &greedy, false, flood).await?;
    println!(
        "the flood: {FLOOD} requests on {CONNECTIONS} connections, sent within {sent:?}, answered within {:?}: {counts:?}",
        began.elapsed()
    );
    ensure!(sent < here(SENT), "the flood took {sent:?} to be sent");
    ensure!(counts.get(&429) > counts.get(&200), "{counts:?}");
    // The flooder has not lost its place: it is answered again now that it asks less often.
    eventually(PATIENCE, "the greedy task is answered", || async {
        Ok((greedy.get(greedy.uri()?).await?.0 == 200).then_some(()))
    })
    .await
}

/// Opens connections in bursts, each with a request, and leaves them or keeps as many as it may; how many.
fn storm(host: &str, _path: &str) -> Result<usize> {
    // Nobody ends it early: a pause with an end.
    let (_never, pause) = mpsc::channel::<()>();
    let (began, mut count, mut kept) = (Instant::now(), 0, Vec::new());
    while began.elapsed() < STORM {
        let burst = Instant::now();
        for _ in 0..BURST {
            let mut connection = KeepAlive::connect(host)?;
            // Whether it is taken or refused.
            let _ = connection.ask("/", 1);
            if kept.len() < MOST {
                kept.push(connection);
            }
            count += 1;
        }
        let _ = pause.recv_timeout(EVERY.saturating_sub(burst.elapsed()));
    }
    Ok(count)
}

#[tokio::test]
async fn connections_by_the_thousand_of_one_task_do_not_slow_another() -> Result<()> {
    let (cluster, _endpoint) = cluster().await?;
    let (greedy, modest) = (task(&cluster, "greedy").await?, task(&cluster, "modest").await?);
    for anew in [false, true] {
        let count = unharmed(&modest, &greedy, anew, storm).await?;
        println!("the storm: {count} connections in {STORM:?}");
    }
    eventually(PATIENCE, "the greedy task is answered", || async {
        Ok((greedy.get(greedy.uri()?).await?.0 == 200).then_some(()))
    })
    .await
}

/// Opens so many connections that send half a request each; those that the agent closes at once, and those
/// that it keeps.
fn silent(host: &str, many: usize) -> Result<(usize, Vec<KeepAlive>)> {
    let mut kept = Vec::new();
    for n in 0..many {
        let mut connection = KeepAlive::connect(host)?;
        // Nothing at all, half a head, or a head that never ends.
        match n % 3 {
            0 => {}
            1 => connection.say(b"GET /v4/")?,
            _ => connection.say(format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Half: ").as_bytes())?,
        }
        kept.push(connection);
    }
    let mut refused = 0;
    let mut left = Vec::new();
    for mut connection in kept {
        if connection.is_closed_within(Duration::from_millis(5))? {
            refused += 1;
        } else {
            left.push(connection);
        }
    }
    Ok((refused, left))
}

#[tokio::test]
async fn connections_that_say_nothing_are_few_and_soon_closed() -> Result<()> {
    const MANY: usize = 3 * MOST;
    let (cluster, _endpoint) = cluster().await?;
    let (mute, other) = (task(&cluster, "mute").await?, task(&cluster, "other").await?);
    let (host, _) = mute.endpoint()?;
    let began = Instant::now();
    let (refused, mut kept) = mute.run(move || silent(&host, MANY)).await?;
    assert_eq!((refused, kept.len()), (MANY - MOST, MOST));
    // Another task is answered as if nothing were.
    let asked = Instant::now();
    assert_eq!(other.json("").await?["Name"], "app");
    println!(
        "{MANY} silent connections: {refused} refused; another task's answer after {:?}",
        asked.elapsed()
    );
    ensure!(asked.elapsed() < here(Duration::from_secs(1)), "{:?}", asked.elapsed());
    // One that sends a little now and then is given no more time than the others.
    let mut trickling = kept.pop().context("none was kept")?;
    let closed = mute.run(move || {
        let mut after = Vec::new();
        for mut connection in kept {
            // What is sent to a connection that was just closed does not arrive: that is the end, too.
            let sent = trickling.say(b"x").is_ok();
            ensure!(connection.is_closed_within(here(2 * HEAD))?, "it stays open");
            after.push(began.elapsed());
            if sent && after.len() == 1 {
                ensure!(trickling.is_closed_within(here(HEAD))?, "the one that trickles stays open");
            }
        }
        Ok(after)
    });
    let closed = closed.await?;
    println!("silent connections were closed after {:?} to {:?}", closed.first(), closed.last());
    // And the one that held them is answered again.
    assert_eq!(mute.json("").await?["Name"], "app");
    Ok(())
}

#[tokio::test]
async fn nobody_who_says_nothing_holds_up_the_operator_or_the_end_of_the_agent() -> Result<()> {
    // Not the address that tasks know: an agent that ends takes that from the host, and other tests have it.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let tasks = format!("127.0.0.1:{port}");
    let mut cluster = Cluster::start_with(&[("BERTH_ENDPOINT_ADDRESS", &tasks)]).await?;
    let operators = cluster.agent.introspection()?;
    let silence = async |host: &str, many: usize| {
        let host = host.to_owned();
        tokio::task::spawn_blocking(move || silent(&host, many)).await?
    };
    let (refused, kept) = silence(&operators, 2 * MOST).await?;
    assert_eq!((refused, kept.len()), (MOST, MOST));
    // It comes from the same address: it has to wait until they are closed, and no longer.
    let began = Instant::now();
    let url = format!("http://{operators}/v1/metadata");
    eventually(here(2 * HEAD), "the operator is answered", || async {
        Ok(berth_tests::http::get(&url).await?.0.is_success().then_some(()))
    })
    .await?;
    println!("the operator was answered after {:?}", began.elapsed());
    drop(kept);

    let silent = (silence(&tasks, MOST / 2).await?, silence(&operators, MOST / 2).await?);
    let began = Instant::now();
    assert_eq!(cluster.agent.terminate().await?.code(), Some(0));
    println!("the agent ended after {:?}", began.elapsed());
    ensure!(began.elapsed() < here(Duration::from_secs(3)), "{:?}", began.elapsed());
    let said = cluster.agent.output();
    ensure!(!said.contains("did not end within"), "{said}");
    drop(silent);
    Ok(())
}
