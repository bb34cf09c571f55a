//! What Services can ask for, with real traffic: a node with three pods, a client outside.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_network::{IpNet, ProxyConfig, cleanup, prepare_host, start_proxy};
use serde_json::{Value, json};

use crate::api::Api;
use crate::world::{
    Namespace, PATIENCE, ask, ask_udp, ask_within, eventually, in_own_namespace, ip, is_enabled, run, serve,
    serve_udp,
};

/// Long enough for an answer to come if one comes; nothing is expected within it.
const SILENCE: Duration = Duration::from_millis(1500);
const NOBODY: &[(u8, &str, &str)] = &[];

/// The world: we are the node.
struct Node {
    pods: Vec<Namespace>,
    client: Namespace,
    api: Api,
    tasks: Tasks,
    markers: AtomicU8,
}

impl Node {
    async fn start(name: &str) -> Self {
        ip("link set lo up");
        let client = Namespace::new(&format!("{name}c"));
        cable("net0", &client, &["192.0.2.1/24", "2001:db8::1/64"], &["192.0.2.2/24", "2001:db8::2/64"]);
        client.ip("route add default via 192.0.2.1");
        client.ip("-6 route add default via 2001:db8::1");
        ip("route add default via 192.0.2.2");
        let pods = (1..=3).map(|number| pod(name, number)).collect();
        prepare_host().unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();

        let node1 = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": "node1", "labels": { "topology.kubernetes.io/zone": "zone1" } },
        });
        let api = Api::new([("services", vec![]), ("endpointslices", vec![]), ("nodes", vec![node1])]);
        let tasks = Tasks::new("test");
        let informers = Informers::new(api.client(), &tasks);
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut config = ProxyConfig::new(
            "node1",
            vec![[192, 0, 2, 1].into()],
            vec![net("10.244.0.0/16")],
            vec![net("10.96.0.0/16")],
        );
        config.pod_cidrs.push(net("fd00:244::/48"));
        config.service_cidrs.push(net("fd00:96::/112"));
        let proxy = start_proxy(config, &informers, &tasks).await.unwrap();
        tokio::time::timeout(PATIENCE, proxy.ready()).await.unwrap();
        Self { pods, client, api, tasks, markers: AtomicU8::new(1) }
    }

    /// A Service with one port, and its endpoints.
    async fn service(&self, change: Value, endpoints: &[(u8, &str, &str)]) {
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": "ns", "name": "web" },
            "spec": {
                "type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:96::7"],
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{ "name": "web", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
            },
        });
        merge(&mut service, change);
        let protocol = service["spec"]["ports"][0]["protocol"].as_str().unwrap().to_owned();
        self.endpoints(&protocol, endpoints).await;
        self.change(|| self.api.set("services", &service)).await;
    }

    /// Which pods serve: number, node, and what is special about it.
    async fn endpoints(&self, protocol: &str, endpoints: &[(u8, &str, &str)]) {
        for (family, prefix) in [("IPv4", "10.244.0."), ("IPv6", "fd00:244::")] {
            let listed = |(number, node, special): &(u8, &str, &str)| {
                let ending = *special == "terminating";
                let mut listed = json!({
                    "addresses": [format!("{prefix}{number}")], "nodeName": node,
                    "conditions": { "ready": !ending, "serving": true, "terminating": ending },
                });
                if let Some(zone) = special.strip_prefix("for ") {
                    listed["hints"] = json!({ "forZones": [{ "name": zone }] });
                }
                listed
            };
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "namespace": "ns", "name": format!("web-{family}"),
                    "labels": { "kubernetes.io/service-name": "web" },
                },
                "addressType": family,
                "endpoints": endpoints.iter().map(listed).collect::<Vec<_>>(),
                "ports": [{ "name": "web", "port": 8080, "protocol": protocol }],
            });
            self.change(|| self.api.set("endpointslices", &slice)).await;
        }
    }

    /// Returns when the proxy has written what `make` changed: each informer keeps the order of what it is
    /// told, so a Service and a slice that are changed afterwards show it.
    async fn change(&self, make: impl FnOnce()) {
        make();
        let marker = self.markers.fetch_add(1, Ordering::Relaxed);
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": "ns", "name": "marker" },
            "spec": {
                "clusterIP": format!("10.96.77.{marker}"), "clusterIPs": [format!("10.96.77.{marker}")],
                "ports": [{ "port": 1, "protocol": "TCP" }],
            },
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "ns", "name": "marker",
                "labels": { "kubernetes.io/service-name": "marker" },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [format!("10.244.77.{marker}")], "conditions": { "ready": true } }],
            "ports": [{ "port": 1, "protocol": "TCP" }],
        });
        self.api.set("services", &service);
        self.api.set("endpointslices", &slice);
        eventually("the change is in the table", move || {
            let table = run("nft", "list table inet kedge");
            let service = table.contains(&format!("10.96.77.{marker} . tcp . 1 : goto balance-tcp-1-4"));
            let endpoint = table.contains(&format!(" : 10.244.77.{marker} . 1"));
            if service && endpoint { Ok(()) } else { Err(table) }
        })
        .await;
    }

    async fn finish(self) {
        assert!(self.tasks.shutdown(PATIENCE).await.is_empty());
        cleanup("kedge", "kedge0", std::path::Path::new("/nonexistent")).unwrap();
        assert!(!run("nft", "list tables").contains("kedge"));
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

/// A cable from our namespace.
fn cable(device: &str, other: &Namespace, own: &[&str], theirs: &[&str]) {
    ip(&format!("link add {device} type veth peer name eth0 netns {}", other.0));
    for address in own {
        ip(&format!("address add {address} dev {device}{}", nodad(address)));
    }
    ip(&format!("link set {device} up"));
    for address in theirs {
        other.ip(&format!("address add {address} dev eth0{}", nodad(address)));
    }
    other.ip("link set eth0 up");
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

fn pod(name: &str, number: u8) -> Namespace {
    let pod = Namespace::new(&format!("{name}{number}"));
    let device = format!("pod{number}");
    let (v4, v6) = (format!("10.244.0.{number}/32"), format!("fd00:244::{number}/128"));
    cable(&device, &pod, &["169.254.1.1/32", "fe80::1/64"], &[&v4, &v6]);
    ip(&format!("route add 10.244.0.{number} dev {device}"));
    ip(&format!("-6 route add fd00:244::{number} dev {device}"));
    pod.ip("route add 169.254.1.1 dev eth0");
    pod.ip("route add default via 169.254.1.1");
    pod.ip("-6 route add default via fe80::1 dev eth0");
    pod.within(move || {
        let name = format!("pod{number}");
        let listener = TcpListener::bind("[::]:8080").unwrap();
        let socket = UdpSocket::bind("[::]:8080").unwrap();
        let udp_name = name.clone();
        std::thread::spawn(move || serve_udp(&socket, &udp_name));
        std::thread::spawn(move || serve(&listener, &name, 0));
    });
    pod
}

/// The pod that answers.
fn server(answer: &str) -> String {
    answer.split(' ').nth(1).unwrap_or(answer).to_owned()
}

/// Ask `times` times; the pods that answered.
fn servers(from: &Namespace, address: &'static str, times: usize) -> Vec<String> {
    let mut all: Vec<String> = from.within(move || {
        (0..times).map(|_| ask(address).map_or_else(|error| error.to_string(), |a| server(&a))).collect()
    });
    all.sort();
    all.dedup();
    all
}

/// What the client hears, when it hears anything.
fn heard(from: &Namespace, address: &'static str) -> Option<String> {
    from.within(move || ask_within(address, SILENCE)).ok()
}

#[test]
fn affinity_hints_and_terminating_endpoints() {
    if is_enabled() {
        in_own_namespace(choices);
    }
}

async fn choices() {
    let node = Node::start("svc").await;
    let all = [(1, "node1", ""), (2, "node1", ""), (3, "node2", "")];
    node.service(json!({}), &all).await;
    assert_eq!(servers(&node.pods[0], "10.96.0.7:80", 60).len(), 3, "every endpoint gets its share");
    assert_eq!(servers(&node.pods[0], "[fd00:96::7]:80", 60).len(), 3, "the other family, too");

    // Endpoints that end are used only when there is no other.
    node.endpoints("TCP", &[(1, "node1", "terminating"), (2, "node1", "")]).await;
    assert_eq!(servers(&node.pods[2], "10.96.0.7:80", 20), ["pod2"]);
    node.endpoints("TCP", &[(1, "node1", "terminating")]).await;
    assert_eq!(servers(&node.pods[2], "10.96.0.7:80", 5), ["pod1"]);

    // Hints.
    node.endpoints("TCP", &[(1, "node1", "for zone2"), (2, "node1", "for zone1")]).await;
    assert_eq!(servers(&node.pods[2], "10.96.0.7:80", 20), ["pod2"]);
    let elsewhere = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "node1", "labels": { "topology.kubernetes.io/zone": "zone2" } },
    });
    node.change(|| node.api.set("nodes", &elsewhere)).await;
    let from = node.pods[2].0.clone();
    eventually("the node's zone changes", move || {
        let file = std::fs::File::open(format!("/run/netns/{from}")).unwrap();
        let asked = std::thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ask("10.96.0.7:80").map(|answer| server(&answer)).unwrap_or_default()
        });
        let found = asked.join().unwrap();
        if found == "pod1" { Ok(()) } else { Err(found) }
    })
    .await;

    // A client stays with its endpoint while it is there, whatever happens to the others.
    let sticky = json!({ "spec": {
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 600 } },
    }});
    node.service(sticky, &all).await;
    let first = servers(&node.client, "10.96.0.7:80", 20);
    assert_eq!(first.len(), 1, "{first:?}");
    let chosen: u8 = first[0].trim_start_matches("pod").parse().unwrap();
    let other = (1..=3).find(|number| *number != chosen).unwrap();
    let without = |gone: u8| all.iter().filter(|(number, ..)| *number != gone).copied().collect::<Vec<_>>();
    node.endpoints("TCP", &without(other)).await;
    assert_eq!(servers(&node.client, "10.96.0.7:80", 20), first, "another endpoint went away");
    node.endpoints("TCP", &all).await;
    assert_eq!(servers(&node.client, "10.96.0.7:80", 20), first, "it came back");
    let table = run("nft", "list table inet kedge");
    assert!(table.contains("timeout 10m"), "{table}");
    // The whole table is written again, as after a restart of Kedge.
    run("nft", "add chain inet kedge foreign");
    eventually("the table heals", || {
        let table = run("nft", "list table inet kedge");
        if table.contains("foreign") { Err(table) } else { Ok(()) }
    })
    .await;
    assert_eq!(servers(&node.client, "10.96.0.7:80", 20), first, "the table was written again");
    node.endpoints("TCP", &without(chosen)).await;
    let second = servers(&node.client, "10.96.0.7:80", 20);
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(second, first);
    node.finish().await;
}

#[test]
fn traffic_policies_and_external_addresses() {
    if is_enabled() {
        in_own_namespace(policies);
    }
}

async fn policies() {
    let node = Node::start("pol").await;
    let both = [(1, "node1", ""), (2, "node2", "")];
    let far = [(2, "node2", "")];
    let node_port = json!({ "type": "NodePort", "ports": [
        { "name": "web", "port": 80, "targetPort": 8080, "nodePort": 30080, "protocol": "TCP" },
    ]});
    let with = |change: Value| {
        let mut spec = node_port.clone();
        merge(&mut spec, change);
        json!({ "spec": spec })
    };

    // Internal: Local.
    node.service(json!({ "spec": { "internalTrafficPolicy": "Local" } }), &both).await;
    assert_eq!(servers(&node.pods[2], "10.96.0.7:80", 20), ["pod1"]);
    node.endpoints("TCP", &far).await;
    assert_eq!(heard(&node.pods[2], "10.96.0.7:80"), None, "there is none on this node");

    // External: Cluster masquerades, Local does not and stays on the node.
    node.service(with(json!({})), &both).await;
    let seen = heard(&node.client, "192.0.2.1:30080").unwrap();
    assert!(!seen.starts_with("192.0.2.2 "), "{seen}");
    assert_eq!(servers(&node.client, "192.0.2.1:30080", 40), ["pod1", "pod2"]);
    assert_eq!(servers(&node.client, "[2001:db8::1]:30080", 40), ["pod1", "pod2"]);
    node.service(with(json!({ "externalTrafficPolicy": "Local" })), &both).await;
    assert_eq!(heard(&node.client, "192.0.2.1:30080").unwrap(), "192.0.2.2 pod1");
    assert_eq!(servers(&node.client, "192.0.2.1:30080", 20), ["pod1"]);
    assert_eq!(servers(&node.pods[2], "192.0.2.1:30080", 40), ["pod1", "pod2"], "pods are no outsiders");
    node.endpoints("TCP", &far).await;
    assert_eq!(heard(&node.client, "192.0.2.1:30080"), None, "dropped, so that another node is tried");
    node.endpoints("TCP", NOBODY).await;
    let refused = node.client.within(|| ask("192.0.2.1:30080")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "no endpoint anywhere");

    // A load balancer's address, an external one, and who may use them; how a balancer asks for health.
    let balancer = json!({
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31999,
            "externalIPs": ["203.0.113.7"], "loadBalancerSourceRanges": ["192.0.2.0/30"],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.8" }] } },
    });
    let change = |range: &str| {
        let mut change = balancer.clone();
        change["spec"]["loadBalancerSourceRanges"] = json!([range]);
        change
    };
    node.service(change("192.0.2.0/30"), &both).await;
    assert_eq!(heard(&node.client, "203.0.113.7:80").unwrap(), "192.0.2.2 pod1");
    assert_eq!(heard(&node.client, "203.0.113.8:80").unwrap(), "192.0.2.2 pod1");
    node.service(change("198.51.100.0/24"), &both).await;
    assert_eq!(heard(&node.client, "203.0.113.8:80"), None, "the client is not in the range");
    assert!(heard(&node.client, "203.0.113.7:80").is_some(), "which is about the balancer only");
    let health = |expected: &'static str| {
        let client = node.client.0.clone();
        eventually("the health check", move || {
            let file = std::fs::File::open(format!("/run/netns/{client}")).unwrap();
            let asked = std::thread::spawn(move || {
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                let mut stream = TcpStream::connect("192.0.2.1:31999")?;
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).map(|_| answer)
            });
            match asked.join().unwrap() {
                Ok(answer) if answer.contains(expected) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
    };
    health("200 OK").await;
    health("\"localEndpoints\": 1").await;
    node.endpoints("TCP", &far).await;
    health("503 Service Unavailable").await;

    // The kernel takes SCTP into its tables whether or not it can carry it.
    let sctp = json!([{ "name": "web", "port": 80, "targetPort": 8080, "protocol": "SCTP" }]);
    node.service(json!({ "spec": { "ports": sctp } }), &[]).await;
    node.endpoints("SCTP", &both).await;
    let table = run("nft", "list table inet kedge");
    assert!(table.contains("10.96.0.7 . sctp . 80 : goto balance-sctp-2-4"), "{table}");
    assert!(table.contains("chain balance-sctp-2-4"), "{table}");

    // Neither of these has anything to do here.
    for change in [
        json!({ "spec": { "type": "ExternalName", "externalName": "example.org", "clusterIP": "", "clusterIPs": [] } }),
        json!({ "spec": { "clusterIP": "None", "clusterIPs": ["None"] } }),
    ] {
        node.service(change, &both).await;
        eventually("nothing is left of it", || {
            let table = run("nft", "list table inet kedge");
            if table.contains("10.96.0.7") || table.contains(": 10.244.0.") { Err(table) } else { Ok(()) }
        })
        .await;
    }
    node.finish().await;
}

#[test]
fn udp_flows_follow_their_service() {
    if is_enabled() {
        in_own_namespace(udp);
    }
}

async fn udp() {
    let node = Node::start("udp").await;
    let ports =
        json!([{ "name": "web", "port": 53, "targetPort": 8080, "nodePort": 30053, "protocol": "UDP" }]);
    let service = json!({ "spec": { "type": "NodePort", "ports": ports } });
    node.service(service, &[(1, "node1", "")]).await;
    // One socket, so that connection tracking takes all of it for one flow.
    let inside = Arc::new(node.pods[2].within(|| UdpSocket::bind("0.0.0.0:0").unwrap()));
    let outside = Arc::new(node.client.within(|| UdpSocket::bind("0.0.0.0:0").unwrap()));
    let both = |what: &'static str, expected: &'static str| {
        let (inside, outside) = (inside.clone(), outside.clone());
        eventually(what, move || {
            let answers = [ask_udp(&inside, "10.96.0.7:53"), ask_udp(&outside, "192.0.2.1:30053")];
            let found = answers.map(|answer| answer.map_or_else(|e| e.to_string(), |a| server(&a)));
            if found == [expected, expected] { Ok(()) } else { Err(format!("{found:?}")) }
        })
    };
    both("at first", "pod1").await;
    node.endpoints("UDP", &[(2, "node1", "")]).await;
    both("the endpoint was replaced", "pod2").await;
    // A flow that began when there was no endpoint must not stay without one.
    node.endpoints("UDP", NOBODY).await;
    assert!(ask_udp(&inside, "10.96.0.7:53").is_err());
    assert!(ask_udp(&outside, "192.0.2.1:30053").is_err());
    node.endpoints("UDP", &[(1, "node1", "")]).await;
    both("endpoints came back", "pod1").await;
    node.finish().await;
}
