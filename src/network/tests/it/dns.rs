//! The DNS server against an API server's watches: what is created there has a name at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_network::dns::{self, Config};
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use super::api::Api;
use super::world::PATIENCE;

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn service(name: &str, version: u32, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "default", "name": name, "resourceVersion": version.to_string() },
        "spec": { "clusterIP": address, "ports": [{ "name": "http", "port": 80 }] },
    })
}

async fn ask(server: SocketAddr, name: &str) -> Message {
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    socket.connect(server).await.unwrap();
    let mut request = Message::query();
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    socket.send(&request.to_vec().unwrap()).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

#[tokio::test]
async fn a_new_service_has_a_name_at_once() {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "default", "resourceVersion": "1" },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default", "name": "db-1", "resourceVersion": "3",
            "labels": { "kubernetes.io/service-name": "db" },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": { "ready": true } }],
    });
    let api = Api::new([
        ("namespaces", vec![namespace]),
        ("services", vec![service("first", 2, "10.96.0.20")]),
        ("endpointslices", vec![slice]),
    ]);
    let tasks = Tasks::new("test");
    let informers = Informers::new(api.client(), &tasks);
    let config = Config {
        listen: vec![loopback()],
        health: None,
        ready: None,
        metrics: None,
        resolv_conf: Vec::new(),
        lameduck: Duration::ZERO,
        ..Config::default()
    };
    let server = dns::serve(config, &informers, &tasks).await.unwrap();
    tokio::time::timeout(PATIENCE, server.ready()).await.unwrap();
    let address = server.bound().udp[0];
    let first = ask(address, "first.default.svc.cluster.local.").await;
    assert_eq!(first.answers[0].data.to_string(), "10.96.0.20");
    let second = "second.default.svc.cluster.local.";
    assert_eq!(ask(address, second).await.metadata.response_code, ResponseCode::NXDomain);

    let begun = Instant::now();
    api.set("services", &service("second", 4, "10.96.0.30"));
    while ask(address, second).await.answers.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the new Service has no name");
    }
    tracing::info!(elapsed = ?begun.elapsed(), "a new Service has a name");

    let headless = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "default", "name": "db", "resourceVersion": "5" },
        "spec": { "clusterIP": "None" },
    });
    api.set("services", &headless);
    let begun = Instant::now();
    let pod = "db-0.db.default.svc.cluster.local.";
    while ask(address, pod).await.answers.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the pod has no name");
    }
    assert_eq!(ask(address, pod).await.answers[0].data.to_string(), "10.244.0.5");
    server.stop().await;
    assert!(tasks.shutdown(PATIENCE).await.is_empty());
}
