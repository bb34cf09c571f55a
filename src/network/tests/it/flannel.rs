//! A node of ours beside one that stock flannel keeps. No flanneld runs here: a namespace plays its node with
//! the very devices, neighbours, forwarding entries and routes that its vxlan and host-gw backends make
//! (pkg/backend/vxlan/vxlan_network.go, device.go; pkg/backend/route_network.go), from nothing but the
//! annotations that our node wrote, and its Node object has what flanneld's subnet manager writes.

use std::net::TcpListener;

use kedge_network::{Backend, VxlanConfig};
use serde_json::{Value, json};

use crate::api::Api;
use crate::overlay::{Node, dual_node_object, wire};
use crate::world::{Namespace, ask, eventually, in_own_namespace, is_enabled, run, serve};

const PREFIX: &str = "flannel.alpha.coreos.com/";
/// Of flanneld's two devices.
const MACS: [&str; 2] = ["a2:55:81:0e:5d:01", "a2:55:81:0e:5d:02"];

/// The Node object of number 2 as flanneld announces itself, in the order and spelling of Go's encoder.
fn announced(backend: &str) -> Value {
    let mut node = dual_node_object(2);
    let data = |mac: &str| match backend {
        "vxlan" => format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#),
        _ => "null".to_owned(),
    };
    for (name, value) in [
        ("backend-type", backend.to_owned()),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", "192.0.2.2".to_owned()),
        ("public-ipv6", "2001:db8::2".to_owned()),
        ("backend-data", data(MACS[0])),
        ("backend-v6-data", data(MACS[1])),
    ] {
        node["metadata"]["annotations"][format!("{PREFIX}{name}")] = json!(value);
    }
    node
}

/// The machine that flanneld keeps, with one pod on flannel's bridge.
struct Peer {
    host: Namespace,
    pod: Namespace,
}

impl Peer {
    fn new(wire: &Namespace) -> Self {
        let (host, pod) = (Namespace::new("fl"), Namespace::new("flp"));
        wire.cable("port2", &host, "192.0.2.2/24");
        wire.ip("link set port2 master wire");
        host.ip("address add 2001:db8::2/64 dev eth0 nodad");
        host.ip("link add cni0 type bridge");
        host.ip("address add 10.244.2.1/24 dev cni0");
        host.ip("address add fd00:244:2::1/64 dev cni0 nodad");
        host.ip("link set cni0 up");
        host.cable("veth0", &pod, "10.244.2.2/24");
        host.ip("link set veth0 master cni0");
        pod.ip("route add default via 10.244.2.1");
        pod.ip("address add fd00:244:2::2/64 dev eth0 nodad");
        pod.ip("-6 route add default via fd00:244:2::1");
        host.within(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        pod.run(|| serve(&TcpListener::bind("[::]:8080").unwrap(), "pod", 200_000));
        Self { host, pod }
    }

    /// `newVXLANDevice` and `Configure`: an address without a network, and the MTU less what is put around.
    fn devices(&self) {
        self.host.ip(
            "link add flannel.1 address a2:55:81:0e:5d:01 mtu 1450 type vxlan id 1 dev eth0 local 192.0.2.2 \
             dstport 8472 nolearning",
        );
        self.host.ip("address add 10.244.2.0/32 dev flannel.1");
        self.host.ip("link set flannel.1 up");
        self.host.ip(
            "link add flannel-v6.1 address a2:55:81:0e:5d:02 mtu 1430 type vxlan id 1 dev eth0 local 2001:db8::2 \
             dstport 8472 nolearning",
        );
        self.host.ip("address add fd00:244:2::/128 dev flannel-v6.1 nodad");
        self.host.ip("link set flannel-v6.1 up");
    }

    /// `handleSubnetEvents` for the lease of our node: AddARP, AddFDB, RouteReplace.
    fn learns_vxlan(&self, annotations: &Value) {
        let text = |name: &str| annotations[format!("{PREFIX}{name}")].as_str().unwrap().to_owned();
        for (data, public, device, subnet, gateway, family) in [
            ("backend-data", "public-ip", "flannel.1", "10.244.1.0/24", "10.244.1.0", "-4"),
            ("backend-v6-data", "public-ipv6", "flannel-v6.1", "fd00:244:1::/64", "fd00:244:1::", "-6"),
        ] {
            let data: Value = serde_json::from_str(&text(data)).unwrap();
            // vxlanLeaseAttrs: both are read, and another number is another network.
            assert_eq!(data["VNI"], 1);
            let (mac, public) = (data["VtepMAC"].as_str().unwrap(), text(public));
            self.host
                .ip(&format!("{family} neigh replace {gateway} lladdr {mac} dev {device} nud permanent"));
            run(
                "bridge",
                &format!("-n {} fdb replace {mac} dev {device} dst {public} self permanent", self.host.0),
            );
            self.host.ip(&format!("{family} route replace {subnet} via {gateway} dev {device} onlink"));
        }
    }

    fn learns_host_gw(&self, annotations: &Value) {
        let text = |name: &str| annotations[format!("{PREFIX}{name}")].as_str().unwrap().to_owned();
        self.host.ip(&format!("route replace 10.244.1.0/24 via {} dev eth0", text("public-ip")));
        self.host.ip(&format!("-6 route replace fd00:244:1::/64 via {} dev eth0", text("public-ipv6")));
    }

    /// Its pod asks ours; both see each other's own addresses.
    async fn reaches_ours(&self) {
        for (to, own) in [("10.244.1.2:8080", "10.244.2.2"), ("[fd00:244:1::2]:8080", "fd00:244:2::2")] {
            let name = self.pod.0.clone();
            eventually(to, move || {
                let file = std::fs::File::open(format!("/run/netns/{name}")).map_err(|e| e.to_string())?;
                let asked = std::thread::spawn(move || {
                    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    ask(to)
                });
                let answer = asked.join().unwrap().map_err(|error| error.to_string())?;
                let whole = answer.len() > 200_000 && answer.trim_end() == format!("{own} pod");
                if whole { Ok(()) } else { Err(format!("{} bytes: {}", answer.len(), answer.trim_end())) }
            })
            .await;
        }
    }
}

#[test]
fn a_stock_flannel_node_is_a_neighbour() {
    if is_enabled() {
        in_own_namespace(neighbour);
    }
}

async fn neighbour() {
    let wire = wire();
    let peer = Peer::new(&wire);
    peer.devices();
    let api =
        Api::new([("nodes", vec![dual_node_object(1), announced("vxlan")]), ("configmaps", Vec::new())]);
    let ours = Node::start(1, "fo", &wire, &api, &Backend::Vxlan(VxlanConfig::default()));
    ours.has_routes(2).await;
    let announced_by_us = api.get("nodes", "node1").unwrap()["metadata"]["annotations"].clone();
    assert_eq!(announced_by_us[format!("{PREFIX}backend-type")], "vxlan");
    peer.learns_vxlan(&announced_by_us);

    // What flanneld would have made here for its node's lease.
    for (device, mac, public) in
        [("flannel.1", MACS[0], "192.0.2.2"), ("flannel-v6.1", MACS[1], "2001:db8::2")]
    {
        let entries = ours.host.exec("bridge", &format!("fdb show dev {device}"));
        assert!(
            entries.contains(&format!("{mac} dst {public}")) && entries.contains("permanent"),
            "{entries}"
        );
        let neighbours = ours.host.ip(&format!("neigh show dev {device}"));
        assert!(neighbours.contains(&format!("lladdr {mac} PERMANENT")), "{neighbours}");
    }
    let route = ours.host.ip("route show 10.244.2.0/24");
    assert!(route.contains("via 10.244.2.0 dev flannel.1") && route.contains("onlink"), "{route}");
    let route = ours.host.ip("-6 route show fd00:244:2::/64");
    assert!(route.contains("via fd00:244:2:: dev flannel-v6.1"), "{route}");

    eventually("ours to flannel's", ours.reaches(2)).await;
    eventually("ours to flannel's by IPv6", ours.reaches_by_ipv6(2)).await;
    peer.reaches_ours().await;

    // The condition that flanneld sets, with its reason.
    let node = api.get("nodes", "node1").unwrap();
    let condition = &node["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"], &condition["reason"]),
        (&json!("NetworkUnavailable"), &json!("False"), &json!("FlannelIsUp"))
    );

    // flanneld came back with another device: it announces another hardware address.
    let mut moved = api.get("nodes", "node2").unwrap();
    let mac = "a2:55:81:0e:5d:99";
    moved["metadata"]["annotations"][format!("{PREFIX}backend-data")] =
        json!(format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#));
    peer.host.ip(&format!("link set flannel.1 address {mac}"));
    // The kernel has forgotten the neighbours of that device.
    peer.learns_vxlan(&announced_by_us);
    api.set("nodes", &moved);
    eventually("ours to flannel's new device", ours.reaches(2)).await;
    let entries = ours.host.exec("bridge", "fdb show dev flannel.1");
    assert!(entries.contains(mac) && !entries.contains(MACS[0]), "{entries}");

    // Its node is gone: nothing of it stays.
    api.delete("nodes", "node2");
    ours.has_routes(0).await;
    for (device, mac) in [("flannel.1", mac), ("flannel-v6.1", MACS[1])] {
        assert!(!ours.host.exec("bridge", &format!("fdb show dev {device}")).contains(mac));
        assert!(!ours.host.ip(&format!("neigh show dev {device}")).contains(mac));
    }
    ours.stop();
}

#[test]
fn a_stock_flannel_node_with_host_gw() {
    if is_enabled() {
        in_own_namespace(host_gw);
    }
}

async fn host_gw() {
    let wire = wire();
    let peer = Peer::new(&wire);
    let api =
        Api::new([("nodes", vec![dual_node_object(1), announced("host-gw")]), ("configmaps", Vec::new())]);
    let ours = Node::start(1, "fg", &wire, &api, &Backend::HostGw);
    ours.has_routes(2).await;
    let announced_by_us = api.get("nodes", "node1").unwrap()["metadata"]["annotations"].clone();
    assert_eq!(announced_by_us[format!("{PREFIX}backend-type")], "host-gw");
    assert_eq!(announced_by_us[format!("{PREFIX}backend-v6-data")], "null");
    peer.learns_host_gw(&announced_by_us);
    assert!(ours.host.ip("-6 route show fd00:244:2::/64").contains("via 2001:db8::2 dev eth0"));
    eventually("ours to flannel's", ours.reaches(2)).await;
    eventually("ours to flannel's by IPv6", ours.reaches_by_ipv6(2)).await;
    peer.reaches_ours().await;
    ours.stop();
}
