//! Everything in memory: the records by name, as an immutable snapshot that is cheap to copy.
//!
//! Both stores keep one [`Index`]. Maps are split into shards behind `Arc`s, so that a change
//! copies the few shards that it touches, and a view keeps what it saw at no further cost.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::{CommitError, Key, Record, Revision, Txn, Versioned, View};
use crate::model::{Cluster, Instance, Task, TaskDefinition};

const SHARDS: usize = 64;

/// A copy-on-write map from names to values.
#[derive(Debug, Clone)]
struct Shards<V> {
    shards: Vec<Arc<HashMap<String, V>>>,
}

impl<V: Clone> Default for Shards<V> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Arc::default()).collect() }
    }
}

impl<V: Clone> Shards<V> {
    fn place(name: &str) -> usize {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or_default()
    }

    fn get(&self, name: &str) -> Option<&V> {
        self.shards.get(Self::place(name))?.get(name)
    }

    fn shard_mut(&mut self, name: &str) -> Option<&mut HashMap<String, V>> {
        self.shards.get_mut(Self::place(name)).map(Arc::make_mut)
    }

    fn insert(&mut self, name: String, value: V) -> Option<V> {
        self.shard_mut(&name)?.insert(name, value)
    }

    fn remove(&mut self, name: &str) -> Option<V> {
        self.shard_mut(name)?.remove(name)
    }

    fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

/// One family of task definitions.
#[derive(Debug, Clone, Default)]
struct Family {
    last: Option<Versioned<u32>>,
    revisions: BTreeMap<u32, Versioned<Arc<TaskDefinition>>>,
}

/// All records as of one revision.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    revision: Revision,
    clusters: Shards<Versioned<Arc<Cluster>>>,
    families: Shards<Arc<Family>>,
    instances: Shards<Versioned<Arc<Instance>>>,
    tasks: Shards<Versioned<Arc<Task>>>,
    /// The tasks of each instance by task id.
    by_instance: Shards<Arc<BTreeMap<String, Versioned<Arc<Task>>>>>,
}

fn scoped(cluster: &str, id: &str) -> String {
    format!("{cluster}/{id}")
}

impl Index {
    /// The revision of the last commit.
    pub(super) const fn last_revision(&self) -> Revision {
        self.revision
    }

    /// Takes the revision of a file that was read.
    pub(super) const fn set_revision(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// The revision of one record.
    fn revision_of(&self, key: &Key) -> Option<Revision> {
        match key {
            Key::Cluster(name) => self.clusters.get(name).map(|r| r.revision),
            Key::TaskDefinition(family, revision) => {
                self.families.get(family).and_then(|f| f.revisions.get(revision)).map(|r| r.revision)
            }
            Key::Family(family) => {
                self.families.get(family).and_then(|f| f.last.as_ref()).map(|r| r.revision)
            }
            Key::Instance(cluster, id) => self.instances.get(&scoped(cluster, id)).map(|r| r.revision),
            Key::Task(cluster, id) => self.tasks.get(&scoped(cluster, id)).map(|r| r.revision),
        }
    }

    /// Whether the conditions of a transaction hold, and keys and records go together.
    pub(super) fn check(&self, txn: &Txn) -> Result<(), CommitError> {
        for (key, expected) in &txn.compares {
            if self.revision_of(key) != *expected {
                return Err(CommitError::Conflict(key.clone()));
            }
        }
        for (key, record) in &txn.puts {
            let same_kind = matches!(
                (key, record),
                (Key::Cluster(_), Record::Cluster(_))
                    | (Key::TaskDefinition(..), Record::TaskDefinition(_))
                    | (Key::Family(_), Record::Family(_))
                    | (Key::Instance(..), Record::Instance(_))
                    | (Key::Task(..), Record::Task(_))
            );
            if !same_kind {
                return Err(CommitError::Unavailable(format!("the record for {key} is of another kind")));
            }
        }
        Ok(())
    }

    /// Makes the changes of a transaction that was checked, and tells the keys that changed.
    pub(super) fn apply(&mut self, txn: &Txn) -> Vec<Key> {
        self.revision += 1;
        let revision = self.revision;
        for (key, record) in &txn.puts {
            self.put(key, record, revision);
        }
        for key in &txn.deletes {
            self.delete(key);
        }
        txn.puts.iter().map(|(key, _)| key).chain(&txn.deletes).cloned().collect()
    }

    /// Empties everything, and tells the keys that were there.
    pub(super) fn clear(&mut self) -> Vec<Key> {
        let keys = self.keys();
        *self = Self { revision: self.revision + 1, ..Self::default() };
        keys
    }

    /// The names of all records.
    fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<Key> = self.clusters.iter().map(|(name, _)| Key::Cluster(name.clone())).collect();
        for (name, family) in self.families.iter() {
            keys.extend(family.last.iter().map(|_| Key::Family(name.clone())));
            keys.extend(family.revisions.keys().map(|revision| Key::TaskDefinition(name.clone(), *revision)));
        }
        let pair = |name: &str| name.split_once('/').map(|(c, id)| (c.to_owned(), id.to_owned()));
        keys.extend(
            self.instances.iter().filter_map(|(name, _)| pair(name)).map(|(c, id)| Key::Instance(c, id)),
        );
        keys.extend(self.tasks.iter().filter_map(|(name, _)| pair(name)).map(|(c, id)| Key::Task(c, id)));
        keys
    }

    /// Writes one record.
    pub(super) fn put(&mut self, key: &Key, record: &Record, revision: Revision) {
        match (key, record) {
            (Key::Cluster(name), Record::Cluster(value)) => {
                self.clusters.insert(name.clone(), Versioned { value: Arc::clone(value), revision });
            }
            (Key::TaskDefinition(family, number), Record::TaskDefinition(value)) => {
                let value = Versioned { value: Arc::clone(value), revision };
                self.change_family(family, |f| drop(f.revisions.insert(*number, value)));
            }
            (Key::Family(family), Record::Family(value)) => {
                let value = Versioned { value: *value, revision };
                self.change_family(family, |f| f.last = Some(value));
            }
            (Key::Instance(cluster, id), Record::Instance(value)) => {
                self.instances.insert(scoped(cluster, id), Versioned { value: Arc::clone(value), revision });
            }
            (Key::Task(cluster, id), Record::Task(value)) => {
                let value = Versioned { value: Arc::clone(value), revision };
                let before = self.tasks.insert(scoped(cluster, id), value.clone());
                if let Some(before) = before.filter(|before| before.value.instance != value.value.instance) {
                    self.unlink(&before.value.instance, id);
                }
                let mut tasks = self.by_instance.remove(&value.value.instance).unwrap_or_default();
                let instance = value.value.instance.clone();
                Arc::make_mut(&mut tasks).insert(id.clone(), value);
                self.by_instance.insert(instance, tasks);
            }
            _ => {}
        }
    }

    fn delete(&mut self, key: &Key) {
        match key {
            Key::Cluster(name) => drop(self.clusters.remove(name)),
            Key::TaskDefinition(family, number) => {
                self.change_family(family, |f| drop(f.revisions.remove(number)));
            }
            Key::Family(family) => self.change_family(family, |f| f.last = None),
            Key::Instance(cluster, id) => drop(self.instances.remove(&scoped(cluster, id))),
            Key::Task(cluster, id) => {
                if let Some(before) = self.tasks.remove(&scoped(cluster, id)) {
                    self.unlink(&before.value.instance, id);
                }
            }
        }
    }

    fn unlink(&mut self, instance: &str, id: &str) {
        let Some(mut tasks) = self.by_instance.remove(instance) else { return };
        Arc::make_mut(&mut tasks).remove(id);
        if !tasks.is_empty() {
            self.by_instance.insert(instance.to_owned(), tasks);
        }
    }

    fn change_family(&mut self, name: &str, change: impl FnOnce(&mut Family)) {
        let mut family = self.families.remove(name).unwrap_or_default();
        change(Arc::make_mut(&mut family));
        if family.last.is_some() || !family.revisions.is_empty() {
            self.families.insert(name.to_owned(), family);
        }
    }
}

/// The values whose name begins with the cluster's, in order of name.
fn of_cluster<V: Clone>(shards: &Shards<V>, cluster: Option<&str>) -> Vec<V> {
    let belongs =
        |name: &str| cluster.is_none_or(|c| name.strip_prefix(c).is_some_and(|rest| rest.starts_with('/')));
    let mut found: Vec<(&String, &V)> = shards.iter().filter(|(name, _)| belongs(name)).collect();
    found.sort_by_key(|(name, _)| *name);
    found.into_iter().map(|(_, value)| value.clone()).collect()
}

impl View for Index {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn cluster(&self, name: &str) -> Option<Versioned<Arc<Cluster>>> {
        self.clusters.get(name).cloned()
    }

    fn clusters(&self) -> Vec<Arc<Cluster>> {
        of_cluster(&self.clusters, None).into_iter().map(|cluster| cluster.value).collect()
    }

    fn task_definition(&self, family: &str, revision: u32) -> Option<Versioned<Arc<TaskDefinition>>> {
        self.families.get(family)?.revisions.get(&revision).cloned()
    }

    fn task_definitions(&self, family: Option<&str>) -> Vec<Arc<TaskDefinition>> {
        let families = match family {
            Some(name) => self.families.get(name).cloned().into_iter().collect(),
            None => of_cluster(&self.families, None),
        };
        families.iter().flat_map(|f| f.revisions.values()).map(|r| Arc::clone(&r.value)).collect()
    }

    fn family(&self, family: &str) -> Option<Versioned<u32>> {
        self.families.get(family)?.last.clone()
    }

    fn instance(&self, cluster: &str, id: &str) -> Option<Versioned<Arc<Instance>>> {
        self.instances.get(&scoped(cluster, id)).cloned()
    }

    fn instances(&self, cluster: Option<&str>) -> Vec<Versioned<Arc<Instance>>> {
        of_cluster(&self.instances, cluster)
    }

    fn task(&self, cluster: &str, id: &str) -> Option<Versioned<Arc<Task>>> {
        self.tasks.get(&scoped(cluster, id)).cloned()
    }

    fn tasks(&self, cluster: Option<&str>) -> Vec<Versioned<Arc<Task>>> {
        of_cluster(&self.tasks, cluster)
    }

    fn tasks_on(&self, instance: &str) -> Vec<Versioned<Arc<Task>>> {
        self.by_instance.get(instance).map(|tasks| tasks.values().cloned().collect()).unwrap_or_default()
    }
}
