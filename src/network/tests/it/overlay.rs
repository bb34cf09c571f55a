//! The pod network: three nodes on one bridge, each in a namespace with its own overlay and one pod.

use std::net::TcpListener;
use std::sync::mpsc;

use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_network::{
    Backend, CniFiles, NetworkConfig, Overlay, OverlayConfig, VxlanConfig, cleanup, prepare_host,
    start_overlay,
};
use serde_json::{Value, json};

use crate::api::Api;
use crate::world::{Namespace, PATIENCE, ask, eventually, in_own_namespace, is_enabled, serve};

/// A machine with one pod.
pub(crate) struct Node {
    number: u8,
    pub(crate) host: Namespace,
    pod: Namespace,
    pub(crate) overlay: Overlay,
    tasks: Tasks,
    thread: std::thread::JoinHandle<()>,
    files: tempfile::TempDir,
}

/// With pods of both IP families.
pub(crate) fn dual_node_object(number: u8) -> Value {
    let mut node = node_object(number);
    node["spec"]["podCIDRs"] = json!([format!("10.244.{number}.0/24"), format!("fd00:244:{number}::/64")]);
    node
}

fn node_object(number: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("node{number}"), "uid": format!("uid-{number}"), "annotations": {} },
        "spec": { "podCIDR": format!("10.244.{number}.0/24"), "podCIDRs": [format!("10.244.{number}.0/24")] },
    })
}

impl Node {
    pub(crate) fn start(number: u8, name: &str, wire: &Namespace, api: &Api, backend: &Backend) -> Self {
        let host = Namespace::new(&format!("{name}{number}"));
        let pod = Namespace::new(&format!("{name}{number}p"));
        wire.cable(&format!("port{number}"), &host, &format!("192.0.2.{number}/24"));
        wire.ip(&format!("link set port{number} master wire"));
        host.ip("link add kedge0 type bridge");
        host.ip(&format!("address add 10.244.{number}.1/24 dev kedge0"));
        host.ip("link set kedge0 up");
        host.cable("veth0", &pod, &format!("10.244.{number}.2/24"));
        host.ip("link set veth0 master kedge0");
        pod.ip(&format!("route add default via 10.244.{number}.1"));
        // Whether they are used is up to the Node object.
        host.ip(&format!("address add 2001:db8::{number}/64 dev eth0 nodad"));
        host.ip(&format!("address add fd00:244:{number}::1/64 dev kedge0 nodad"));
        pod.ip(&format!("address add fd00:244:{number}::2/64 dev eth0 nodad"));
        pod.ip(&format!("-6 route add default via fd00:244:{number}::1"));
        // Far more than one packet, so that an MTU that is too large shows.
        pod.run(|| serve(&TcpListener::bind("[::]:8080").unwrap(), "pod", 200_000));

        let files = tempfile::tempdir().unwrap();
        let (overlay, tasks, thread) = Self::run(number, &host, api, backend, &files);
        Self { number, host, pod, overlay, tasks, thread, files }
    }

    fn run(
        number: u8,
        host: &Namespace,
        api: &Api,
        backend: &Backend,
        files: &tempfile::TempDir,
    ) -> (Overlay, Tasks, std::thread::JoinHandle<()>) {
        let tasks = Tasks::new("node");
        let networks = ["10.244.0.0/16", "fd00:244::/32"].map(|net| net.parse().unwrap()).into();
        let network = NetworkConfig { networks, backend: backend.clone() };
        let config = OverlayConfig {
            network,
            node_ips: ["192.0.2.", "2001:db8::"].map(|ip| format!("{ip}{number}").parse().unwrap()).into(),
            cni: Some(CniFiles {
                dir: files.path().into(),
                host_local_dir: files.path().join("leases"),
                foreign_dir: files.path().join("etc"),
            }),
            ..OverlayConfig::new(
                format!("node{number}"),
                vec![[192, 0, 2, number].into()],
                vec!["10.9.0.0/16".parse().unwrap()],
                "kedge0",
            )
        };
        let (sender, receiver) = mpsc::channel();
        let (api, own_tasks) = (api.clone(), tasks.clone());
        let thread = host.run(move || {
            prepare_host().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let informers = Informers::new(api.client(), &own_tasks);
                let started = start_overlay(config, api.client(), &informers, &own_tasks).await;
                sender.send(started.unwrap()).unwrap();
                own_tasks.token().cancelled().await;
                assert!(own_tasks.shutdown(PATIENCE).await.is_empty());
            });
        });
        (receiver.recv().unwrap(), tasks, thread)
    }

    /// The pod asks the pod of another node; both see each other's own addresses.
    pub(crate) fn reaches(&self, other: u8) -> impl Fn() -> Result<(), String> + Clone + Send + 'static {
        self.reaches_at(format!("10.244.{other}.2:8080"), format!("10.244.{}.2", self.number))
    }

    pub(crate) fn reaches_by_ipv6(
        &self,
        other: u8,
    ) -> impl Fn() -> Result<(), String> + Clone + Send + 'static {
        self.reaches_at(format!("[fd00:244:{other}::2]:8080"), format!("fd00:244:{}::2", self.number))
    }

    fn reaches_at(
        &self,
        to: String,
        own: String,
    ) -> impl Fn() -> Result<(), String> + Clone + Send + 'static {
        let name = self.pod.0.clone();
        move || {
            let file =
                std::fs::File::open(format!("/run/netns/{name}")).map_err(|error| error.to_string())?;
            let to = to.clone();
            let asked = std::thread::spawn(move || {
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                ask(&to)
            });
            let answer = asked.join().unwrap().map_err(|error| error.to_string())?;
            let whole = answer.len() > 200_000 && answer.trim_end() == format!("{own} pod");
            if whole { Ok(()) } else { Err(format!("{} bytes from {}", answer.len(), answer.trim_end())) }
        }
    }

    pub(crate) async fn has_routes(&self, count: usize) {
        let mut state = self.overlay.watch();
        let waited = state.wait_for(|state| state.as_ref().is_some_and(|state| state.routes.len() == count));
        let found = tokio::time::timeout(PATIENCE, waited).await;
        assert!(found.is_ok(), "{:?}", self.overlay.state());
    }

    pub(crate) fn stop(self) {
        self.tasks.token().cancel();
        self.thread.join().unwrap();
        self.host.within(|| {
            for _ in 0..2 {
                cleanup("kedge", "kedge0", std::path::Path::new("/nonexistent")).unwrap();
            }
        });
        let links = self.host.ip("link show");
        assert!(!links.contains("flannel") && !links.contains("kedge0"), "{links}");
        let routes = self.host.ip("route show");
        assert!(!routes.contains("10.244."), "{routes}");
        let rules = self.host.exec("nft", "list ruleset");
        assert!(!rules.contains("kedge"), "{rules}");
        if std::path::Path::new("/usr/sbin/iptables-legacy").exists() {
            let rules = self.host.exec("iptables-legacy", "-S FORWARD");
            assert!(!rules.contains("kedge"), "{rules}");
        }
    }
}

async fn all_reach_all(what: &str, nodes: &[Node]) {
    for from in nodes {
        for to in nodes.iter().filter(|to| to.number != from.number) {
            eventually(&format!("{what}: pod {} to pod {}", from.number, to.number), from.reaches(to.number))
                .await;
        }
    }
}

pub(crate) fn wire() -> Namespace {
    let wire = Namespace::new("wire");
    wire.ip("link add wire type bridge");
    wire.ip("link set wire up");
    wire
}

#[test]
fn pods_reach_each_other_by_vxlan() {
    if is_enabled() {
        in_own_namespace(vxlan);
    }
}

async fn vxlan() {
    let wire = wire();
    let api = Api::new([("nodes", (1..=3).map(node_object).collect())]);
    let backend = Backend::Vxlan(VxlanConfig::default());
    let mut nodes: Vec<Node> =
        (1..=3).map(|number| Node::start(number, "vx", &wire, &api, &backend)).collect();
    for node in &nodes {
        node.has_routes(2).await;
        let state = node.overlay.state().unwrap();
        assert_eq!((state.backend.as_str(), state.mtu), ("vxlan", 1450), "{state:?}");
        assert_eq!(state.problems, [""; 0]);
        let cni = std::fs::read_to_string(node.files.path().join("10-kedge.conflist")).unwrap();
        let cni: Value = serde_json::from_str(&cni).unwrap();
        assert_eq!(
            (&cni["plugins"][0]["mtu"], &cni["plugins"][0]["bridge"]),
            (&json!(1450), &json!("kedge0"))
        );
        assert!(node.host.ip("link show kedge0").contains("mtu 1450"));
    }
    // What a stock flanneld reads.
    let annotations = api.get("nodes", "node2").unwrap()["metadata"]["annotations"].clone();
    let data: Value =
        serde_json::from_str(annotations["flannel.alpha.coreos.com/backend-data"].as_str().unwrap()).unwrap();
    assert_eq!(annotations["flannel.alpha.coreos.com/public-ip"], "192.0.2.2");
    assert_eq!(annotations["flannel.alpha.coreos.com/backend-type"], "vxlan");
    assert_eq!(annotations["flannel.alpha.coreos.com/kube-subnet-manager"], "true");
    let device = nodes[1].host.ip("-d link show flannel.1");
    assert!(device.contains(data["VtepMAC"].as_str().unwrap()), "{device} {data}");
    assert!(
        device.contains("vxlan id 1 local 192.0.2.2 dev eth0") && device.contains("dstport 8472"),
        "{device}"
    );
    assert!(device.contains("nolearning"), "{device}");
    // Made once, not again and again: its number stays.
    let number = |device: &str| device.split(':').next().map(str::to_owned);
    let patched = api.patches();
    assert_eq!(patched.len(), 3, "one patch for each node: {patched:?}");

    all_reach_all("at first", &nodes).await;
    assert_eq!(number(&nodes[1].host.ip("-d link show flannel.1")), number(&device));
    // The machine itself reaches pods elsewhere, from its address in the pod network.
    let answer = nodes[0].host.within(|| ask("10.244.2.2:8080")).unwrap();
    assert_eq!(answer.trim_end(), "10.244.1.0 pod");

    for damage in [
        "route del 10.244.2.0/24",
        "route replace 10.244.2.0/24 via 192.0.2.3",
        "neigh del 10.244.2.0 dev flannel.1",
        "neigh flush dev flannel.1 nud permanent",
        "link set flannel.1 down",
        "link set flannel.1 mtu 1300",
        "address flush dev flannel.1",
        "link del flannel.1",
    ] {
        nodes[0].host.ip(damage);
        eventually(damage, nodes[0].reaches(2)).await;
        eventually(damage, nodes[0].reaches(3)).await;
    }
    nodes[0].host.exec(
        "bridge",
        &format!("fdb del {} dev flannel.1 dst 192.0.2.2", data["VtepMAC"].as_str().unwrap()),
    );
    eventually("forwarding entry", nodes[0].reaches(2)).await;
    let host = nodes[0].host.0.clone();
    eventually("the MTU is back", move || {
        let link = crate::world::run("ip", &format!("-n {host} link show flannel.1"));
        if link.contains("mtu 1450") { Ok(()) } else { Err(link) }
    })
    .await;

    // As after joining another cluster: the range that was ours is another node's.
    nodes[0].host.ip("address add 10.244.2.1/24 dev kedge0");
    eventually("an old address of the bridge", nodes[0].reaches(2)).await;

    firewalls(&nodes).await;

    // A node that runs flanneld, as its Node object looks.
    let mut stock = node_object(9);
    stock["metadata"]["annotations"] = json!({
        "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"8a:51:c9:5f:00:09\"}",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": "198.51.100.9",
    });
    api.set("nodes", &stock);
    nodes[0].has_routes(3).await;
    let host = &nodes[0].host;
    let route = host.ip("route show 10.244.9.0/24");
    assert!(route.contains("via 10.244.9.0 dev flannel.1") && route.contains("onlink"), "{route}");
    assert!(host.ip("neigh show dev flannel.1").contains("10.244.9.0 lladdr 8a:51:c9:5f:00:09 PERMANENT"));
    let fdb = host.exec("bridge", "fdb show dev flannel.1");
    assert!(fdb.contains("8a:51:c9:5f:00:09 dst 198.51.100.9 self permanent"), "{fdb}");
    api.delete("nodes", "node9");
    nodes[0].has_routes(2).await;
    assert!(!nodes[0].host.exec("bridge", "fdb show dev flannel.1").contains("8a:51"));

    // A node that goes away.
    let gone = nodes.pop().unwrap();
    api.delete("nodes", "node3");
    nodes[0].has_routes(1).await;
    nodes[1].has_routes(1).await;
    assert!(!nodes[0].host.ip("route show").contains("10.244.3."));
    eventually("the others still do", nodes[0].reaches(2)).await;
    nodes.push(gone);
    nodes.into_iter().for_each(Node::stop);
}

/// Other programs that drop what is forwarded, as Docker and ufw do.
async fn firewalls(nodes: &[Node]) {
    let host = &nodes[1].host;
    host.exec("iptables-nft", "-P FORWARD DROP");
    eventually("a firewall that drops", nodes[0].reaches(2)).await;
    let rules = host.exec("iptables-nft", "-S FORWARD");
    assert!(rules.contains("-s 10.244.0.0/16") && rules.contains("-d 10.244.0.0/16"), "{rules}");
    host.exec("iptables-nft", "-F FORWARD");
    eventually("its rules are flushed", nodes[0].reaches(2)).await;
    host.exec("nft", "add table inet fire");
    host.exec(
        "nft",
        "add chain inet fire forward-all { type filter hook forward priority 10 ; policy drop ; }",
    );
    eventually("a second one", nodes[0].reaches(2)).await;
    if std::path::Path::new("/usr/sbin/iptables-legacy").exists() {
        host.exec("iptables-legacy", "-P FORWARD DROP");
        // x_tables tells nobody; it is looked at whenever nftables changes.
        host.exec("nft", "add chain inet fire other");
        eventually("x_tables", nodes[0].reaches(2)).await;
        let rules = host.exec("iptables-legacy", "-S FORWARD");
        assert!(rules.contains("-s 10.244.0.0/16") && rules.contains("-d 10.244.0.0/16"), "{rules}");
    }
}

#[test]
fn pods_reach_each_other_by_host_gw() {
    if is_enabled() {
        in_own_namespace(host_gw);
    }
}

async fn host_gw() {
    let wire = wire();
    let api = Api::new([("nodes", (1..=2).map(node_object).collect()), ("configmaps", Vec::new())]);
    // The cluster's ConfigMap decides, not the node's own configuration.
    let network =
        NetworkConfig { networks: vec!["10.244.0.0/16".parse().unwrap()], backend: Backend::HostGw };
    api.set("configmaps", &serde_json::to_value(network.config_map()).unwrap());
    let backend = Backend::Vxlan(VxlanConfig::default());
    let nodes: Vec<Node> = (1..=2).map(|number| Node::start(number, "gw", &wire, &api, &backend)).collect();
    for node in &nodes {
        node.has_routes(1).await;
        let state = node.overlay.state().unwrap();
        assert_eq!((state.backend.as_str(), state.mtu), ("host-gw", 1500), "{state:?}");
    }
    all_reach_all("host-gw", &nodes).await;
    let route = nodes[0].host.ip("route show 10.244.2.0/24");
    assert!(route.contains("via 192.0.2.2 dev eth0 proto 107"), "{route}");
    nodes[0].host.ip("route del 10.244.2.0/24");
    eventually("a deleted route", nodes[0].reaches(2)).await;
    // What is not ours stays.
    nodes[0].host.ip("route add 10.250.0.0/16 via 192.0.2.2");
    api.delete("nodes", "node2");
    nodes[0].has_routes(0).await;
    let routes = nodes[0].host.ip("route show");
    assert!(!routes.contains("10.244.2.") && routes.contains("10.250."), "{routes}");
    nodes.into_iter().for_each(Node::stop);
}

#[test]
fn both_families_and_direct_routing() {
    if is_enabled() {
        in_own_namespace(both_families);
    }
}

async fn both_families() {
    let wire = wire();
    let api = Api::new([("nodes", (1..=2).map(dual_node_object).collect()), ("configmaps", Vec::new())]);
    let tunnel = Backend::Vxlan(VxlanConfig::default());
    let mut nodes: Vec<Node> =
        (1..=2).map(|number| Node::start(number, "ds", &wire, &api, &tunnel)).collect();
    for node in &nodes {
        node.has_routes(2).await;
        let state = node.overlay.state().unwrap();
        assert_eq!((state.mtu, state.pod_cidrs.len()), (1430, 2), "IPv6 takes 20 bytes more: {state:?}");
    }
    let annotations = api.get("nodes", "node1").unwrap()["metadata"]["annotations"].clone();
    assert_eq!(annotations["flannel.alpha.coreos.com/public-ipv6"], "2001:db8::1");
    let device = nodes[0].host.ip("-d link show flannel-v6.1");
    assert!(device.contains("local 2001:db8::1") && device.contains("mtu 1430"), "{device}");
    eventually("IPv4", nodes[0].reaches(2)).await;
    eventually("IPv6", nodes[0].reaches_by_ipv6(2)).await;
    eventually("and back", nodes[1].reaches_by_ipv6(1)).await;
    for damage in ["-6 route del fd00:244:2::/64", "link del flannel-v6.1"] {
        nodes[0].host.ip(damage);
        eventually(damage, nodes[0].reaches_by_ipv6(2)).await;
    }

    // Started again with direct routing on one side: devices and addresses stay, routes change.
    let Node { host, pod, tasks, thread, files, .. } = nodes.remove(0);
    let before = host.ip("link show flannel.1");
    tasks.token().cancel();
    thread.join().unwrap();
    let (overlay, tasks, thread) = Node::run(
        1,
        &host,
        &api,
        &Backend::Vxlan(VxlanConfig { direct_routing: true, ..VxlanConfig::default() }),
        &files,
    );
    nodes.insert(0, Node { number: 1, host, pod, overlay, tasks, thread, files });
    nodes[0].has_routes(2).await;
    let host = &nodes[0].host;
    assert_eq!(host.ip("link show flannel.1"), before, "the device was taken over");
    let route = host.ip("route show 10.244.2.0/24");
    assert!(route.contains("via 192.0.2.2 dev eth0"), "{route}");
    let route = host.ip("-6 route show fd00:244:2::/64");
    assert!(route.contains("via 2001:db8::2 dev eth0") && !route.contains("flannel"), "{route}");
    assert!(!host.exec("bridge", "fdb show dev flannel.1").contains("192.0.2.2"));
    all_reach_all("one way direct, the other in the tunnel", &nodes).await;
    eventually("IPv6", nodes[0].reaches_by_ipv6(2)).await;
    nodes.into_iter().for_each(Node::stop);
}

#[test]
fn nodes_with_and_without_vxlan() {
    if is_enabled() {
        in_own_namespace(mixed);
    }
}

/// As where one node's kernel cannot make VXLAN devices.
async fn mixed() {
    let wire = wire();
    let api = Api::new([("nodes", (1..=3).map(node_object).collect()), ("configmaps", Vec::new())]);
    let tunnel = Backend::Vxlan(VxlanConfig::default());
    let mut nodes: Vec<Node> = [&tunnel, &tunnel, &Backend::HostGw]
        .into_iter()
        .zip(1..)
        .map(|(backend, number)| Node::start(number, "mx", &wire, &api, backend))
        .collect();
    for (node, backend) in nodes.iter().zip(["vxlan", "vxlan", "host-gw"]) {
        node.has_routes(2).await;
        assert_eq!(node.overlay.state().unwrap().backend, backend);
    }
    all_reach_all("a mixture", &nodes).await;
    assert!(nodes[0].host.ip("route show 10.244.2.0/24").contains("dev flannel.1"));
    assert!(nodes[0].host.ip("route show 10.244.3.0/24").contains("via 192.0.2.3 dev eth0"));

    // The second gives up VXLAN: its device goes, and the first hears of it.
    let Node { host, pod, tasks, thread, files, .. } = nodes.remove(1);
    tasks.token().cancel();
    thread.join().unwrap();
    let (overlay, tasks, thread) = Node::run(2, &host, &api, &Backend::HostGw, &files);
    nodes.insert(1, Node { number: 2, host, pod, overlay, tasks, thread, files });
    nodes[1].has_routes(2).await;
    assert!(!nodes[1].host.ip("link show").contains("flannel"));
    assert!(nodes[1].host.ip("link show kedge0").contains("mtu 1500"));
    all_reach_all("one fewer", &nodes).await;
    let host = nodes[0].host.0.clone();
    eventually("the first sends it packets as they are", move || {
        let route = crate::world::run("ip", &format!("-n {host} route show 10.244.2.0/24"));
        if route.contains("via 192.0.2.2 dev eth0") { Ok(()) } else { Err(route) }
    })
    .await;
    nodes.into_iter().for_each(Node::stop);
}
