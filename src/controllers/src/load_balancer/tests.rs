//! The whole controller against an API server for tests.

use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_client::load_balancer::{ADDRESSES, PORTS, PORTS_ANSWER};
use serde_json::{Value, json};

use super::{FINALIZER, MARK, ingress, mark};
use crate::fake::{World, run};

fn node(world: &World, name: &str, address: &str) -> Node {
    world.create(json!({
        "metadata": { "name": name },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
            "nodeInfo": {
                "kubeletVersion": kedge_base::git_version(), "architecture": "", "bootID": "",
                "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "", "machineID": "",
                "operatingSystem": "", "osImage": "", "systemUUID": "",
            },
        },
    }))
}

fn service(world: &World, name: &str, port: u16, rest: Value) -> Service {
    let mut spec = json!({ "type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{ "port": port }] });
    for (key, value) in rest.as_object().cloned().unwrap_or_default() {
        spec[key] = value;
    }
    world.create(json!({ "metadata": { "namespace": "ns", "name": name }, "spec": spec }))
}

fn enable(world: &World, addresses: &str) -> ConfigMap {
    world.create(json!({
        "metadata": { "namespace": "kube-system", "name": "kedge-load-balancer" },
        "data": { "addresses": addresses },
    }))
}

fn addresses(world: &World, name: &str) -> Vec<String> {
    let service: Option<Service> = world.get("ns", name);
    service.iter().flat_map(ingress).map(|address| address.to_string()).collect()
}

fn annotation(world: &World, node: &str, name: &str) -> Option<String> {
    world.get::<Node>("", node)?.metadata.annotations?.remove(name)
}

/// Who was told to hold something, and what.
fn holders(world: &World) -> Vec<(String, String)> {
    let held = |node: Node| Some((node.metadata.name?, node.metadata.annotations?.remove(ADDRESSES)?));
    world.list::<Node>().into_iter().filter_map(held).collect()
}

fn said(world: &World, words: &str) -> bool {
    world
        .list::<Event>()
        .iter()
        .any(|event| event.message.as_deref().is_some_and(|text| text.contains(words)))
}

fn set_ready(world: &World, node: &str, ready: &str) {
    let node: Node = world.get("", node).unwrap();
    world.edit(&node, |node| node["status"]["conditions"][0]["status"] = json!(ready));
}

#[test]
fn a_pool_gives_addresses_and_disabling_takes_them_back() {
    run(async {
        let world = World::new();
        super::start(&world.ctx);
        for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2")] {
            node(&world, name, address);
        }
        service(&world, "early", 80, json!({}));
        service(&world, "foreign", 80, json!({ "loadBalancerClass": "example.com/other" }));
        world.settle().await;
        assert!(addresses(&world, "early").is_empty(), "nothing is on unasked");
        assert!(world.log().iter().all(|line| line.contains("/events")), "{:?}", world.log());

        let settings = enable(&world, "192.0.2.2-192.0.2.5,2001:db8::10/127");
        world.until("an address", |world| addresses(world, "early") == ["192.0.2.3"]).await;
        world.until("a holder", |world| holders(world).len() == 1).await;
        let early: Service = world.get("ns", "early").unwrap();
        assert_eq!(early.metadata.finalizers.as_deref(), Some(&[FINALIZER.to_owned()][..]));
        assert_eq!(mark(&early), Some("pool"));
        let both = json!({ "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack" });
        service(&world, "both", 443, both);
        service(&world, "named", 80, json!({ "loadBalancerIP": "192.0.2.5" }));
        service(&world, "greedy", 80, json!({ "loadBalancerIP": "192.0.2.3" }));
        world.until("both", |world| addresses(world, "both") == ["2001:db8::10", "192.0.2.4"]).await;
        world.until("the named", |world| addresses(world, "named") == ["192.0.2.5"]).await;
        service(&world, "late", 80, json!({}));
        world.until("no more", |world| said(world, "no IPv4 address of the pool is free")).await;
        world
            .until("refused", |world| {
                said(world, "192.0.2.3 was asked for and belongs to the Service ns/early")
            })
            .await;
        assert!(addresses(&world, "late").is_empty() && addresses(&world, "greedy").is_empty());

        // What one gives up, another gets.
        let named: Service = world.get("ns", "named").unwrap();
        world.edit(&named, |service| service["spec"]["type"] = json!("ClusterIP"));
        world.until("the late one", |world| addresses(world, "late") == ["192.0.2.5"]).await;
        let named: Service = world.get("ns", "named").unwrap();
        assert!(
            ingress(&named).is_empty()
                && mark(&named).is_none()
                && named.metadata.finalizers.unwrap_or_default().is_empty()
        );
        let both: Service = world.get("ns", "both").unwrap();
        world.delete(&both);
        world.until("the deletion", |world| world.get::<Service>("ns", "both").is_none()).await;
        assert!(addresses(&world, "foreign").is_empty());

        world.delete(&settings);
        world
            .until("the end", |world| world.get::<ConfigMap>("kube-system", "kedge-load-balancer").is_none())
            .await;
        assert!(holders(&world).is_empty());
        for service in world.list::<Service>() {
            assert!(ingress(&service).is_empty() && mark(&service).is_none(), "{service:?}");
            assert!(service.metadata.finalizers.iter().flatten().next().is_none(), "{service:?}");
        }
        let events = world.events();
        for reason in
            ["EnsuringLoadBalancer", "EnsuredLoadBalancer", "SyncLoadBalancerFailed", "DeletedLoadBalancer"]
        {
            assert!(events.iter().any(|known| known == reason), "{reason}: {events:?}");
        }
    });
}

#[test]
fn addresses_survive_a_new_controller_and_move_with_the_nodes() {
    run(async {
        let world = World::new();
        for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3")] {
            node(&world, name, address);
        }
        enable(&world, "192.0.2.200-192.0.2.220");
        for number in 0..6 {
            service(&world, &format!("s{number}"), 80, json!({}));
        }
        let given = |world: &World| -> Vec<Vec<String>> {
            (0..6).map(|number| addresses(world, &format!("s{number}"))).collect()
        };
        super::start(&world.ctx);
        world.until("all", |world| given(world).iter().all(|addresses| addresses.len() == 1)).await;
        world
            .until("holders", |world| {
                holders(world).iter().map(|(_, held)| held.split(',').count()).sum::<usize>() == 6
            })
            .await;
        let first = given(&world);
        assert_eq!(first.iter().collect::<std::collections::BTreeSet<_>>().len(), 6, "{first:?}");

        let (loser, lost) = holders(&world)[0].clone();
        set_ready(&world, &loser, "Unknown");
        world
            .until("another holder", |world| {
                let now = holders(world);
                now.iter().all(|(name, _)| *name != loser)
                    && lost
                        .split(',')
                        .all(|address| now.iter().any(|(_, held)| held.split(',').any(|own| own == address)))
            })
            .await;
        assert_eq!(given(&world), first);
        // When nobody is ready, everything stays where it is.
        let now = holders(&world);
        for name in ["a", "b", "c"] {
            set_ready(&world, name, "Unknown");
        }
        world.settle().await;
        assert_eq!(holders(&world), now);

        let other = crate::Context::new(
            crate::Config::new(tokio::sync::watch::Sender::new(String::new()).subscribe(), Vec::new()),
            world.ctx.client.clone(),
            kedge_client::Informers::new(world.ctx.client.clone(), &world.ctx.tasks),
            world.ctx.tasks.clone(),
        );
        let before = world.log().len();
        super::start(&other);
        world.settle().await;
        assert_eq!(given(&world), first);
        let writes = world.log().split_off(before);
        assert!(writes.is_empty(), "{writes:?}");
    });
}

#[test]
fn with_the_local_policy_a_node_with_endpoints_holds_it() {
    run(async {
        let world = World::new();
        super::start(&world.ctx);
        for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3")] {
            node(&world, name, address);
        }
        enable(&world, "192.0.2.200");
        let endpoint = |node: &str| json!([{ "addresses": ["10.244.0.5"], "nodeName": node, "conditions": { "ready": true } }]);
        let slice: EndpointSlice = world.create(json!({
            "metadata": { "namespace": "ns", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "endpoints": endpoint("b"), "ports": [],
        }));
        service(&world, "web", 80, json!({ "externalTrafficPolicy": "Local" }));
        let held_by = |name: &str| vec![(name.to_owned(), "192.0.2.200".to_owned())];
        world.until("b", |world| holders(world) == held_by("b")).await;
        world.edit(&slice, |slice| slice["endpoints"] = endpoint("c"));
        world.until("c", |world| holders(world) == held_by("c")).await;
        // A node with a stock kubelet does not know what it is asked for.
        let stock = node(&world, "d", "192.0.2.4");
        world.edit(&stock, |node| node["status"]["nodeInfo"]["kubeletVersion"] = json!("v1.36.0"));
        world.edit(&slice, |slice| slice["endpoints"] = endpoint("d"));
        world.settle().await;
        assert_eq!(holders(&world), held_by("c"));
        world.edit(&slice, |slice| slice["endpoints"] = endpoint("c"));
        world.edit(&slice, |slice| slice["endpoints"][0]["conditions"]["ready"] = json!(false));
        world.settle().await;
        assert_eq!(holders(&world), held_by("c"));
    });
}

#[test]
fn without_a_pool_services_answer_at_nodes_with_free_ports() {
    run(async {
        let world = World::new();
        super::start(&world.ctx);
        for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3")] {
            node(&world, name, address);
        }
        let settings = enable(&world, "");
        service(&world, "web", 80, json!({}));
        world
            .until("the question", |world| {
                ["a", "b", "c"].iter().all(|node| annotation(world, node, PORTS).as_deref() == Some("TCP/80"))
            })
            .await;
        world.settle().await;
        assert!(addresses(&world, "web").is_empty(), "nobody has answered yet");
        let answer = |node: &str, text: &str| {
            let node: Node = world.get("", node).unwrap();
            world.edit(&node, |node| node["metadata"]["annotations"][PORTS_ANSWER] = json!(text));
        };
        answer("a", "TCP/80");
        world.until("a", |world| addresses(world, "web") == ["192.0.2.1"]).await;
        answer("b", "!TCP/80");
        answer("c", "TCP/80");
        world.until("a and c", |world| addresses(world, "web") == ["192.0.2.1", "192.0.2.3"]).await;
        world
            .until("the reason", |world| {
                said(world, "b: a program of the machine, or Kedge, has port TCP/80")
            })
            .await;

        service(&world, "again", 80, json!({}));
        world
            .until("refusal", |world| {
                said(world, "port TCP/80 of the nodes' addresses belongs to the Service ns/web")
            })
            .await;
        assert!(addresses(&world, "again").is_empty());
        world.create::<k8s_openapi::api::core::v1::Pod>(json!({
            "metadata": { "namespace": "ns", "name": "own" },
            "spec": { "nodeName": "c", "containers": [{ "name": "x", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] },
        }));
        world.until("a alone", |world| addresses(world, "web") == ["192.0.2.1"]).await;
        let web: Service = world.get("ns", "web").unwrap();
        assert!(web.metadata.annotations.as_ref().is_some_and(|all| all[MARK] == "nodes"));
        world.delete(&web);
        world.until("the next", |world| addresses(world, "again") == ["192.0.2.1"]).await;

        // Another mode: other addresses.
        world.edit(&settings, |map| map["data"]["addresses"] = json!("192.0.2.200/30"));
        world.until("the pool", |world| addresses(world, "again") == ["192.0.2.200"]).await;
        world
            .until("no more questions", |world| {
                ["a", "b", "c"].iter().all(|node| annotation(world, node, PORTS).is_none())
            })
            .await;
        let map: ConfigMap = world.get("kube-system", "kedge-load-balancer").unwrap();
        world.delete(&map);
        world
            .until("the end", |world| world.get::<ConfigMap>("kube-system", "kedge-load-balancer").is_none())
            .await;
        assert!(addresses(&world, "again").is_empty() && holders(&world).is_empty());
    });
}
