use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kedge_base::Tasks;
use kedge_store::{Check, CommitError, Config, Error, Op, Store, Txn, Value};

use crate::model::{Mirror, Model, Random, config, delete, open, put, txn};

#[tokio::test]
async fn a_fresh_store_is_at_revision_one_and_counts_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mirror) = open(dir.path()).await.unwrap();
    assert_eq!((store.revision(), store.read_barrier().await.unwrap()), (1, 1));
    assert_eq!(store.commit(txn(&[], vec![])).await, Ok(1), "no change, no revision");
    let value = Value { bytes: Bytes::from_static(br#"{"resourceVersion":""}"#), splice: Some(20) };
    let create = txn(&[("a", Check::Absent)], vec![Op::Put { key: "a".into(), value }]);
    assert_eq!(store.commit(create.clone()).await, Ok(2));
    assert_eq!(mirror.content()["a"], (br#"{"resourceVersion":"2"}"#.to_vec(), 2, 2));
    let conflict = Err(CommitError::Conflict { key: "a".into(), current: Some(2) });
    assert_eq!(store.commit(create).await, conflict);
    assert_eq!(store.commit(txn(&[], vec![delete("none")])).await, Ok(2));
    assert_eq!(store.commit(txn(&[("a", Check::At(2))], vec![put("a", b"x"), put("b", b"y")])).await, Ok(3));
    assert_eq!(store.commit(txn(&[("b", Check::Any)], vec![delete("b")])).await, Ok(4));
    let missing = Err(CommitError::Conflict { key: "b".into(), current: None });
    assert_eq!(store.commit(txn(&[("b", Check::Any)], vec![put("c", b"")])).await, missing);
    assert_eq!(store.stats().keys, 1);
    store.close().await.unwrap();
    assert_eq!(store.commit(txn(&[], vec![put("a", b"z")])).await, Err(CommitError::Closed));
    store.close().await.unwrap();

    let (store, mirror) = open(dir.path()).await.unwrap();
    assert_eq!(store.revision(), 4);
    assert_eq!(mirror.content().into_iter().collect::<Vec<_>>(), [("a".into(), (b"x".to_vec(), 2, 3))]);
    store.close().await.unwrap();
}

#[tokio::test]
async fn nonsense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await.unwrap();
    for bad in [
        txn(&[], vec![put("", b"")]),
        txn(&[("", Check::Absent)], vec![]),
        txn(&[], vec![put("a", b""), delete("a")]),
        txn(&[], vec![Op::Put { key: "a".into(), value: Value { bytes: Bytes::new(), splice: Some(1) } }]),
    ] {
        assert!(matches!(store.commit(bad).await, Err(CommitError::Invalid(_))));
    }
    let large = txn(&[], vec![put("a", &vec![0; 5 << 20])]);
    assert!(matches!(store.commit(large).await, Err(CommitError::TooLarge { .. })));
    assert_eq!(store.commit(txn(&[], vec![put("a", &vec![0; 3 << 20])])).await, Ok(2));
    store.close().await.unwrap();
}

#[tokio::test]
async fn the_folder_has_one_user_and_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await.unwrap();
    assert!(matches!(open(dir.path()).await, Err(Error::InUse(_))));
    store.commit(txn(&[], vec![put("a", b"")])).await.unwrap();
    store.close().await.unwrap();
    let other = Config { node_id: 2, ..config(dir.path()) };
    let opened = Store::open(other, Arc::<Mirror>::default(), &Tasks::new("test")).await;
    assert!(matches!(opened.err(), Some(Error::WrongNode { found: 1, expected: 2, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_commits_share_flushes_and_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = Tasks::new("test");
    let mirror = Arc::new(Mirror::default());
    let store = Store::open(config(dir.path()), mirror.clone(), &tasks).await.unwrap();
    let clients: Vec<_> = (0..16)
        .map(|client| {
            let store = store.clone();
            tasks.spawn("client", async move {
                let mut won = 0;
                for i in 0..40 {
                    // All want the same key; one gets it.
                    let claim = format!("claim/{i}");
                    let own = format!("own/{client}/{i}");
                    let both = txn(&[(&claim, Check::Absent)], vec![put(&claim, b"mine"), put(&own, b"x")]);
                    match store.commit(both).await {
                        Ok(_) => won += 1,
                        Err(CommitError::Conflict { key, current: Some(_) }) => assert_eq!(*key, *claim),
                        Err(error) => panic!("{error}"),
                    }
                    store.commit(txn(&[], vec![put("shared", own.as_bytes())])).await.unwrap();
                }
                won
            })
        })
        .collect();
    let mut won = 0;
    for client in clients {
        won += client.await.unwrap();
    }
    assert_eq!(won, 40);
    assert_eq!(store.revision(), 1 + 40 + 16 * 40);
    assert_eq!(mirror.content().len(), 40 + 40 + 1);
    let stats = store.stats();
    assert!(stats.fsyncs < stats.transactions, "{stats:?}");
    assert!(tasks.shutdown(Duration::from_secs(60)).await.is_empty());
    assert_eq!(store.commit(txn(&[], vec![put("a", b"z")])).await, Err(CommitError::Closed));
}

#[tokio::test]
async fn lazy_transactions_wait_for_others_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mirror) = open(dir.path()).await.unwrap();
    let lazy = |key: &str| Txn { lazy: true, ..txn(&[], vec![put(key, b"")]) };
    let before = store.stats().fsyncs;
    let (a, b) = tokio::join!(store.commit(lazy("a")), store.commit(lazy("b")));
    assert_eq!(a.unwrap() + b.unwrap(), 5);
    assert_eq!(store.stats().fsyncs, before + 1, "both share one flush");
    let (a, b) = tokio::join!(store.commit(lazy("c")), store.commit(txn(&[], vec![put("d", b"")])));
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(mirror.content().len(), 4);
    store.close().await.unwrap();
}

#[tokio::test]
async fn an_idle_store_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await.unwrap();
    let before = store.stats();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(store.stats(), before);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_long_life_cuts_the_log_and_keeps_two_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let mut random = Random(7);
    for _ in 0..4 {
        let (store, mirror) = open(dir.path()).await.unwrap();
        for _ in 0..400 {
            let txn = random.txn(&model);
            assert_eq!(store.commit(txn.clone()).await, model.apply(&txn));
        }
        assert_eq!(mirror.content(), model.content);
        let stats = store.stats();
        assert!(stats.snapshots > 0 && stats.engine_flushes > 0, "{stats:?}");
        store.close().await.unwrap();
    }
    let snapshots = crate::model::files(&dir.path().join("snapshots")).len();
    assert_eq!(snapshots, 2);
    assert!(!dir.path().join("wal/0000000000000001.log").exists(), "the log is cut");
    let (store, mirror) = open(dir.path()).await.unwrap();
    assert_eq!((mirror.content(), store.revision()), (model.content, model.revision));
    store.close().await.unwrap();
}
