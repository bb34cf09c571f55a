//! Seeded random transactions with crashes in between: what was acknowledged is there, the rest is there
//! whole or not at all.

use std::path::Path;

use kedge_base::Tasks;
use kedge_store::Txn;

use crate::model::{Content, Model, Random, copy, files, open};

/// Whether `found` is the model plus some of the open transactions, each whole, in some order.
fn explains(model: &Model, open: &[Txn], found: &Content, revision: u64) -> bool {
    if model.revision == revision && model.content == *found {
        return true;
    }
    model.revision < revision
        && (0..open.len()).any(|i| {
            let mut next = model.clone();
            let mut rest = open.to_vec();
            let txn = rest.remove(i);
            next.apply(&txn).is_ok()
                && next.revision > model.revision
                && explains(&next, &rest, found, revision)
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_loses_nothing_acknowledged() {
    for seed in 1..=6 {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(seed);
        let mut model = Model::default();
        for round in 0..8 {
            let (store, mirror) = open(dir.path()).await.unwrap();
            assert_eq!(mirror.content(), model.content, "seed {seed} round {round}");
            assert_eq!(store.revision(), model.revision);
            for _ in 0..random.below(150) {
                let txn = random.txn(&model);
                assert_eq!(store.commit(txn.clone()).await, model.apply(&txn), "seed {seed} round {round}");
            }
            // Some more, unanswered.
            let tasks = Tasks::new("test");
            let open_txns: Vec<Txn> = (0..random.below(4)).map(|_| random.txn(&model)).collect();
            let waiting: Vec<_> = open_txns
                .iter()
                .map(|txn| {
                    let (store, txn) = (store.clone(), txn.clone());
                    tasks.spawn("open", async move { store.commit(txn).await })
                })
                .collect();
            store.abandon().await;
            for task in waiting {
                let _ = task.await.unwrap();
            }
            let (store, mirror) = open(dir.path()).await.unwrap();
            let (found, revision) = (mirror.content(), store.revision());
            assert!(explains(&model, &open_txns, &found, revision), "seed {seed} round {round}");
            model = Model { revision, content: found };
            if random.below(2) == 0 {
                store.abandon().await;
            } else {
                store.close().await.unwrap();
            }
        }
    }
}

/// Copies of the folder at arbitrary moments of a running store: a crash of the machine that kept all
/// that was written. Then the unsynced end of the log is damaged as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_taken_at_any_moment_is_a_whole_store() {
    let tasks = Tasks::new("test");
    let mut checked = 0;
    for seed in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(seed * 1000);
        let mut model = Model::default();
        let mut history = vec![(model.revision, model.content.clone())];
        let (store, _) = open(dir.path()).await.unwrap();
        for copies in 0..5 {
            let target = tempfile::tempdir().unwrap();
            for _ in 0..random.below(120) {
                commit(&store, &mut random, &mut model, &mut history).await;
            }
            let acknowledged = model.revision;
            let (from, to) = (dir.path().to_owned(), target.path().to_owned());
            let copying = tasks.spawn("copy", async move {
                tokio::task::spawn_blocking(move || copy_log_last(&from, &to)).await.unwrap();
            });
            while !copying.is_finished() {
                commit(&store, &mut random, &mut model, &mut history).await;
            }
            if copying.await.is_err() {
                continue;
            }
            if random.below(2) == 0 {
                tear(&target.path().join("wal"), &mut random);
            }
            // A copy is no instant: the log may be cut between two files. That is then an error, which
            // must not be taken for a loss; a wrong answer must never come.
            match open(target.path()).await {
                Ok((copied, mirror)) => {
                    let revision = copied.revision();
                    let row = history.iter().find(|(r, _)| *r == revision);
                    assert_eq!(mirror.content(), row.unwrap().1, "seed {seed} copy {copies}");
                    assert!(revision >= acknowledged, "seed {seed} copy {copies}");
                    copied.close().await.unwrap();
                    checked += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(target.path().to_str().unwrap()), "{text}");
                }
            }
        }
        store.close().await.unwrap();
    }
    assert!(checked >= 8, "only {checked} copies could be opened");
}

async fn commit(
    store: &kedge_store::Store,
    random: &mut Random,
    model: &mut Model,
    history: &mut Vec<(u64, Content)>,
) {
    let txn = random.txn(model);
    let before = model.revision;
    assert_eq!(store.commit(txn.clone()).await, model.apply(&txn));
    if model.revision > before {
        history.push((model.revision, model.content.clone()));
    }
}

/// The log after the rest, so that it reaches at least as far as the state.
fn copy_log_last(from: &Path, to: &Path) {
    copy(&from.join("snapshots"), &to.join("snapshots"));
    copy(&from.join("engine"), &to.join("engine"));
    copy(&from.join("wal"), &to.join("wal"));
}

/// Noise after the end of the log: what a torn write leaves behind.
fn tear(wal: &Path, random: &mut Random) {
    let Some(path) = files(wal).into_iter().rfind(|path| path.extension().is_some_and(|e| e == "log")) else {
        return;
    };
    let mut bytes = std::fs::read(&path).unwrap();
    // Everything after the last byte that is not zero was never written.
    let end = (bytes.iter().rposition(|&b| b != 0).unwrap() + 8) & !7;
    let noise = (16 + random.below(3000) as usize).min(bytes.len() - end.min(bytes.len()));
    for byte in &mut bytes[end..end + noise] {
        *byte = random.next() as u8;
    }
    std::fs::write(&path, bytes).unwrap();
}
