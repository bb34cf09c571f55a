//! A disk that is really full: a small tmpfs. Needs the right to mount; without it there is nothing to test.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kedge_base::Tasks;
use kedge_store::{CommitError, Config, Member, Store, Txn};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::model::{Mirror, Model, Random, config, delete, open, put, txn};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_quota_nothing_is_added_and_deleting_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let quota = 256 << 10;
    let limited = Config { quota_bytes: quota, ..config(dir.path()) };
    let start = async || Store::open(limited.clone(), Arc::new(Mirror::default()), &Tasks::new("test")).await;
    let store = start().await.unwrap();
    let value = vec![b'x'; 4 << 10];
    let mut made = 0;
    let refused = loop {
        match store.commit(txn(&[], vec![put(&format!("key{made:03}"), &value)])).await {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    let stats = store.stats();
    assert!(matches!(refused, CommitError::Quota { quota: found, .. } if found == quota), "{refused}");
    assert!(refused.to_string().contains("mvcc: database space exceeded"));
    assert!(stats.bytes <= quota && stats.bytes + 5000 > quota, "{stats:?}");

    let rest = usize::try_from(quota - stats.bytes).unwrap() - "fill".len();
    store.commit(txn(&[], vec![put("fill", &vec![0; rest])])).await.unwrap();
    assert_eq!(store.stats().bytes, quota);

    // All of this at once, as it comes from many clients.
    let larger = vec![b'y'; 12 << 10];
    let many = (0..50).map(|i| store.commit(txn(&[], vec![put(&format!("more{i}"), &value)])));
    for result in futures::future::join_all(many).await {
        assert!(matches!(result, Err(CommitError::Quota { .. })), "{result:?}");
    }
    let updated = store.commit(txn(&[], vec![put("key000", &larger)])).await;
    assert!(matches!(updated, Err(CommitError::Quota { .. })), "{updated:?}");
    // A mark on what is there, the same size, a smaller one, another one in place of two, a member.
    let marked = [&value[..], b"deletionTimestamp"].concat();
    for (key, value) in [("key000", &marked), ("key000", &value), ("key001", &vec![1])] {
        store.commit(txn(&[], vec![put(key, value)])).await.unwrap();
    }
    store.commit(txn(&[], vec![delete("key001"), delete("key002"), put("other", &value)])).await.unwrap();
    store.announce("own", "h:1", None).await.unwrap();
    let member = Member { id: 2, name: "b".into(), address: "h:2".into(), failure_domain: None };
    store.admit(member, Txn::default()).await.unwrap();
    store.remove(2, Txn::default()).await.unwrap();

    // What is counted is counted the same after a start.
    let bytes = store.stats().bytes;
    store.close().await.unwrap();
    let store = start().await.unwrap();
    assert_eq!(store.stats().bytes, bytes);
    let more = vec![put("large", &vec![0; 64 << 10])];
    let result = store.commit(txn(&[], more.clone())).await;
    assert!(matches!(result, Err(CommitError::Quota { .. })), "{result:?}");
    for number in 3..made {
        store.commit(txn(&[], vec![delete(&format!("key{number:03}"))])).await.unwrap();
    }
    store.commit(txn(&[], more)).await.unwrap();
    store.close().await.unwrap();
}
