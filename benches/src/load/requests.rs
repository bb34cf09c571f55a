//! Create, get, list and patch of ConfigMaps of 1 KB.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kedge_base::Tasks;
use serde_json::{Value, json};

use crate::CLIENTS;
use crate::client::{self, Client, JSON, MERGE_PATCH, Target};
use crate::process::Spent;
use crate::table::{Table, percentile};

const CREATES: usize = 10_000;
const GETS: usize = 100_000;
const PATCHES: usize = 10_000;
const LISTED: usize = 3_000;
const LISTS: usize = 800;

/// One request of the load: what the client with this number sends.
pub(crate) struct Call {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
}

pub(crate) async fn measure(target: &Target, table: &mut Table) -> anyhow::Result<()> {
    let mut client = target.connect().await?;
    for name in ["load-write", "load-list"] {
        client::namespace(&mut client, name).await?;
    }
    let write = "/api/v1/namespaces/load-write/configmaps";
    let list = "/api/v1/namespaces/load-list/configmaps";

    let created = run(target, CLIENTS, CREATES, move |index| create(write, index)).await?;
    table.at_least("create ConfigMap 1 KB, 16 clients", created.rate(), "/s", 10_000.0);
    table.note("the same", created.more());

    let got = run(target, CLIENTS, GETS, move |index| Call {
        method: "GET",
        path: format!("{write}/c-{}", index % CREATES),
        content_type: JSON,
        body: String::new(),
    })
    .await?;
    table.at_least("get, 16 clients", got.rate(), "/s", 40_000.0);
    table.note("the same", got.more());

    run(target, CLIENTS, LISTED, move |index| create(list, index)).await?;
    let whole = client.must("GET", list, JSON, "").await?;
    let items =
        serde_json::from_slice::<Value>(&whole).context("parse the list")?["items"].as_array().map(Vec::len);
    // Every namespace has one of its own besides.
    anyhow::ensure!(items.is_some_and(|items| items >= LISTED), "a list of {items:?} objects");
    let listed = lists(target, list, whole.len() as u64).await?;
    table.at_least("list of 3,000 ConfigMaps, 16 clients", listed.rate(), "/s", 500.0);
    table.note("the same", listed.more());

    let patched = run(target, CLIENTS, PATCHES, move |index| Call {
        method: "PATCH",
        path: format!("{write}/c-{}", index % CREATES),
        content_type: MERGE_PATCH,
        body: json!({ "data": { "changed": index.to_string() } }).to_string(),
    })
    .await?;
    table.note("patch, 16 clients", format!("{:.0} /s, {}", patched.rate(), patched.more()));
    for path in ["/api/v1/namespaces/load-write", "/api/v1/namespaces/load-list"] {
        client.must("DELETE", path, JSON, "").await?;
    }
    Ok(())
}

/// A ConfigMap with 1 KB of data.
pub(crate) fn create(path: &str, index: usize) -> Call {
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": format!("c-{index}") },
        "data": { "value": "x".repeat(1024) },
    });
    Call { method: "POST", path: path.to_owned(), content_type: JSON, body: body.to_string() }
}

/// What a run took.
pub(crate) struct Outcome {
    took: Duration,
    spent: String,
    sorted: Vec<Duration>,
}

impl Outcome {
    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        self.sorted.len() as f64 / self.took.as_secs_f64()
    }

    /// Latencies, and what both sides' processors did.
    pub(crate) fn more(&self) -> String {
        let text = |share| format!("{:.2} ms", percentile(&self.sorted, share).as_secs_f64() * 1e3);
        format!("p50 {}, p99 {}; processor seconds: {}", text(0.5), text(0.99), self.spent)
    }
}

/// One client of a load: sends what has this number, and returns with the answer. Any refusal is an error: a
/// rate of errors is no rate.
pub(crate) trait Caller: Send + 'static {
    fn call(&mut self, index: usize) -> impl Future<Output = anyhow::Result<()>> + Send;
}

struct Requests<F> {
    connection: Client,
    make: F,
}

impl<F: Fn(usize) -> Call + Send + 'static> Caller for Requests<F> {
    async fn call(&mut self, index: usize) -> anyhow::Result<()> {
        let call = (self.make)(index);
        self.connection.must(call.method, &call.path, call.content_type, call.body).await.map(drop)
    }
}

struct Lists {
    connection: Client,
    path: &'static str,
    length: u64,
}

impl Caller for Lists {
    async fn call(&mut self, _: usize) -> anyhow::Result<()> {
        let got = self.connection.drain(self.path).await?;
        anyhow::ensure!(got.abs_diff(self.length) < 20, "a list of {got} bytes after one of {}", self.length);
        Ok(())
    }
}

/// Sends `count` requests over `clients` connections.
pub(crate) async fn run(
    target: &Target,
    clients: usize,
    count: usize,
    make: impl Fn(usize) -> Call + Send + Sync + Clone + 'static,
) -> anyhow::Result<Outcome> {
    let mut callers = Vec::new();
    for _ in 0..clients {
        callers.push(Requests { connection: target.connect().await?, make: make.clone() });
    }
    spread(target.tasks(), target.pid, callers, count).await
}

/// Reads a list that is `length` bytes long, give or take the digits of its revision, again and again.
async fn lists(target: &Target, path: &'static str, length: u64) -> anyhow::Result<Outcome> {
    let mut callers = Vec::new();
    for _ in 0..CLIENTS {
        callers.push(Lists { connection: target.connect().await?, path, length });
    }
    spread(target.tasks(), target.pid, callers, LISTS).await
}

/// Spreads `count` calls over the callers, each doing the next one as soon as it has its answer. `server` is
/// the process that answers.
pub(crate) async fn spread<C: Caller>(
    tasks: &Tasks,
    server: u32,
    callers: Vec<C>,
    count: usize,
) -> anyhow::Result<Outcome> {
    let next = Arc::new(AtomicUsize::new(0));
    let (start, before) = (Instant::now(), Spent::now(server)?);
    let mut workers = Vec::new();
    for mut caller in callers {
        let next = next.clone();
        workers.push(tasks.spawn("client", async move {
            let mut times = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return anyhow::Ok(times);
                }
                let begin = Instant::now();
                caller.call(index).await?;
                times.push(begin.elapsed());
            }
        }));
    }
    let mut sorted = Vec::with_capacity(count);
    for worker in workers {
        sorted.extend(worker.await.context("a client panicked")??);
    }
    let (took, spent) = (start.elapsed(), Spent::now(server)?.since(before));
    sorted.sort_unstable();
    Ok(Outcome { took, spent, sorted })
}
