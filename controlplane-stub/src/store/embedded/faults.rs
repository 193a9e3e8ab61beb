//! The store over storage that fails or loses its power: what was acknowledged is never lost, and
//! a transaction is never there in part.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::units::Timestamp;
use redb::StorageBackend;

use super::{EmbeddedStore, File};
use crate::model::Cluster;
use crate::store::{CommitError, Key, Record, Store, Txn};

const SECTOR: usize = 512;

/// A disk with a cache that a power cut empties in part.
#[derive(Debug, Default)]
struct Disk {
    /// What the program sees.
    live: Vec<u8>,
    /// What survives a power cut for certain.
    durable: Vec<u8>,
    /// Written since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
    /// Operations until the power goes; `None` for never.
    power: Option<u32>,
    /// Decides what of the cache survives.
    chance: u64,
    /// Every write fails from now on.
    failing: bool,
}

impl Disk {
    fn random(&mut self) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance
    }

    fn operate(&mut self) -> io::Result<()> {
        if let Some(left) = self.power.as_mut() {
            if *left == 0 {
                return Err(io::Error::other("no power"));
            }
            *left -= 1;
            if *left == 0 {
                self.cut();
                return Err(io::Error::other("the power went"));
            }
        }
        if self.failing { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }

    /// A random part of the sectors in the cache reaches the disk, in any order.
    fn cut(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        if self.random() & 1 == 0 {
            pending.reverse();
        }
        for (offset, data) in pending {
            for (n, sector) in data.chunks(SECTOR).enumerate() {
                if self.random() & 1 == 0 {
                    put(&mut self.durable, offset + n * SECTOR, sector);
                }
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

#[derive(Debug, Clone)]
struct Storage(Arc<Mutex<Disk>>);

impl Storage {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same disk after the power came back.
    fn again(&self, power: Option<u32>) -> Self {
        let disk = self.lock();
        let durable = disk.durable.clone();
        Self(Arc::new(Mutex::new(Disk {
            live: durable.clone(),
            durable,
            power,
            chance: disk.chance,
            ..Disk::default()
        })))
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.lock();
        let bytes = disk.live.get(at(offset)..at(offset) + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.lock();
        disk.operate()?;
        disk.live.resize(at(len), 0);
        // The length is the file system's, which keeps it in order.
        disk.durable.resize(at(len), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.lock();
        disk.operate()?;
        disk.pending.clear();
        disk.durable = disk.live.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.lock();
        disk.operate()?;
        put(&mut disk.live, at(offset), data);
        disk.pending.push((at(offset), data.to_vec()));
        Ok(())
    }
}

fn open(storage: &Storage) -> EmbeddedStore {
    let (file, index) = File::over(storage.clone()).unwrap();
    EmbeddedStore::start(file, index).unwrap()
}

/// Writes one value under two names.
fn both(n: usize, value: u64) -> Txn {
    let record = |name: String| {
        let cluster = Cluster {
            arn: name.clone(),
            name: name.clone(),
            active: true,
            settings: [].into(),
            tags: [].into(),
            created_at: Timestamp(value),
        };
        (Key::Cluster(name), Record::Cluster(Arc::new(cluster)))
    };
    Txn { puts: vec![record(format!("left-{n}")), record(format!("right-{n}"))], ..Txn::default() }
}

fn values(store: &EmbeddedStore, n: usize) -> (Option<u64>, Option<u64>) {
    let view = store.view();
    let of = |name: String| view.cluster(&name).map(|cluster| cluster.value.created_at.0);
    (of(format!("left-{n}")), of(format!("right-{n}")))
}

#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let mut cut = 0;
    for seed in 1..=16_u64 {
        let disk = Disk { chance: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..Disk::default() };
        let mut storage = Storage(Arc::new(Mutex::new(disk)));
        open(&storage).close().await;
        let mut acknowledged: BTreeMap<usize, u64> = BTreeMap::new();
        let mut value = 0;
        for _life in 0..3 {
            let power = u32::try_from(storage.lock().random() % 120).unwrap();
            // Opening may be cut short as well; then this life was a short one.
            storage = storage.again(Some(40 + power));
            if let Ok((file, index)) = File::over(storage.clone()) {
                let store = EmbeddedStore::start(file, index).unwrap();
                let mut unanswered = None;
                for step in 0..30 {
                    value += 1;
                    match store.commit(both(step % 4, value)).await {
                        Ok(_) => drop(acknowledged.insert(step % 4, value)),
                        Err(CommitError::Unavailable(_)) => {
                            unanswered = Some((step % 4, value));
                            cut += 1;
                            break;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                store.close().await;
                storage = storage.again(None);
                let store = open(&storage);
                for n in 0..4 {
                    let (left, right) = values(&store, n);
                    assert_eq!(left, right, "seed {seed}: a transaction is there in part");
                    let unanswered = unanswered.filter(|(at, _)| *at == n).map(|(_, value)| value);
                    assert!(
                        left == acknowledged.get(&n).copied() || (unanswered.is_some() && left == unanswered),
                        "seed {seed}: {left:?} instead of {:?} or {unanswered:?}",
                        acknowledged.get(&n)
                    );
                    acknowledged.extend(left.map(|left| (n, left)));
                }
                store.close().await;
            } else {
                storage = storage.again(None);
            }
        }
    }
    assert!(cut > 16, "the power is to go while something is written, and did so {cut} times");
}

#[tokio::test]
async fn after_a_write_has_failed_nothing_is_written_any_more_and_reads_go_on() {
    let storage = Storage(Arc::default());
    let store = open(&storage);
    store.commit(both(1, 1)).await.unwrap();
    let mut watch = store.watch();
    storage.lock().failing = true;
    let error = store.commit(both(1, 2)).await.unwrap_err();
    assert!(error.to_string().contains("the store cannot write: test storage: "), "{error}");
    assert!(error.to_string().contains("the disk is broken"), "{error}");
    // What is on the disk is not known now, so that mending it is not enough.
    storage.lock().failing = false;
    assert!(matches!(store.commit(both(1, 3)).await, Err(CommitError::Unavailable(_))));
    assert_eq!(values(&store, 1), (Some(1), Some(1)));
    assert!(watch.try_recv().is_err(), "what was not made is not told");
}
