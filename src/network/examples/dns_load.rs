//! How much memory the DNS server takes and how many questions it answers, by UDP on loopback:
//!
//!     dns_load serve 127.0.0.1:5300 SERVICES      (prints its memory now and then)
//!     dns_load ask 127.0.0.1:5300 SECONDS CLIENTS
#![allow(clippy::print_stdout)]

#[path = "../tests/it/api.rs"]
#[allow(dead_code)]
mod api;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_network::dns::{self, Config};
use serde_json::{Value, json};

/// Questions that one client has under way.
const WINDOW: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address, services] => serve(address.parse().unwrap(), services.parse().unwrap()),
        ["ask", address, seconds, clients] => {
            ask(address.parse().unwrap(), seconds.parse().unwrap(), clients.parse().unwrap());
        }
        _ => println!("usage: dns_load serve ADDRESS SERVICES | ask ADDRESS SECONDS CLIENTS"),
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

fn objects(services: usize) -> [(&'static str, Vec<Value>); 3] {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "default", "resourceVersion": "1" },
    });
    let address = |block: usize, number: usize| format!("10.{block}.{}.{}", number / 250, number % 250 + 1);
    let service = |number| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": "default", "name": format!("web-{number}"), "resourceVersion": "2" },
            "spec": {
                "clusterIP": address(96, number), "clusterIPs": [address(96, number)], "type": "ClusterIP",
                "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
            },
        })
    };
    let slice = |number| {
        let endpoint = |place: usize| {
            json!({
                "addresses": [address(100 + place, number)],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": "node1",
                "targetRef": { "kind": "Pod", "namespace": "default", "name": format!("web-{number}-{place}") },
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default", "name": format!("web-{number}-x"), "resourceVersion": "3",
                "labels": { "kubernetes.io/service-name": format!("web-{number}") },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            "endpoints": [endpoint(1), endpoint(2), endpoint(3)],
        })
    };
    [
        ("namespaces", vec![namespace]),
        ("services", (0..services).map(service).collect()),
        ("endpointslices", (0..services).map(slice).collect()),
    ]
}

fn serve(address: SocketAddr, services: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        println!("before: {} KiB", resident_kib());
        let api = api::Api::new(objects(services));
        println!("with the objects of the API server's stand-in: {} KiB", resident_kib());
        let tasks = Tasks::new("load");
        let informers = Informers::new(api.client(), &tasks);
        let config =
            Config { listen: vec![address], health: None, ready: None, metrics: None, ..Config::default() };
        let server = dns::serve(config, &informers, &tasks).await.unwrap();
        server.ready().await;
        loop {
            println!("serving {services} Services of 3 endpoints: {} KiB", resident_kib());
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
}

fn ask(server: SocketAddr, seconds: u64, clients: usize) {
    let total = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let until = begun + Duration::from_secs(seconds);
    let threads: Vec<_> = (0..clients)
        .map(|_| {
            let total = total.clone();
            std::thread::spawn(move || total.fetch_add(client(server, until), Ordering::Relaxed))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let total = total.load(Ordering::Relaxed);
    println!("{total} answers, {:.0} a second", total as f64 / begun.elapsed().as_secs_f64());
}

fn client(server: SocketAddr, until: Instant) -> u64 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut request = Message::query();
    let name = Name::from_ascii("web-7.default.svc.cluster.local.").unwrap();
    request.add_query(Query::query(name, RecordType::A));
    let bytes = request.to_vec().unwrap();
    let mut buffer = vec![0; 4096];
    let mut answers = 0;
    for _ in 0..WINDOW {
        socket.send(&bytes).unwrap();
    }
    while Instant::now() < until {
        if let Ok(length) = socket.recv(&mut buffer) {
            if answers == 0 {
                let first = Message::from_vec(&buffer[..length]).unwrap();
                assert_eq!((first.metadata.response_code, first.answers.len()), (ResponseCode::NoError, 1));
            }
            answers += 1;
        }
        socket.send(&bytes).unwrap();
    }
    answers
}
