//! Watch fan-out: many watchers of one namespace while objects in it change.

use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;

use crate::CLIENTS;
use crate::client::{self, JSON, MERGE_PATCH, Target};
use crate::process::Spent;
use crate::requests::{self, Call};
use crate::table::Table;

const WATCHERS: usize = 50;
const OBJECTS: usize = 100;
const CHANGES: usize = 20_000;

pub(crate) async fn measure(target: &Target, table: &mut Table) -> anyhow::Result<()> {
    let path = "/api/v1/namespaces/load-watch/configmaps";
    let mut client = target.connect().await?;
    client::namespace(&mut client, "load-watch").await?;
    requests::run(target, CLIENTS, OBJECTS, move |index| requests::create(path, index)).await?;
    let list = client.json(&format!("{path}?limit=1")).await?;
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list without a revision")?;

    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let mut watch = target.stream(&format!("{path}?watch=1&resourceVersion={revision}")).await?;
        watchers.push(target.tasks().spawn("watcher", async move {
            let mut seen = 0;
            while seen < CHANGES {
                seen += watch.count().await?;
            }
            anyhow::Ok(seen)
        }));
    }
    let (start, before) = (Instant::now(), Spent::now(target.pid)?);
    let changed = requests::run(target, CLIENTS, CHANGES, move |index| Call {
        method: "PATCH",
        path: format!("{path}/c-{}", index % OBJECTS),
        content_type: MERGE_PATCH,
        body: json!({ "data": { "changed": index.to_string() } }).to_string(),
    })
    .await?;
    for watcher in watchers {
        watcher.await.context("a watcher panicked")??;
    }
    let (took, spent) = (start.elapsed().as_secs_f64(), Spent::now(target.pid)?.since(before));
    table.at_least("watch fan-out, 50 watchers", (CHANGES * WATCHERS) as f64 / took, "events/s", 500_000.0);
    table.note(
        "the same: the changes that were watched",
        format!("{:.0} /s; processor seconds: {spent}", changed.rate()),
    );
    client.must("DELETE", "/api/v1/namespaces/load-watch", JSON, "").await?;
    Ok(())
}
