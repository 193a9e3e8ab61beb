//! How much the engine is asked to do at once.
//!
//! Launches and stops are bound by the processor below us, and too many at a time only hinder one
//! another. Nothing waits long for something slow, though: a permit goes back after a while whatever
//! became of the call, and a stop that waits for a container to heed its signal gives its permit
//! back at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_core::ids::EngineId;
use berth_core::task::Exit;
use berth_core::units::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// A launch is some 200 ms of work, and so is the end of a container; what takes longer than this
/// hangs on something else.
const WORK: Duration = Duration::from_secs(5);
/// A stop is work while the signal goes out and once the container has died; between the two it is
/// waiting. Sixteen containers on the bridge that heed their signal are dead after 250 ms.
const SIGNAL: Duration = Duration::from_millis(400);

/// Permits for the engine's attention.
#[derive(Debug)]
pub(super) struct Pace {
    launches: Semaphore,
    stops: Semaphore,
    stopping: Mutex<Endings>,
    /// How many calls wait or are under way.
    busy: watch::Sender<u32>,
}

/// The containers that are being stopped, and what the engine's events told of each meanwhile.
type Endings = BTreeMap<EngineId, Ending>;

#[derive(Debug, Default)]
struct Ending {
    died: bool,
    exit: Option<Exit>,
    out_of_memory: bool,
}

impl Pace {
    pub(super) fn new(launches: usize, stops: usize) -> Self {
        Self {
            launches: Semaphore::new(launches.max(1)),
            stops: Semaphore::new(stops.max(1)),
            stopping: Mutex::default(),
            busy: watch::Sender::default(),
        }
    }

    /// Runs the making or the starting of a container when it is its turn.
    pub(super) async fn launch<F: Future>(&self, call: F) -> F::Output {
        let _busy = Busy::note(&self.busy);
        paced(&self.launches, WORK, || false, call).await
    }

    /// Runs the stopping of a container when it is its turn; also how it ended, if the engine's
    /// events have told the whole of it by then.
    pub(super) async fn stop<F: Future>(&self, id: &EngineId, call: F) -> (F::Output, Option<Exit>) {
        let _busy = Busy::note(&self.busy);
        let stopping = Stopping::note(&self.stopping, id);
        let has_died = || lock(&self.stopping).get(id).is_some_and(|ending| ending.died);
        let output = paced(&self.stops, SIGNAL, has_died, call).await;
        (output, stopping.exit())
    }

    /// Runs the killing or the removal of a container when it is its turn.
    pub(super) async fn end<F: Future>(&self, call: F) -> F::Output {
        let _busy = Busy::note(&self.busy);
        paced(&self.stops, WORK, || false, call).await
    }

    /// Waits until for so long nothing was asked of the engine here: a time for what can wait.
    pub(super) async fn quiet(&self, pause: Duration) {
        let mut busy = self.busy.subscribe();
        loop {
            // Its sender is here, so that neither wait can fail.
            let _ = busy.wait_for(|calls| *calls == 0).await;
            if timeout(pause, busy.changed()).await.is_err() {
                return;
            }
        }
    }

    /// The engine tells that a container died: if it is being stopped, what is left is work.
    pub(super) fn died(&self, id: &EngineId, code: Option<i32>, at: Timestamp) {
        if let Some(ending) = lock(&self.stopping).get_mut(id) {
            let exit = |code| Exit {
                code,
                oom_killed: false,
                task_memory_peak: None,
                with_engine: false,
                error: None,
                started_at: None,
                finished_at: Some(at),
            };
            *ending = Ending { died: true, exit: code.map(exit), ..*ending };
        }
    }

    /// The engine tells that a container is out of memory: its end says whether that was the cause.
    pub(super) fn out_of_memory(&self, id: &EngineId) {
        if let Some(ending) = lock(&self.stopping).get_mut(id) {
            ending.out_of_memory = true;
        }
    }
}

/// A call that waits or is under way.
struct Busy<'a>(&'a watch::Sender<u32>);

impl<'a> Busy<'a> {
    fn note(calls: &'a watch::Sender<u32>) -> Self {
        calls.send_modify(|calls| *calls += 1);
        Self(calls)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls = calls.saturating_sub(1));
    }
}

/// What is noted of a stop, for as long as it lasts.
struct Stopping<'a> {
    all: &'a Mutex<Endings>,
    id: &'a EngineId,
}

impl<'a> Stopping<'a> {
    fn note(all: &'a Mutex<Endings>, id: &'a EngineId) -> Self {
        lock(all).insert(id.clone(), Ending::default());
        Self { all, id }
    }

    fn exit(&self) -> Option<Exit> {
        let ending = lock(self.all).remove(self.id)?;
        ending.exit.filter(|_| !ending.out_of_memory)
    }
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        lock(self.all).remove(self.id);
    }
}

/// No panic leaves the map half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a call with a permit, which goes back after `hold`, or later if the call then `is_at_work`.
async fn paced<F: Future>(
    permits: &Semaphore,
    hold: Duration,
    is_at_work: impl Fn() -> bool,
    call: F,
) -> F::Output {
    // The semaphore is never closed; if it were, to go on unpaced would be right.
    let permit = permits.acquire().await.ok();
    let mut call = std::pin::pin!(call);
    if let Ok(output) = timeout(hold, &mut call).await {
        return output;
    }
    if is_at_work()
        && let Ok(output) = timeout(WORK, &mut call).await
    {
        return output;
    }
    drop(permit);
    call.await
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_quiet_when_nothing_was_asked_for_a_while() {
        let pace = Pace::new(2, 2);
        let began = Instant::now();
        let calls = async {
            for _ in 0..3 {
                pace.launch(sleep(Duration::from_millis(70))).await;
                sleep(Duration::from_millis(60)).await;
            }
        };
        tokio::join!(calls, pace.quiet(Duration::from_millis(100)));
        assert_eq!(began.elapsed(), Duration::from_millis(3 * 70 + 2 * 60 + 100));
    }

    fn ids(count: usize) -> Vec<EngineId> {
        (0..count).map(|i| EngineId::new(format!("{i:064x}")).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn containers_that_do_not_heed_the_signal_delay_no_other_stop() {
        let (pace, ids) = (Pace::new(1, 2), ids(3));
        let begun = Instant::now();
        let slow = join_all(ids[..2].iter().map(|id| pace.stop(id, sleep(Duration::from_secs(30)))));
        let quick = async {
            sleep(Duration::from_millis(1)).await;
            pace.stop(&ids[2], async {}).await;
            begun.elapsed()
        };
        let (_, waited) = tokio::join!(slow, quick);
        assert!(waited <= SIGNAL + Duration::from_millis(5), "{waited:?}");
        assert_eq!(begun.elapsed().as_secs(), 30);
        assert!(lock(&pace.stopping).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_engine_does_after_a_death_is_done_by_so_many_at_once() {
        let (pace, ids) = (Pace::new(1, 2), ids(6));
        let begun = Instant::now();
        let stop = |id| {
            let pace = &pace;
            pace.stop(id, async move {
                sleep(Duration::from_millis(50)).await;
                pace.died(id, Some(3), Timestamp(7));
                sleep(Duration::from_millis(950)).await;
            })
        };
        let ended = join_all(ids.iter().map(stop)).await;
        assert!(ended.iter().all(|(_, exit)| exit.as_ref().is_some_and(|exit| exit.code == 3)));
        assert!((3000..3010).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn an_end_that_was_not_told_whole_is_to_be_asked_for() {
        let (pace, ids) = (Pace::new(1, 1), ids(2));
        let (id, other) = (&ids[0], &ids[1]);
        assert_eq!(pace.stop(id, async {}).await.1, None);
        assert_eq!(pace.stop(id, async { pace.died(other, Some(0), Timestamp(7)) }).await.1, None);
        assert_eq!(pace.stop(id, async { pace.died(id, None, Timestamp(7)) }).await.1, None);
        let starved = async {
            pace.out_of_memory(id);
            pace.died(id, Some(137), Timestamp(7));
        };
        assert_eq!(pace.stop(id, starved).await.1, None);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_launches_at_once_and_no_more() {
        let pace = Pace::new(4, 1);
        let begun = Instant::now();
        join_all((0..8).map(|_| pace.launch(async { sleep(Duration::from_millis(200)).await }))).await;
        assert!((400..410).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }
}
