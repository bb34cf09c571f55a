//! How long the service proxy takes for many Services: until the table is first in the kernel, and for
//! one endpoint that changes. Runs in a network namespace of its own, so it needs root and changes
//! nothing on the machine. `services_bench [SERVICES] [ENDPOINTS]`, 1000 and 10 by default; prints one
//! line of JSON, times in milliseconds.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement that prints its result")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use kedge_base::Tasks;
use kedge_client::{Informers, kube};
use kedge_network::{IpNet, ProxyConfig, start_proxy};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const CHANGES: usize = 50;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>().unwrap());
    let (services, endpoints) = (numbers.next().unwrap_or(1000), numbers.next().unwrap_or(10));
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("{}", runtime.block_on(measure(services, endpoints)));
}

async fn measure(services: usize, endpoints: usize) -> Value {
    let api = Api::default();
    for n in 0..services {
        api.send("services", "ADDED", &service(n));
        api.send("endpointslices", "ADDED", &slice(n, endpoints, 0));
    }
    api.open("nodes");
    let tasks = Tasks::new("bench");
    let informers = Informers::new(api.client(), &tasks);
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let config = ProxyConfig::new(
        "node1",
        vec![[192, 0, 2, 1].into()],
        vec![net("10.128.0.0/9")],
        vec![net("10.96.0.0/12")],
    );
    let start = Instant::now();
    let proxy = start_proxy(config, &informers, &tasks).await.unwrap();
    proxy.ready().await;
    let first = start.elapsed();

    let mut times = Vec::with_capacity(CHANGES);
    for round in 1..=CHANGES {
        let before = proxy.writes();
        let start = Instant::now();
        api.send("endpointslices", "MODIFIED", &slice(round % services, endpoints, round));
        proxy.written_since(before).await;
        times.push(start.elapsed());
        // What is no longer used is deleted meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    times.sort();
    tasks.shutdown(Duration::from_secs(10)).await;
    let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
    json!({
        "services": services, "endpoints_each": endpoints,
        "first_sync_ms": ms(first),
        "one_change_median_ms": ms(times[CHANGES / 2]),
        "one_change_worst_ms": ms(times[CHANGES - 1]),
    })
}

fn service(n: usize) -> Value {
    let address = format!("10.96.{}.{}", n / 250, n % 250 + 1);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "ns", "name": format!("s{n}"), "resourceVersion": "1" },
        "spec": {
            "clusterIP": address, "clusterIPs": [address],
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}

/// The first endpoint is another one in every round.
fn slice(n: usize, endpoints: usize, round: usize) -> Value {
    let list: Vec<Value> = (0..endpoints)
        .map(|e| {
            let host = if e == 0 && round > 0 { 100 + round } else { e + 1 };
            json!({
                "addresses": [format!("10.{}.{}.{host}", 128 + n / 250, n % 250)],
                "nodeName": "node1", "conditions": { "ready": true },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "ns", "name": format!("s{n}"), "resourceVersion": format!("{}", round + 2),
            "labels": { "kubernetes.io/service-name": format!("s{n}") },
        },
        "addressType": "IPv4", "endpoints": list,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}

/// The API server's side of the watches.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<HashMap<String, Resource>>>);

#[derive(Default)]
struct Resource {
    lines: Vec<Bytes>,
    watchers: Vec<UnboundedSender<Bytes>>,
}

impl Api {
    fn open(&self, resource: &str) {
        self.0.lock().unwrap().entry(resource.to_owned()).or_default();
    }

    fn send(&self, resource: &str, kind: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({ "type": kind, "object": object })));
        let mut resources = self.0.lock().unwrap();
        let resource = resources.entry(resource.to_owned()).or_default();
        resource.watchers.retain(|watcher| watcher.send(line.clone()).is_ok());
        if kind == "ADDED" {
            resource.lines.push(line);
        }
    }

    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let lines = api.watch(request.uri().path());
            async move {
                let frames = stream::unfold(lines, |mut lines| async move {
                    lines.recv().await.map(|line| (Ok::<_, Infallible>(Frame::data(line)), lines))
                });
                Ok::<_, Infallible>(http::Response::new(StreamBody::new(frames.boxed())))
            }
        });
        kube::Client::new(service, "default")
    }

    fn watch(&self, path: &str) -> tokio::sync::mpsc::UnboundedReceiver<Bytes> {
        let (sender, receiver) = unbounded_channel();
        let mut resources = self.0.lock().unwrap();
        let name = path.rsplit('/').next().unwrap_or_default();
        let resource = resources.get_mut(name).unwrap();
        for line in &resource.lines {
            sender.send(line.clone()).unwrap();
        }
        let (version, kind) = match name {
            "services" => ("v1", "Service"),
            "nodes" => ("v1", "Node"),
            _ => ("discovery.k8s.io/v1", "EndpointSlice"),
        };
        let annotations = json!({ "k8s.io/initial-events-end": "true" });
        let metadata = json!({ "resourceVersion": "9", "annotations": annotations });
        let bookmark = json!({ "apiVersion": version, "kind": kind, "metadata": metadata });
        let line = json!({ "type": "BOOKMARK", "object": bookmark });
        sender.send(Bytes::from(format!("{line}\n"))).unwrap();
        resource.watchers.push(sender);
        receiver
    }
}
