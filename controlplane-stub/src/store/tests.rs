//! What every store promises, asked of both; and what the embedded one promises beyond.

use std::sync::Arc;

use berth_core::units::Timestamp;

use super::embedded::{EmbeddedStore, OpenError};
use super::memory::MemoryStore;
use super::{CommitError, Key, Record, Store, Txn};
use crate::model::Cluster;

fn cluster(name: &str, created_at: u64) -> (Key, Record) {
    let cluster = Cluster {
        arn: format!("arn:aws:ecs:r:1:cluster/{name}"),
        name: name.to_owned(),
        active: true,
        settings: [].into(),
        tags: [].into(),
        created_at: Timestamp(created_at),
    };
    (Key::Cluster(name.to_owned()), Record::Cluster(Arc::new(cluster)))
}

fn put(name: &str, value: u64, compare: Option<Option<u64>>) -> Txn {
    let (key, record) = cluster(name, value);
    Txn {
        compares: compare.map(|revision| (key.clone(), revision)).into_iter().collect(),
        puts: vec![(key, record)],
        deletes: Vec::new(),
    }
}

fn value(store: &dyn Store, name: &str) -> Option<u64> {
    store.view().cluster(name).map(|c| c.value.created_at.0)
}

async fn conformance(store: Arc<dyn Store>) {
    let mut watch = store.watch();
    assert_eq!(store.view().revision(), 0);

    // Compare-and-swap.
    let first = store.commit(put("a", 1, Some(None))).await.unwrap();
    let conflict = store.commit(put("a", 2, Some(None))).await.unwrap_err();
    assert!(matches!(&conflict, CommitError::Conflict(key) if key.to_string() == "cluster/a"), "{conflict}");
    assert_eq!(value(&*store, "a"), Some(1));
    let old = store.view();
    let second = store.commit(put("a", 2, Some(Some(first)))).await.unwrap();
    assert!(second > first);
    assert!(store.commit(put("a", 3, Some(Some(first)))).await.is_err());

    // A view stays what it was.
    assert_eq!(old.cluster("a").map(|c| (c.value.created_at.0, c.revision)), Some((1, first)));
    assert_eq!(value(&*store, "a"), Some(2));

    // Wholly or not at all.
    let mut both = put("b", 1, Some(None));
    both.compares.push((Key::Cluster("a".to_owned()), Some(first)));
    assert!(store.commit(both).await.is_err());
    assert_eq!(value(&*store, "b"), None);

    // A record under the key of another kind is refused.
    let wrong = Txn { puts: vec![(Key::Cluster("x".to_owned()), Record::Family(1))], ..Txn::default() };
    assert!(matches!(store.commit(wrong).await, Err(CommitError::Unavailable(_))));

    // Deleting, and making again under the condition that there is none.
    let delete = Txn {
        compares: vec![(Key::Cluster("a".to_owned()), Some(second))],
        deletes: vec![Key::Cluster("a".to_owned())],
        ..Txn::default()
    };
    store.commit(delete).await.unwrap();
    assert_eq!(value(&*store, "a"), None);
    store.commit(put("a", 9, Some(None))).await.unwrap();
    let family = Txn { puts: vec![(Key::Family("web".to_owned()), Record::Family(3))], ..Txn::default() };
    let at = store.commit(family).await.unwrap();
    assert_eq!(store.view().family("web").map(|f| (f.value, f.revision)), Some((3, at)));

    // Of many writers who saw the same, one wins.
    let seen = store.view().cluster("a").unwrap().revision;
    let attempts: Vec<_> = (0..20).map(|n| store.commit(put("a", n, Some(Some(seen))))).collect();
    let results = futures_util::future::join_all(attempts).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);

    // Everything is told, in order.
    let last = store.reset().await.unwrap();
    assert_eq!(store.view().clusters().len(), 0);
    assert_eq!(store.view().revision(), last);
    let mut before = 0;
    loop {
        let commit = watch.recv().await.unwrap();
        assert_eq!(commit.revision, before + 1, "every revision is told once");
        assert!(!commit.keys.is_empty());
        before = commit.revision;
        if commit.revision == last {
            assert!(commit.keys.contains(&Key::Family("web".to_owned())));
            return;
        }
    }
}

#[tokio::test]
async fn the_memory_store_conforms() {
    conformance(Arc::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn the_embedded_store_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conformance(Arc::new(EmbeddedStore::open(&directory.path().join("store.redb")).unwrap())).await;
}

#[tokio::test]
async fn what_was_committed_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deeper/store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    for n in 0..10 {
        store.commit(put(&format!("c{n}"), n, Some(None))).await.unwrap();
    }
    store.commit(Txn { deletes: vec![Key::Cluster("c3".to_owned())], ..Txn::default() }).await.unwrap();
    let before = store.view();
    store.close().await;
    assert!(matches!(store.commit(put("late", 1, None)).await, Err(CommitError::Unavailable(_))));

    let store = EmbeddedStore::open(&path).unwrap();
    let after = store.view();
    assert_eq!(after.revision(), before.revision());
    assert_eq!(after.clusters(), before.clusters());
    assert_eq!(after.cluster("c4").unwrap().revision, before.cluster("c4").unwrap().revision);
    store.reset().await.unwrap();
    store.close().await;
    assert!(EmbeddedStore::open(&path).unwrap().view().clusters().is_empty());
}

#[tokio::test]
async fn a_file_in_use_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let _first = EmbeddedStore::open(&path).unwrap();
    let error = EmbeddedStore::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    assert!(error.to_string().contains("store.redb is in use"), "{error}");
}

#[tokio::test]
async fn a_creation_that_a_crash_cut_short_is_made_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    std::fs::write(path.with_extension("new"), b"half a file").unwrap();
    let store = EmbeddedStore::open(&path).unwrap();
    store.commit(put("a", 1, None)).await.unwrap();
    assert_eq!(value(&store, "a"), Some(1));
}

#[tokio::test]
async fn a_file_that_is_put_back_does_not_hold_what_came_after_the_copy() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("store.redb"), directory.path().join("copy"));
    let point = |store: &EmbeddedStore| store.history().at(store.view().revision());
    let holds = |store: &EmbeddedStore, seen| store.history().holds(&seen, store.view().revision());
    let store = EmbeddedStore::open(&path).unwrap();
    store.commit(put("a", 1, None)).await.unwrap();
    let copied = point(&store);
    // While it runs.
    std::fs::copy(&path, &copy).unwrap();
    store.commit(put("a", 2, None)).await.unwrap();
    let same_life = point(&store);
    store.close().await;
    let store = EmbeddedStore::open(&path).unwrap();
    let next_life = point(&store);
    assert!(
        holds(&store, copied.clone()) && holds(&store, same_life.clone()) && holds(&store, next_life.clone())
    );
    store.close().await;

    std::fs::copy(&copy, &path).unwrap();
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(value(&store, "a"), Some(1));
    // Whatever it comes to from here.
    for n in 0..5 {
        store.commit(put("a", n, None)).await.unwrap();
    }
    assert!(holds(&store, copied));
    assert!(!holds(&store, same_life) && !holds(&store, next_life));
}

#[tokio::test]
async fn lives_are_not_remembered_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mut first = None;
    for _ in 0..=super::history::MOST {
        let store = EmbeddedStore::open(&path).unwrap();
        let here = store.history().at(0);
        assert!(store.history().holds(&here, 0));
        let known = first.get_or_insert(here).clone();
        let of_all = store.history().holds(&known, 0);
        store.close().await;
        if !of_all {
            return;
        }
    }
    panic!("the first life is remembered still");
}
