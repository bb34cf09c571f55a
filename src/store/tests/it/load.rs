//! How fast, with how much memory: `cargo test --release -p kedge-store -- --ignored --nocapture load`.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kedge_base::Tasks;
use kedge_store::{Change, Check, Config, Entry, Key, Observer, Revision, Store};

use crate::model::{put, txn};

/// What the program uses: memory is measured with it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

struct Nobody;

impl Observer for Nobody {
    fn reset(&self, _: Revision, entries: &mut dyn Iterator<Item = (Key, Entry)>) {
        entries.for_each(drop);
    }

    fn applied(&self, _: Revision, _: &[Change]) {}
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = |name| status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
    [line("VmRSS"), line("VmHWM")].join(" ").replace(['\t', ' '], "")
}

fn say(line: &str) {
    std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn load() {
    let dir = tempfile::tempdir_in(std::env::var("KEDGE_LOAD_DIR").unwrap_or("/var/tmp".into())).unwrap();
    let tasks = Tasks::new("load");
    say(&format!("before: {}", memory()));
    let store = Store::open(Config::new(dir.path()), Arc::new(Nobody), &tasks).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    say(&format!("open: {}", memory()));
    let mut times = Vec::new();
    for i in 0..500 {
        let started = Instant::now();
        store.commit(txn(&[], vec![put(&format!("single/{i}"), &[b'x'; 1000])])).await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    say(&format!("one client: p50 {:?} p99 {:?}; {:?}", times[250], times[495], store.stats()));
    for clients in [16, 64] {
        let started = Instant::now();
        let running: Vec<_> = (0..clients)
            .map(|client| {
                let store = store.clone();
                tasks.spawn("client", async move {
                    for i in 0..32_000 / clients {
                        let key = format!("configmaps/{clients}/{client}/{i}");
                        let create = txn(&[(&key, Check::Absent)], vec![put(&key, &[b'x'; 1000])]);
                        store.commit(create).await.unwrap();
                    }
                })
            })
            .collect();
        for client in running {
            client.await.unwrap();
        }
        let rate = 32_000.0 / started.elapsed().as_secs_f64();
        say(&format!("{clients} clients: {rate:.0}/s; {}; {:?}", memory(), store.stats()));
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    say(&format!("settled: {}", memory()));
    store.close().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    say(&format!("closed: {}", memory()));
    let started = Instant::now();
    let store = Store::open(Config::new(dir.path()), Arc::new(Nobody), &tasks).await.unwrap();
    say(&format!("reopened with {} keys in {:?}: {}", store.stats().keys, started.elapsed(), memory()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    say(&format!("settled: {}", memory()));
    assert!(tasks.shutdown(Duration::from_secs(60)).await.is_empty());
}
