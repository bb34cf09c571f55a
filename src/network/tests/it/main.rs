//! The DNS server against an API server's watches, and the proxy against the real kernel: network
//! namespaces, the real nftables table, real connections. The latter needs root, `ip` and `nft`, and runs
//! only with KEDGE_ROOT_TESTS=1.
#![allow(clippy::print_stderr)]

mod api;
mod dns;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use api::Api;
use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_network::{IpNet, ProxyConfig, cleanup, prepare_host, start_proxy};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
const VIP: &str = "10.96.0.7:80";
const NODE_PORT: &str = "192.0.2.1:30080";
/// Nothing may be left in the machine's list of namespaces, whatever happens.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("kedge-{name}-{}", std::process::id());
        ip(&format!("netns add {name}"));
        Self(name)
    }

    /// Run `work` in a thread inside the namespace.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(arguments: &str) {
    run("ip", arguments);
}

/// What the server answers: the client's address as the server sees it.
fn ask(address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn serve() {
    let listener = TcpListener::bind("10.244.0.5:8080").unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let peer = stream.peer_addr().unwrap().ip();
        let _ = stream.write_all(peer.to_string().as_bytes());
    }
}

/// Again and again until `is_right`; the last answer is the message when time runs out.
async fn eventually(what: &str, try_it: impl Fn() -> Result<(), String> + Clone + Send + 'static) {
    let start = Instant::now();
    loop {
        let attempt = try_it.clone();
        match tokio::task::spawn_blocking(attempt).await.unwrap() {
            Ok(()) => return,
            Err(last) => assert!(start.elapsed() < PATIENCE, "{what}: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "ns", "name": "web", "resourceVersion": "1", "uid": "u1" },
        "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080, "protocol": "TCP" }],
        },
    })
}

fn slice(version: u32, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(
            |address| json!({ "addresses": [address], "nodeName": "node1", "conditions": { "ready": true } }),
        )
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "ns", "name": "web-1", "resourceVersion": version.to_string(), "uid": "u2",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}

#[test]
fn services_work_and_the_table_heals() {
    if !nix::unistd::geteuid().is_root() || std::env::var("KEDGE_ROOT_TESTS").as_deref() != Ok("1") {
        eprintln!("skipped: needs root and KEDGE_ROOT_TESTS=1");
        return;
    }
    // Everything below, the runtime's threads included, lives in a namespace of its own.
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(scenario());
    })
    .join()
    .unwrap();
}

async fn scenario() {
    let pod = Namespace::new("pod");
    let client = Namespace::new("client");
    ip("link set lo up");
    for (namespace, device, address, gateway) in
        [(&pod, "pod0", "10.244.0.5/24", "10.244.0.1"), (&client, "net0", "192.0.2.2/24", "192.0.2.1")]
    {
        let name = &namespace.0;
        ip(&format!("link add {device} type veth peer name eth0 netns {name}"));
        ip(&format!("address add {gateway}/24 dev {device}"));
        ip(&format!("link set {device} up"));
        ip(&format!("-n {name} address add {address} dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} route add default via {gateway}"));
    }
    ip("route add default via 192.0.2.2");
    prepare_host().unwrap();
    pod.run(serve);

    let api = Api::new([("services", vec![service()]), ("endpointslices", vec![slice(1, &["10.244.0.5"])])]);
    let tasks = Tasks::new("test");
    let informers = Informers::new(api.client(), &tasks);
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let node_ips = vec![IpAddr::from([192, 0, 2, 1])];
    let config = ProxyConfig::new("node1", node_ips, net("10.244.0.0/16"), net("10.96.0.0/16"));
    let proxy = start_proxy(config, &informers, &tasks).await.unwrap();
    tokio::time::timeout(PATIENCE, proxy.ready()).await.unwrap();
    let table = run("nft", "list table inet kedge");
    assert!(table.contains("10.96.0.7 . tcp . 80 : goto service-"), "{table}");
    assert!(table.contains("dnat ip to 10.244.0.5:8080"), "{table}");

    let answered =
        |address: &'static str| move || ask(address).map(|_| ()).map_err(|error| error.to_string());
    eventually("this node to the cluster IP", answered(VIP)).await;
    eventually("this node to its node port", answered(NODE_PORT)).await;
    let through = |namespace: &Namespace, address: &'static str| namespace.run(move || ask(address));
    let from_client = through(&client, NODE_PORT);
    let from_itself = through(&pod, VIP);
    let (from_client, from_itself) =
        tokio::task::spawn_blocking(move || (from_client.join().unwrap(), from_itself.join().unwrap()))
            .await
            .unwrap();
    assert_eq!(from_client.unwrap(), "10.244.0.1", "a node port masquerades clients from outside");
    assert_eq!(from_itself.unwrap(), "10.244.0.1", "a pod that reaches itself is masqueraded");

    api.update("endpointslices", &slice(2, &[]));
    let refused = |address: &'static str| {
        move || match ask(address) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    eventually("no endpoints: the cluster IP refuses", refused(VIP)).await;
    eventually("no endpoints: the node port refuses", refused(NODE_PORT)).await;
    eventually("what is not used any more is deleted", || {
        let table = run("nft", "list table inet kedge");
        if table.contains("chain endpoint-") || table.contains("chain service-") {
            Err(table)
        } else {
            Ok(())
        }
    })
    .await;

    api.update("endpointslices", &slice(3, &["10.244.0.5"]));
    eventually("endpoints come back", answered(VIP)).await;

    for damage in ["flush ruleset", "delete table inet kedge", "flush table inet kedge"] {
        run("nft", damage);
        eventually("the table heals", answered(VIP)).await;
    }

    assert!(tasks.shutdown(PATIENCE).await.is_empty());
    cleanup("kedge", "kedge0", std::path::Path::new("/nonexistent")).unwrap();
    cleanup("kedge", "kedge0", std::path::Path::new("/nonexistent")).unwrap();
    assert!(!run("nft", "list tables").contains("kedge"));
}
