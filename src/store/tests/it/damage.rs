//! Damaged and missing files: repaired with right answers, or refused with an error that names the file.
//! Never a wrong answer.

use std::fs;
use std::path::{Path, PathBuf};

use kedge_store::Error;

use crate::model::{Content, Model, Random, copy, files, open};

/// A store with some life behind it, and its content at every revision.
struct Subject {
    dir: tempfile::TempDir,
    history: Vec<(u64, Content)>,
}

async fn subject(seed: u64, closed: bool) -> Subject {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(seed);
    let mut model = Model::default();
    let mut history = vec![(1, Content::new())];
    let (store, _) = open(dir.path()).await.unwrap();
    while store.stats().snapshots < 3 || history.len() % 50 != 0 {
        let txn = random.txn(&model);
        assert_eq!(store.commit(txn.clone()).await, model.apply(&txn));
        if model.revision > history.last().unwrap().0 {
            history.push((model.revision, model.content.clone()));
        }
    }
    if closed {
        store.close().await.unwrap();
    } else {
        store.abandon().await;
    }
    Subject { dir, history }
}

impl Subject {
    fn copy(&self) -> tempfile::TempDir {
        let to = tempfile::tempdir().unwrap();
        copy(self.dir.path(), to.path());
        to
    }

    fn last(&self) -> &(u64, Content) {
        self.history.last().unwrap()
    }

    /// Opens and compares with the end of history.
    async fn expect_all(&self, dir: &Path, what: &str) {
        let (store, mirror) = open(dir).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((store.revision(), &mirror.content()), (self.last().0, &self.last().1), "{what}");
        store.close().await.unwrap();
        let (store, mirror) = open(dir).await.unwrap();
        assert_eq!(mirror.content(), self.last().1, "{what}: the second time");
        store.close().await.unwrap();
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x5a;
    fs::write(path, bytes).unwrap();
}

fn last_segment(dir: &Path) -> PathBuf {
    files(&dir.join("wal")).into_iter().rfind(|path| path.extension().is_some_and(|e| e == "log")).unwrap()
}

/// The end of what was written in a segment.
fn written(path: &Path) -> usize {
    fs::read(path).unwrap().iter().rposition(|&b| b != 0).unwrap() + 1
}

fn names(error: &Error, path: &Path) {
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error} does not name {}", path.display());
}

#[tokio::test]
async fn the_engine_may_be_lost() {
    for closed in [false, true] {
        let subject = subject(1, closed).await;
        let dir = subject.copy();
        fs::remove_dir_all(dir.path().join("engine")).unwrap();
        subject.expect_all(dir.path(), "engine removed").await;

        let dir = subject.copy();
        fs::remove_dir_all(dir.path().join("engine")).unwrap();
        fs::remove_file(files(&dir.path().join("snapshots")).pop().unwrap()).unwrap();
        subject.expect_all(dir.path(), "engine and newest snapshot removed").await;

        let dir = subject.copy();
        fs::remove_dir_all(dir.path().join("engine")).unwrap();
        let newest = files(&dir.path().join("snapshots")).pop().unwrap();
        flip(&newest, fs::metadata(&newest).unwrap().len() as usize / 2);
        subject.expect_all(dir.path(), "engine removed and newest snapshot damaged").await;

        let dir = subject.copy();
        fs::remove_dir_all(dir.path().join("snapshots")).unwrap();
        subject.expect_all(dir.path(), "snapshots removed").await;

        let dir = subject.copy();
        fs::remove_dir_all(dir.path().join("engine")).unwrap();
        fs::remove_dir_all(dir.path().join("snapshots")).unwrap();
        let error = open(dir.path()).await.err().unwrap();
        assert!(matches!(error, Error::NoState { .. }), "{error}");
        names(&error, dir.path());
    }
}

#[tokio::test]
async fn a_flipped_byte_in_the_engine_is_noticed() {
    let subject = subject(2, true).await;
    let mut random = Random(99);
    for i in 0..24 {
        let dir = subject.copy();
        let files = files(&dir.path().join("engine"));
        let path = &files[random.below(files.len() as u64) as usize];
        let length = fs::metadata(path).unwrap().len();
        if length == 0 {
            continue;
        }
        let at = random.below(length) as usize;
        flip(path, at);
        subject.expect_all(dir.path(), &format!("{i}: byte {at} of {}", path.display())).await;
    }
}

#[tokio::test]
async fn a_cut_or_torn_tail_loses_only_the_tail() {
    let subject = subject(3, false).await;
    let mut random = Random(5);
    for _ in 0..12 {
        let dir = subject.copy();
        let path = last_segment(dir.path());
        let end = written(&path);
        // Only the last record can be torn: the one before it was synced first.
        let at = end - 1 - random.below(8) as usize;
        if random.below(2) == 0 {
            flip(&path, at);
        } else {
            fs::File::options().write(true).open(&path).unwrap().set_len(at as u64).unwrap();
        }
        match open(dir.path()).await {
            Ok((store, mirror)) => {
                let revision = store.revision();
                let row = subject.history.iter().find(|(r, _)| *r == revision).unwrap();
                assert_eq!(mirror.content(), row.1);
                assert!(revision + 1 >= subject.last().0, "only one transaction may be gone");
                store.close().await.unwrap();
            }
            Err(error) => names(&error, dir.path()),
        }
    }
}

#[tokio::test]
async fn a_flipped_byte_before_the_tail_stops_the_start() {
    let subject = subject(4, false).await;
    let segments = files(&subject.dir.path().join("wal"));
    let mut random = Random(6);
    let mut refused = 0;
    for _ in 0..24 {
        let dir = subject.copy();
        let name = segments[random.below(segments.len() as u64) as usize].file_name().unwrap();
        let path = dir.path().join("wal").join(name);
        let at = random.below(written(&path) as u64) as usize;
        flip(&path, at);
        match open(dir.path()).await {
            // The spare segment, padding, or the last record.
            Ok((store, mirror)) => {
                let revision = store.revision();
                let row = subject.history.iter().find(|(r, _)| *r == revision).unwrap();
                assert_eq!(mirror.content(), row.1, "byte {at} of {}", path.display());
                assert!(revision + 1 >= subject.last().0, "byte {at} of {}", path.display());
                store.close().await.unwrap();
            }
            Err(error) => {
                names(&error, &path);
                refused += 1;
            }
        }
    }
    assert!(refused >= 12, "{refused}");
}

#[tokio::test]
async fn a_lost_log_is_named() {
    let subject = subject(5, true).await;
    let dir = subject.copy();
    fs::remove_dir_all(dir.path().join("wal")).unwrap();
    let error = open(dir.path()).await.err().unwrap();
    assert!(matches!(error, Error::LogLost { .. }), "{error}");
    names(&error, &dir.path().join("wal"));

    let dir = subject.copy();
    fs::remove_file(last_segment(dir.path())).unwrap();
    let error = open(dir.path()).await.err().unwrap();
    assert!(matches!(error, Error::LogLost { .. }), "{error}");
    names(&error, &dir.path().join("wal"));
    assert!(open(dir.path()).await.is_err(), "it is not repaired by trying again");

    // Everything gone but the log, which begins late.
    let dir = subject.copy();
    fs::remove_dir_all(dir.path().join("engine")).unwrap();
    for snapshot in files(&dir.path().join("snapshots")) {
        flip(&snapshot, 40);
    }
    let error = open(dir.path()).await.err().unwrap();
    assert!(matches!(error, Error::NoState { .. }), "{error}");
}
