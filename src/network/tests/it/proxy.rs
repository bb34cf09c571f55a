//! The service proxy: the real nftables table, real connections.

use std::net::{IpAddr, TcpListener};

use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_network::{IpNet, ProxyConfig, cleanup, prepare_host, start_proxy};
use serde_json::{Value, json};

use crate::api::Api;
use crate::world::{Namespace, PATIENCE, ask, eventually, in_own_namespace, ip, is_enabled, run, serve};

const VIP: &str = "10.96.0.7:80";
const NODE_PORT: &str = "192.0.2.1:30080";

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
    if is_enabled() {
        in_own_namespace(scenario);
    }
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
        ip(&format!("-n {name} route add default via {gateway}"));
    }
    ip("route add default via 192.0.2.2");
    prepare_host().unwrap();
    pod.run(|| serve(&TcpListener::bind("10.244.0.5:8080").unwrap(), "pod", 0));

    let api = Api::new([
        ("services", vec![service()]),
        ("endpointslices", vec![slice(1, &["10.244.0.5"])]),
        ("nodes", Vec::new()),
    ]);
    let tasks = Tasks::new("test");
    let informers = Informers::new(api.client(), &tasks);
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let node_ips = vec![IpAddr::from([192, 0, 2, 1])];
    let config = ProxyConfig::new("node1", node_ips, vec![net("10.244.0.0/16")], vec![net("10.96.0.0/16")]);
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
    assert_eq!(from_client.unwrap(), "10.244.0.1 pod", "a node port masquerades clients from outside");
    assert_eq!(from_itself.unwrap(), "10.244.0.1 pod", "a pod that reaches itself is masqueraded");

    api.set("endpointslices", &slice(2, &[]));
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

    api.set("endpointslices", &slice(3, &["10.244.0.5"]));
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
