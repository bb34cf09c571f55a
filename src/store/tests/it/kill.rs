//! A real process and a real `kill -9`: this test binary runs itself as the victim.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kedge_base::Tasks;
use kedge_store::Store;
use std::sync::Arc;

use crate::model::{Content, Mirror, Model, Random, config, open, put, txn};

const DIR: &str = "KEDGE_STORE_TEST_VICTIM";
const CLIENTS: u64 = 4;

/// Client `c`'s `n`th transaction: anyone can work out what it was.
fn transaction(client: u64, n: u64) -> kedge_store::Txn {
    let mut random = Random(client * 1_000_000 + n);
    let value = |random: &mut Random| vec![random.next() as u8; random.below(900) as usize];
    let (a, b) = (value(&mut random), value(&mut random));
    // Two keys that must always be of the same transaction.
    txn(
        &[],
        vec![
            put(&format!("{client}/left/{}", n % 20), &[format!("{n}:").as_bytes(), &a].concat()),
            put(&format!("{client}/right/{}", n % 20), &[format!("{n}:").as_bytes(), &b].concat()),
        ],
    )
}

/// Not a test by itself: the victim of the one below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let tasks = Tasks::new("victim");
    let store = Store::open(config(Path::new(&dir)), Arc::<Mirror>::default(), &tasks).await.unwrap();
    let start: u64 = std::env::var("KEDGE_STORE_TEST_START").unwrap().parse().unwrap();
    for client in 0..CLIENTS {
        let store = store.clone();
        tasks.spawn("client", async move {
            for n in start.. {
                let revision = store.commit(transaction(client, n)).await.unwrap();
                let line = format!("\nack {client} {n} {revision}\n");
                if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(std::process::id().into());
    // Per client: the last transaction known to be in.
    let mut last = [0; CLIENTS as usize];
    let mut model = Model::default();
    for round in 0..8 {
        let start = last.iter().max().unwrap() + 1;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::victim", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .env("KEDGE_STORE_TEST_START", start.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = Vec::new();
        let enough = 1 + random.below(400);
        while acknowledged.len() < enough as usize {
            let line = lines.next().expect("the victim runs until it is killed").unwrap();
            acknowledged.extend(parse(&line));
        }
        // Somewhere in the middle of its work.
        std::thread::sleep(Duration::from_micros(random.below(3000)));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.map_while(Result::ok).filter_map(|line| parse(&line)));
        acknowledged.sort_by_key(|(_, _, revision)| *revision);

        let (store, mirror) = open(dir.path()).await.unwrap();
        let (found, revision) = (mirror.content(), store.revision());
        let highest = acknowledged.last().unwrap().2;
        assert!(revision >= highest, "round {round}: {revision} < {highest}");
        assert!(revision <= highest + CLIENTS, "round {round}: one open transaction each at most");
        for (client, n, revision) in acknowledged {
            // What is missing between was in but its acknowledgement did not get out.
            last[client as usize] = n;
            model.revision = revision - 1;
            assert_eq!(model.apply(&transaction(client, n)), Ok(revision));
        }
        check(&model.content, &found, &mut last, round);
        model = Model { revision, content: found };
        store.close().await.unwrap();
    }
}

fn parse(line: &str) -> Option<(u64, u64, u64)> {
    let mut words = line.strip_prefix("ack ")?.split(' ').map(|word| word.parse::<u64>());
    Some((words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?))
}

/// Every key is as acknowledged, or of the client's next transaction, and that one is whole.
fn check(expected: &Content, found: &Content, last: &mut [u64; CLIENTS as usize], round: u64) {
    for client in 0..CLIENTS {
        let next = last[client as usize] + 1;
        let slot = next % 20;
        let (left, right) = (format!("{client}/left/{slot}"), format!("{client}/right/{slot}"));
        let is_next = |key: &str| {
            found.get(key).is_some_and(|(bytes, ..)| bytes.starts_with(format!("{next}:").as_bytes()))
        };
        let advanced = is_next(&left);
        assert_eq!(advanced, is_next(&right), "round {round}: half a transaction");
        let prefix = format!("{client}/");
        for (key, row) in expected.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            if !(advanced && (*key == left || *key == right)) {
                assert_eq!(found.get(key), Some(row), "round {round}: {key}");
            }
        }
        if advanced {
            last[client as usize] = next;
        }
    }
}
