//! Network policies: the real nftables table, real connections between pods of both IP families.

use std::net::TcpListener;
use std::time::Duration;

use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_network::{PolicyConfig, cleanup, prepare_host, start_policies};
use serde_json::{Value, json};

use crate::api::Api;
use crate::world::{
    Namespace, PATIENCE, ask_within, eventually, in_own_namespace, ip, is_enabled, run, serve,
};

fn pod(name: &str, number: u8, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "ns", "name": name, "uid": name, "labels": { "app": name } },
        "spec": { "nodeName": node, "containers": [{
            "name": "c", "ports": [{ "name": "web", "containerPort": 8080 }],
        }] },
        "status": { "phase": "Running", "podIPs": [
            { "ip": format!("10.244.{number}.5") }, { "ip": format!("fd00:{number}::5") },
        ] },
    })
}

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "ns", "name": name, "uid": name }, "spec": spec,
    })
}

#[test]
fn connections_pass_as_the_policies_say() {
    if is_enabled() {
        in_own_namespace(scenario);
    }
}

/// A connection from the namespace opens, or does not, at some time from now on.
async fn becomes(from: &Namespace, address: &'static str, open: bool) {
    let name = from.0.clone();
    let what = format!("{name} to {address}: {}", if open { "open" } else { "closed" });
    eventually(&what, move || {
        let from = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
        let answer = std::thread::spawn(move || {
            nix::sched::setns(from, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ask_within(address, Duration::from_millis(300))
        });
        let answer = answer.join().unwrap();
        if answer.is_ok() == open { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

async fn scenario() {
    let (web, friend, stranger) =
        (Namespace::new("web"), Namespace::new("friend"), Namespace::new("stranger"));
    ip("link set lo up");
    prepare_host().unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    for (number, namespace) in (1..).zip([&web, &friend, &stranger]) {
        let (name, device) = (&namespace.0, format!("pod{number}"));
        ip(&format!("link add {device} type veth peer name eth0 netns {name}"));
        ip(&format!("address add 10.244.{number}.1/24 dev {device}"));
        ip(&format!("address add fd00:{number}::1/64 dev {device} nodad"));
        ip(&format!("link set {device} up"));
        ip(&format!("-n {name} address add 10.244.{number}.5/24 dev eth0"));
        ip(&format!("-n {name} address add fd00:{number}::5/64 dev eth0 nodad"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} route add default via 10.244.{number}.1"));
        ip(&format!("-n {name} route add default via fd00:{number}::1"));
    }
    web.run(|| serve(&TcpListener::bind("[::]:8080").unwrap(), "web", 0));
    web.run(|| serve(&TcpListener::bind("[::]:9090").unwrap(), "admin", 0));

    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "ns", "labels": { "team": "red" } },
    });
    let api = Api::new([
        ("networkpolicies", Vec::new()),
        ("pods", vec![pod("web", 1, "here"), pod("friend", 2, "here"), pod("stranger", 3, "there")]),
        ("namespaces", vec![namespace]),
    ]);
    let tasks = Tasks::new("test");
    let informers = Informers::new(api.client(), &tasks);
    let config = PolicyConfig { node_name: "here".into(), table_name: "kedge".into() };
    let policies = start_policies(&config, &informers, &tasks).unwrap();
    tokio::time::timeout(PATIENCE, policies.ready()).await.unwrap();
    assert!(!run("nft", "list tables").contains("kedge"), "no policy, no table");
    becomes(&stranger, "10.244.1.5:8080", true).await;
    becomes(&stranger, "[fd00:1::5]:8080", true).await;

    let selected = json!({ "matchLabels": { "app": "web" } });
    let from = json!([{ "podSelector": { "matchLabels": { "app": "friend" } } }]);
    api.set(
        "networkpolicies",
        &policy(
            "p",
            json!({ "podSelector": selected, "ingress": [{ "from": from, "ports": [{ "port": "web" }] }] }),
        ),
    );
    for (address, admin) in [("10.244.1.5:8080", "10.244.1.5:9090"), ("[fd00:1::5]:8080", "[fd00:1::5]:9090")]
    {
        becomes(&stranger, address, false).await;
        becomes(&friend, address, true).await;
        becomes(&friend, admin, false).await;
    }

    // A second policy adds to the first.
    let range = json!([{ "port": 9000, "endPort": 9100 }]);
    let block = json!([{ "ipBlock": { "cidr": "10.244.0.0/16", "except": ["10.244.2.0/24"] } }]);
    api.set(
        "networkpolicies",
        &policy("q", json!({ "podSelector": {}, "ingress": [{ "from": block, "ports": range }] })),
    );
    becomes(&stranger, "10.244.1.5:9090", true).await;
    becomes(&friend, "10.244.1.5:9090", false).await;
    becomes(&stranger, "10.244.1.5:8080", false).await;

    // The sender's own policy.
    let to = json!([{ "ipBlock": { "cidr": "fd00::/16" } }]);
    let out = policy(
        "out",
        json!({
            "podSelector": { "matchLabels": { "app": "friend" } }, "policyTypes": ["Egress"], "egress": [{ "to": to }],
        }),
    );
    api.set("networkpolicies", &out);
    becomes(&friend, "10.244.1.5:8080", false).await;
    becomes(&friend, "[fd00:1::5]:8080", true).await;
    api.delete("networkpolicies", "out");
    becomes(&friend, "10.244.1.5:8080", true).await;

    // Another address of the friend: the set follows.
    let mut moved = pod("friend", 2, "here");
    moved["status"]["podIPs"] = json!([{ "ip": "10.244.2.99" }]);
    api.set("pods", &moved);
    becomes(&friend, "10.244.1.5:8080", false).await;
    api.set("pods", &pod("friend", 2, "here"));
    becomes(&friend, "10.244.1.5:8080", true).await;

    for damage in ["flush ruleset", "delete table inet kedge-policies", "flush table inet kedge-policies"] {
        run("nft", damage);
        becomes(&stranger, "10.244.1.5:8080", false).await;
        becomes(&friend, "10.244.1.5:8080", true).await;
    }

    api.delete("networkpolicies", "q");
    becomes(&stranger, "10.244.1.5:9090", false).await;
    eventually("what is not used any more is deleted", || {
        let table = run("nft", "list table inet kedge-policies");
        if table.contains("ns/q") { Err(table) } else { Ok(()) }
    })
    .await;
    api.delete("networkpolicies", "p");
    becomes(&stranger, "10.244.1.5:8080", true).await;
    eventually("the last policy takes the table along", || {
        let tables = run("nft", "list tables");
        if tables.contains("kedge") { Err(tables) } else { Ok(()) }
    })
    .await;

    api.set("networkpolicies", &policy("p", json!({ "podSelector": {} })));
    becomes(&stranger, "10.244.1.5:8080", false).await;
    assert!(tasks.shutdown(PATIENCE).await.is_empty());
    becomes(&stranger, "10.244.1.5:8080", false).await;
    cleanup("kedge", "kedge0", std::path::Path::new("/nonexistent")).unwrap();
    cleanup("kedge", "kedge0", std::path::Path::new("/nonexistent")).unwrap();
    assert!(!run("nft", "list tables").contains("kedge"));
}
