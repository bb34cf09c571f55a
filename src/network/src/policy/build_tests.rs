//! What the table does to packets, worked out by reading its rules as the kernel does.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::build::{Cluster, build};
use super::content::Content;
use crate::nft::{Compare, Expr, Verdict};

/// The first packet of a connection.
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    port: u16,
}

/// `10.244.0.5>10.244.0.6:80/tcp`
fn packet(text: &str) -> Packet {
    let (from, rest) = text.split_once('>').unwrap();
    let (rest, protocol) = rest.rsplit_once('/').unwrap();
    let (to, port) = rest.rsplit_once(':').unwrap();
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp6" => 58,
        other => panic!("{other}"),
    };
    Packet { from: from.parse().unwrap(), to: to.parse().unwrap(), protocol, port: port.parse().unwrap() }
}

impl Packet {
    fn load(&self, base: u32, offset: u32, length: u32) -> Vec<u8> {
        let transport = || {
            // ICMPv6: the type is the first byte.
            if self.protocol == 58 {
                vec![u8::try_from(self.port).unwrap()]
            } else {
                self.port.to_be_bytes().to_vec()
            }
        };
        match (base, offset, length) {
            (1, 12, 4) | (1, 8, 16) => Expr::address_bytes(self.from),
            (1, 16, 4) | (1, 24, 16) => Expr::address_bytes(self.to),
            (2, 0, 1) | (2, 2, 2) => transport(),
            other => panic!("{other:?}"),
        }
    }
}

/// Registers 1 to 4 hold 16 bytes each, 8 to 23 four bytes each of the same memory.
fn place(register: u32) -> usize {
    let at = if register >= 8 { (register - 8) * 4 } else { (register - 1) * 16 };
    usize::try_from(at).unwrap()
}

/// What a chain says; `None` when its end is reached.
fn run(content: &Content, chain: &str, packet: &Packet) -> Option<bool> {
    'rules: for rule in &content.chains[chain].rules {
        let mut memory = [0; 64];
        let put = |memory: &mut [u8; 64], register: u32, bytes: &[u8]| {
            let at = place(register);
            // A register is filled up to four bytes.
            memory[at..at + bytes.len().next_multiple_of(4)].fill(0);
            memory[at..at + bytes.len()].copy_from_slice(bytes);
        };
        for expr in rule {
            match expr {
                Expr::Meta { key: 15, register } => {
                    put(&mut memory, *register, &[if packet.from.is_ipv4() { 2 } else { 10 }]);
                }
                Expr::Meta { key: 16, register } => put(&mut memory, *register, &[packet.protocol]),
                Expr::Payload { base, offset, length, register } => {
                    put(&mut memory, *register, &packet.load(*base, *offset, *length));
                }
                Expr::CtState { register } => put(&mut memory, *register, &8u32.to_ne_bytes()),
                Expr::Bitwise { register, mask, xor } => {
                    let at = place(*register);
                    for (n, (mask, xor)) in mask.iter().zip(xor).enumerate() {
                        memory[at + n] = memory[at + n] & mask ^ xor;
                    }
                }
                Expr::Cmp { register, compare, data } => {
                    let at = place(*register);
                    let found = &memory[at..at + data.len()];
                    let matches = match compare {
                        Compare::Equal => found == data,
                        Compare::NotEqual => found != data,
                        Compare::AtMost => found <= data.as_slice(),
                        Compare::AtLeast => found >= data.as_slice(),
                    };
                    if !matches {
                        continue 'rules;
                    }
                }
                Expr::InSet { register, set } => {
                    if element(content, set, &memory[place(*register)..]).is_none() {
                        continue 'rules;
                    }
                }
                Expr::VerdictMap { register, map } => {
                    match element(content, map, &memory[place(*register)..]) {
                        Some(Some(Verdict::Goto(chain))) => return run(content, chain, packet),
                        Some(other) => panic!("{other:?}"),
                        None => continue 'rules,
                    }
                }
                Expr::Counter => {}
                Expr::Verdict(Verdict::Accept) => return Some(true),
                Expr::Verdict(Verdict::Drop) => return Some(false),
                Expr::Verdict(Verdict::Jump(chain)) => {
                    if let Some(verdict) = run(content, chain, packet) {
                        return Some(verdict);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
    None
}

fn element<'a>(content: &'a Content, set: &str, memory: &[u8]) -> Option<&'a Option<Verdict>> {
    let set = &content.sets[set];
    let length = set.elements.keys().next()?.len();
    set.elements.get(&memory[..length])
}

fn passes(content: &Content, text: &str) -> bool {
    let packet = packet(text);
    ["egress", "ingress"].iter().all(|chain| run(content, chain, &packet).unwrap_or(true))
}

fn pod(namespace: &str, name: &str, labels: Value, ips: &[&str], node: &str) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "ports": [
            { "name": "web", "containerPort": if name == "other" { 9090 } else { 8080 } },
            { "name": "dns", "containerPort": 53, "protocol": "UDP" },
        ] }] },
        "status": { "phase": "Running", "podIPs": ips },
    })
}

fn of<T: serde::de::DeserializeOwned>(values: Vec<Value>) -> Vec<Arc<T>> {
    values.into_iter().map(|value| Arc::new(serde_json::from_value(value).unwrap())).collect()
}

/// Two nodes, two namespaces: `web` (.5) and `db` (.6) of `a` run here, `other` (.1.7) of `b` elsewhere.
fn cluster(policies: Vec<Value>) -> Cluster {
    let policies = policies
        .into_iter()
        .enumerate()
        .map(|(n, spec)| json!({ "metadata": { "namespace": "a", "name": format!("p{n}") }, "spec": spec }));
    let mut host = pod("a", "host", json!({ "app": "db" }), &["192.0.2.1"], "here");
    host["spec"]["hostNetwork"] = json!(true);
    let mut ended = pod("a", "ended", json!({ "app": "web" }), &["10.244.0.9"], "here");
    ended["status"]["phase"] = json!("Succeeded");
    let pods: Vec<Arc<Pod>> = of(vec![
        pod("a", "web", json!({ "app": "web" }), &["10.244.0.5", "fd00::5"], "here"),
        pod("a", "db", json!({ "app": "db" }), &["10.244.0.6", "fd00::6"], "here"),
        pod("b", "other", json!({ "app": "web" }), &["10.244.1.7", "fd00:1::7"], "there"),
        host,
        ended,
    ]);
    let namespaces: Vec<Arc<Namespace>> = of(vec![
        json!({ "metadata": { "name": "a", "labels": { "team": "red" } } }),
        json!({ "metadata": { "name": "b", "labels": { "team": "blue" } } }),
    ]);
    let policies: Vec<Arc<NetworkPolicy>> = of(policies.collect());
    Cluster { node: "here".into(), policies, pods, namespaces }
}

#[test]
fn packets_pass_as_the_policies_say() {
    let db = || json!({ "matchLabels": { "app": "db" } });
    let ingress = |from: Value, ports: Value| json!({ "podSelector": db(), "policyTypes": ["Ingress"], "ingress": [{ "from": from, "ports": ports }] });
    let egress = |to: Value, ports: Value| json!({ "podSelector": db(), "policyTypes": ["Egress"], "egress": [{ "to": to, "ports": ports }] });
    let web = || json!([{ "podSelector": { "matchLabels": { "app": "web" } } }]);
    let none = || json!([]);
    let (inside, outside) = ("10.244.0.5>10.244.0.6:8080/tcp", "10.244.1.7>10.244.0.6:8080/tcp");
    let away = "10.244.0.6>10.244.1.7:9090/tcp";
    // Policies, what passes, what does not.
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<Value>, Vec<&str>, Vec<&str>)> = vec![
        ("no rule: isolated in the direction that is named",
            vec![json!({ "podSelector": {}, "policyTypes": ["Ingress"] })],
            vec!["10.244.0.6>10.244.1.7:1/tcp", "10.244.0.6>8.8.8.8:53/udp"],
            vec![inside, outside, "8.8.8.8>10.244.0.5:1/udp", "fd00::5>fd00::6:1/tcp"]),
        ("without policyTypes: incoming, and outgoing when there are such rules",
            vec![json!({ "podSelector": db(), "egress": [{ "to": [{ "ipBlock": { "cidr": "10.244.0.0/16" } }] }] })],
            vec![away],
            vec![inside, "10.244.0.6>8.8.8.8:53/udp"]),
        ("what is not selected stays open", vec![ingress(web(), none())],
            vec!["10.244.1.7>10.244.0.5:1/tcp", "10.244.0.5>8.8.8.8:1/tcp"], vec![]),
        ("pods of the policy's own namespace", vec![ingress(web(), none())],
            vec![inside, "fd00::5>fd00::6:1/udp"], vec![outside, "fd00:1::7>fd00::6:1/udp", "10.244.0.9>10.244.0.6:1/tcp"]),
        ("a pod that reaches itself", vec![json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })],
            vec!["10.244.0.6>10.244.0.6:1/tcp", "fd00::6>fd00::6:1/tcp"], vec![inside]),
        ("neighbour discovery", vec![json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })],
            vec!["fd00::5>fd00::6:135/icmp6", "fd00::5>fd00::6:137/icmp6"], vec!["fd00::5>fd00::6:128/icmp6", "fd00::5>fd00::6:138/icmp6"]),
        ("all pods of some namespaces", vec![ingress(json!([{ "namespaceSelector": { "matchLabels": { "team": "blue" } } }]), none())],
            vec![outside], vec![inside, "10.244.9.9>10.244.0.6:1/tcp"]),
        ("both selectors of one peer", vec![ingress(json!([{
                "namespaceSelector": { "matchExpressions": [{ "key": "team", "operator": "Exists" }] },
                "podSelector": { "matchLabels": { "app": "web" } } }]), none())],
            vec![inside, outside], vec!["192.0.2.1>10.244.0.6:1/tcp"]),
        ("several peers: any of them", vec![ingress(json!([
                { "namespaceSelector": { "matchLabels": { "team": "blue" } } }, { "ipBlock": { "cidr": "8.8.8.0/24" } }]), none())],
            vec![outside, "8.8.8.8>10.244.0.6:1/tcp"], vec![inside]),
        ("a block with exceptions", vec![ingress(json!([{ "ipBlock": { "cidr": "10.244.0.0/16", "except": ["10.244.1.0/24"] } }]), none())],
            vec![inside, "10.244.2.1>10.244.0.6:1/tcp"], vec![outside, "10.245.0.1>10.244.0.6:1/tcp", "fd00::5>fd00::6:1/tcp"]),
        ("everything of one family", vec![ingress(json!([{ "ipBlock": { "cidr": "::/0" } }]), none())],
            vec!["fd00::5>fd00::6:1/tcp"], vec![inside]),
        ("a port", vec![ingress(none(), json!([{ "port": 8080 }]))],
            vec![inside, outside], vec!["10.244.0.5>10.244.0.6:8081/tcp", "10.244.0.5>10.244.0.6:8080/udp"]),
        ("a range", vec![ingress(none(), json!([{ "port": 1000, "endPort": 2000, "protocol": "UDP" }]))],
            vec!["10.244.0.5>10.244.0.6:1000/udp", "10.244.0.5>10.244.0.6:1300/udp", "10.244.0.5>10.244.0.6:2000/udp"],
            vec!["10.244.0.5>10.244.0.6:999/udp", "10.244.0.5>10.244.0.6:2001/udp", "10.244.0.5>10.244.0.6:1300/tcp"]),
        ("a protocol", vec![ingress(none(), json!([{ "protocol": "SCTP" }]))],
            vec!["10.244.0.5>10.244.0.6:1/sctp"], vec![inside]),
        ("peers and ports together", vec![ingress(web(), json!([{ "port": 8080 }]))],
            vec![inside], vec!["10.244.0.5>10.244.0.6:1/tcp", outside]),
        ("a name of the receiver's own", vec![ingress(none(), json!([{ "port": "web" }]))],
            vec![inside, "fd00::5>fd00::6:8080/tcp"], vec!["10.244.0.5>10.244.0.6:9090/tcp", "10.244.0.5>10.244.0.6:8080/udp"]),
        ("a name at the peer", vec![egress(none(), json!([{ "port": "web" }]))],
            vec![away, "10.244.0.6>10.244.0.5:8080/tcp"], vec!["10.244.0.6>10.244.1.7:8080/tcp", "10.244.0.6>8.8.8.8:8080/tcp"]),
        ("a name with another protocol, and peers", vec![egress(web(), json!([{ "port": "dns", "protocol": "UDP" }]))],
            vec!["10.244.0.6>10.244.0.5:53/udp"], vec!["10.244.0.6>10.244.0.5:53/tcp", "10.244.0.6>10.244.1.7:53/udp"]),
        ("a name that nobody has", vec![ingress(none(), json!([{ "port": "nothing" }]))], vec![], vec![inside]),
        ("two policies: what either lets pass",
            vec![ingress(web(), none()), ingress(none(), json!([{ "port": 443 }]))],
            vec![inside, "10.244.1.7>10.244.0.6:443/tcp"], vec![outside]),
        ("two rules of one policy", vec![json!({ "podSelector": db(), "ingress": [
                { "from": [{ "podSelector": {} }] }, { "ports": [{ "port": 443 }] }] })],
            vec![inside, "8.8.8.8>10.244.0.6:443/tcp"], vec![outside]),
        ("an empty rule is everybody", vec![json!({ "podSelector": db(), "ingress": [{}] })], vec![inside, outside], vec![]),
        ("sender and receiver both must let it", vec![ingress(web(), none()),
                json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Egress"] })],
            vec![], vec![inside]),
    ];
    for (title, policies, open, closed) in cases {
        let content = build(&cluster(policies));
        for text in open {
            assert!(passes(&content, text), "{title}: {text} was stopped");
        }
        for text in closed {
            assert!(!passes(&content, text), "{title}: {text} has passed");
        }
    }
}

#[test]
fn pods_of_other_nodes_are_their_nodes_business() {
    let mut cluster = cluster(vec![json!({ "podSelector": {}, "policyTypes": ["Ingress"] })]);
    cluster.node = "there".into();
    assert!(passes(&build(&cluster), "10.244.1.7>10.244.0.6:1/tcp"));
}

#[test]
fn only_what_is_different_is_written() {
    let policy = json!({ "podSelector": { "matchLabels": { "app": "db" } }, "ingress": [{ "from": [{ "podSelector": {} }] }] });
    let before = build(&cluster(vec![policy.clone()]));
    let same = build(&cluster(vec![policy.clone()]));
    assert!(same.change(&before, "t").is_empty() && same.garbage(&before, "t").is_empty());

    // One more peer is one more element, and nothing else.
    let mut more = cluster(vec![policy]);
    more.pods.extend(of::<Pod>(vec![pod("a", "new", json!({}), &["10.244.0.7"], "there")]));
    let more = build(&more);
    let change = more.change(&before, "t");
    assert!(!change.is_empty() && more.garbage(&before, "t").is_empty());
    assert_eq!(change.last_sequence(), 1, "one message");
    let less = build(&cluster(Vec::new()));
    assert!(!less.garbage(&before, "t").is_empty());
}
