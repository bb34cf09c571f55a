//! A disk that is really full: a small tmpfs. Needs the right to mount; without it there is nothing to test.

use std::fs;
use std::path::Path;

use kedge_store::CommitError;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::model::{Model, Random, open};

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let options = Some("size=4m");
    if mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), options).is_err() {
        return;
    }
    let mounted = Mounted(dir.path());
    let data = dir.path().join("data");
    let filler = dir.path().join("filler");
    let mut model = Model::default();
    let mut random = Random(11);
    let (mut store, mut mirror) = open(&data).await.unwrap();
    let (mut refused, mut taken) = (0, 0);
    for round in 0..12 {
        for _ in 0..150 {
            let txn = random.txn(&model);
            let mut next = model.clone();
            let expected = next.apply(&txn);
            match store.commit(txn).await {
                Err(CommitError::Full) => refused += 1,
                result => {
                    assert_eq!(result, expected, "round {round}");
                    model = next;
                    taken += 1;
                }
            }
        }
        assert_eq!(mirror.content(), model.content, "round {round}");
        if round % 2 == 0 {
            // Takes all that is left.
            let mut size = 4 << 20;
            while size > 512 {
                let old = fs::read(&filler).unwrap_or_default();
                if fs::write(&filler, vec![1; old.len() + size]).is_err() {
                    let _ = fs::write(&filler, &old);
                    size /= 2;
                }
            }
        } else {
            if round % 4 == 1 {
                // A crash and a start with a full disk: everything can be read.
                store.abandon().await;
                match open(&data).await {
                    Ok(opened) => (store, mirror) = opened,
                    Err(error) => {
                        fs::remove_file(&filler).unwrap();
                        (store, mirror) =
                            open(&data).await.unwrap_or_else(|_| panic!("round {round}: {error}"));
                    }
                }
                assert_eq!(mirror.content(), model.content, "round {round} after a crash");
            }
            let _ = fs::remove_file(&filler);
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} refused, {taken} taken");
    store.close().await.unwrap();
    let (store, mirror) = open(&data).await.unwrap();
    assert_eq!((store.revision(), mirror.content()), (model.revision, model.content));
    store.close().await.unwrap();
    drop(mounted);
}
