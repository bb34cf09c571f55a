//! Services of type LoadBalancer, asked from outside of the cluster: a pool whose addresses move when a machine
//! is lost, and the nodes' own addresses without taking what the machines use themselves. And the API server's
//! own address, which moves in the same way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kedge_tests::{Cluster, Families, Network, assert_has, eventually, step, web};

/// Three control-plane nodes on the first hosts.
pub(crate) fn three(network: &Network, settings: &[(&'static str, String)]) -> Vec<Cluster> {
    let name = |host: usize| format!("kedge-test-{}-{host}", std::process::id());
    let prepared = |host: usize| {
        let mut all = vec![("--node-ip", network.address(host))];
        all.extend(if host == 1 { settings.to_vec() } else { Vec::new() });
        Cluster::prepare_with(network, host, &name(host), all)
    };
    let mut nodes: Vec<Cluster> = (1..=3).map(prepared).collect();
    nodes[0].run();
    nodes[0].wait_ready();
    for node in &nodes[1..] {
        let string = kedge_tests::trio::invitation(&nodes[0], &[]);
        node.kedge(&["join", &string, "--timeout", "120"]).ok();
        node.write_kubeconfig();
    }
    eventually("three voters", || {
        (kedge_tests::trio::datastore(&nodes[0])?["highAvailability"] == true).then_some(())
    });
    nodes
}

/// One question with little patience: what a client that tries again and again does.
pub(crate) fn asks(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().expect("an address with a port");
    let patience = Duration::from_millis(700);
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.").then_some(answer)
}

/// The nodes that have an address on a network interface.
pub(crate) fn holders(nodes: &[Cluster], address: &str) -> Vec<usize> {
    let has = |node: &Cluster| node.shell("ip -o addr").contains(&format!(" {address}/"));
    (0..nodes.len()).filter(|number| has(&nodes[*number])).collect()
}

/// The one node that has an address; while it moves none may have it, or two.
fn one_holder(nodes: &[Cluster], address: &str) -> usize {
    eventually("one holder", || match holders(nodes, address)[..] {
        [one] => Some(one),
        _ => None,
    })
}

/// An answer where there is one all the time, if not within the little patience of the first question.
fn answers(address: &str) -> bool {
    (0..3).any(|_| asks(address).is_some())
}

fn external(node: &Cluster, service: &str) -> String {
    node.field(&format!("service/{service}"), ".status.loadBalancer.ingress[*].ip")
}

#[test]
fn a_pool_address_moves_when_its_machine_is_lost() {
    let network = Network::new(3);
    let mut nodes = three(&network, &[]);
    nodes[0].apply(&web(3, "type: LoadBalancer"));
    nodes[0].rolled_out("deployment/web");
    let prefix = network.address(1).rsplit_once('.').expect("IPv4").0.to_owned();
    assert_eq!(external(&nodes[0], "web"), "", "nothing is on unasked");

    step("wrong addresses are refused");
    let wrong = format!("load-balancer:addresses={prefix}.220-{prefix}.200");
    assert_has(&nodes[0].kedge(&["enable", &wrong]).failed(2), &["its end comes before its beginning"]);

    step("an address of the pool answers from outside");
    nodes[0].kedge(&["enable", &format!("load-balancer:{prefix}.200-{prefix}.201")]).ok();
    let address = eventually("an address", || Some(external(&nodes[0], "web")).filter(|ip| !ip.is_empty()));
    assert_eq!(address, format!("{prefix}.200"));
    let target = format!("{address}:80");
    let began = Instant::now();
    let answer = eventually("an answer", || asks(&target));
    eprintln!("FIGURE first answer {:?} after the address was known", began.elapsed());
    assert_has(&answer, &["hello 1.0"]);
    let holder = one_holder(&nodes, &address);
    assert_has(&nodes[0].event("Service/web", "EnsuredLoadBalancer"), &["Ensured load balancer"]);
    assert_has(&nodes[0].event("Service/web", "NodeAssigned"), &[&nodes[holder].node]);

    step("the pool has an end, and what is asked for is given");
    let service = |name: &str, rest: &str| {
        nodes[0].apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, selector: {{app: web}}, \
             ports: [{{port: 80, targetPort: 8080}}]{rest}}}\n"
        ));
    };
    service("second", &format!(", loadBalancerIP: {prefix}.201"));
    eventually("the address asked for", || {
        (external(&nodes[0], "second") == format!("{prefix}.201")).then_some(())
    });
    service("third", "");
    assert_has(
        &nodes[0].event("Service/third", "SyncLoadBalancerFailed"),
        &["no IPv4 address of the pool is free"],
    );
    service("foreign", ", loadBalancerClass: example.com/other");

    step("Kedge of the holder is killed: another node takes over");
    let asked = (holder + 1) % 3;
    let began = Instant::now();
    nodes[holder].kill9();
    eventually("another holder", || {
        let others: Vec<usize> =
            holders(&nodes, &address).into_iter().filter(|number| *number != holder).collect();
        (others.len() == 1).then_some(())
    });
    eprintln!("FIGURE Kedge of the holder killed: another node had the address after {:?}", began.elapsed());
    one_holder(&nodes, &address);
    eprintln!("FIGURE the killed one's kernel had given it up after {:?}", began.elapsed());
    eventually("an answer", || asks(&target));
    nodes[holder].run();
    nodes[holder].wait_ready();

    step("the machine of the holder is lost: another one answers");
    let holder = one_holder(&nodes, &address);
    eventually("three voters", || {
        (kedge_tests::trio::datastore(&nodes[asked])?["highAvailability"] == true).then_some(())
    });
    let began = Instant::now();
    network.connect(holder + 1, false);
    eventually("no answer", || asks(&target).is_none().then_some(()));
    loop {
        if asks(&target).is_some() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "nobody took the address over");
    }
    eprintln!("FIGURE machine of the holder lost: the address answered again after {:?}", began.elapsed());
    network.connect(holder + 1, true);
    eventually("the old holder lets go", || (holders(&nodes, &address) != [holder]).then_some(()));
    one_holder(&nodes, &address);
    eventually("an answer", || asks(&target));

    step("disabled: nothing is left");
    let node = &nodes[(holder + 1) % 3];
    node.kedge(&["disable", "load-balancer"]).ok();
    for service in ["web", "second", "third", "foreign"] {
        let object = node.get(&["service", service]);
        assert_eq!(object["status"]["loadBalancer"]["ingress"], serde_json::Value::Null, "{object}");
        assert_eq!(object["metadata"]["finalizers"], serde_json::Value::Null, "{object}");
    }
    let annotations = node.field("nodes", ".items[*].metadata.annotations");
    assert!(!annotations.contains("load-balancer"), "{annotations}");
    eventually("no node has an address of the pool", || {
        let none = |last: &str| holders(&nodes, &format!("{prefix}.{last}")).is_empty();
        (none("200") && none("201")).then_some(())
    });
    assert!(asks(&target).is_none());
}

#[test]
fn without_a_pool_nodes_answer_where_the_port_is_free() {
    let network = Network::new(3);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    let others: Vec<Cluster> = (2..=3).map(|host| Cluster::prepare_on(&network, host)).collect();
    for node in &others {
        let string = kedge_tests::trio::invitation(&first, &[]);
        node.kedge(&["join", &string, "--worker", "--timeout", "120"]).ok();
    }
    first.apply(&web(3, "type: LoadBalancer"));
    first.rolled_out("deployment/web");

    step("a program of the second machine listens on a port");
    first.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: own}}\nspec:\n  hostNetwork: true\n  nodeName: {}\n  \
         containers: [{{name: hello, image: 'kedge.dev/hello:1.0'}}]\n",
        others[0].node
    ));
    first.wait("pod/own", "condition=Ready");
    first.http(&format!("{}:8080", network.address(2)), "/");

    first.kedge(&["enable", "load-balancer"]).ok();
    let all: Vec<String> = (1..=3).map(|host| network.address(host)).collect();
    eventually("all nodes' addresses", || (external(&first, "web") == all.join(" ")).then_some(()));
    for address in &all {
        assert_has(&eventually("an answer", || asks(&format!("{address}:80"))), &["hello 1.0"]);
    }

    step("it keeps its port, and the other nodes answer");
    let service = |name: &str, port: u16| {
        first.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, selector: {{app: web}}, \
             ports: [{{port: {port}, targetPort: 8080}}]}}\n"
        ));
    };
    service("high", 8080);
    let free = [all[0].clone(), all[2].clone()].join(" ");
    eventually("the two others", || (external(&first, "high") == free).then_some(()));
    let skipped = first.event("Service/high", "LoadBalancerNodesSkipped");
    assert_has(&skipped, &[&others[0].node, "TCP/8080"]);

    step("no Service takes the API server's port, nor another's");
    service("api", 6443);
    let refused = first.event("Service/api", "SyncLoadBalancerFailed");
    assert_has(&refused, &["its ports are in use on every node", "TCP/6443"]);
    service("again", 80);
    let refused = first.event("Service/again", "SyncLoadBalancerFailed");
    assert_has(&refused, &["port TCP/80 of the nodes' addresses belongs to the Service default/web"]);
    assert_eq!(external(&first, "api") + &external(&first, "again"), "");

    step("the port becomes free: the node answers too");
    first.kubectl(&["delete", "pod", "own", "--now"]).ok();
    eventually("all nodes' addresses", || (external(&first, "high") == all.join(" ")).then_some(()));

    step("what one Service gives up, the next one gets");
    first.kubectl(&["delete", "service", "web"]).ok();
    eventually("the next", || (external(&first, "again") == all.join(" ")).then_some(()));

    step("disabled: the ports are closed again");
    first.kedge(&["disable", "load-balancer"]).ok();
    for name in ["high", "again"] {
        assert_eq!(external(&first, name), "");
    }
    for address in &all {
        eventually("a closed port", || asks(&format!("{address}:80")).is_none().then_some(()));
    }
    let annotations = first.field("nodes", ".items[*].metadata.annotations");
    assert!(!annotations.contains("load-balancer"), "{annotations}");
    for node in others {
        node.kedge(&["leave", "--force", "--without", "dns"]).ok();
    }
}

#[test]
fn a_pool_of_both_families_answers_by_both() {
    let network = Network::of(1, Families::Both);
    let settings = vec![
        ("--pod-cidr", "10.244.0.0/16,fd00:10:244::/56".to_owned()),
        ("--service-cidr", "10.96.0.0/16,fd00:10:96::/112".to_owned()),
    ];
    let name = format!("kedge-test-{}-1", std::process::id());
    let mut node = Cluster::prepare_with(&network, 1, &name, settings);
    node.run();
    node.wait_ready();
    node.apply(&web(1, "type: LoadBalancer, ipFamilyPolicy: RequireDualStack"));
    node.rolled_out("deployment/web");
    let own = network.address(1);
    let v4 = format!("{}.200", own.rsplit_once('.').expect("IPv4").0);
    let v6 = network.address_v6(200);
    node.kedge(&["enable", &format!("load-balancer:addresses={v4},{v6}/127")]).ok();
    eventually("both addresses", || (external(&node, "web") == format!("{v4} {v6}")).then_some(()));
    for address in [format!("{v4}:80"), format!("[{v6}]:80")] {
        assert_has(&eventually("an answer", || asks(&address)), &["hello 1.0"]);
    }

    step("Kedge is killed and starts again: the addresses answer all the time");
    node.kill9();
    assert!(answers(&format!("{v4}:80")) && answers(&format!("[{v6}]:80")));
    node.run();
    node.wait_ready();
    assert!(answers(&format!("{v4}:80")) && answers(&format!("[{v6}]:80")));

    step("only the clients that may");
    let ranges = r#"{"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"]}}"#;
    node.kubectl(&["patch", "service", "web", "--type=merge", "-p", ranges]).ok();
    for address in [format!("{v4}:80"), format!("[{v6}]:80")] {
        eventually("no answer", || asks(&address).is_none().then_some(()));
    }

    step("another type: no addresses");
    node.kubectl(&[
        "patch",
        "service",
        "web",
        "--type=merge",
        "-p",
        r#"{"spec": {"type": "ClusterIP", "loadBalancerSourceRanges": null}}"#,
    ])
    .ok();
    eventually("no addresses", || {
        let left = node.shell("ip -o addr");
        (external(&node, "web").is_empty()
            && !left.contains(&format!(" {v4}/"))
            && !left.contains(&format!(" {v6}/")))
        .then_some(())
    });
}

#[test]
fn the_api_has_one_address_that_moves_with_the_leader() {
    let network = Network::new(4);
    let prefix = network.address(1).rsplit_once('.').expect("IPv4").0.to_owned();
    let address = format!("{prefix}.250");
    let mut nodes = three(&network, &[("--virtual-address", address.clone())]);

    step("kubeconfigs and join strings name it, the leader has it");
    let kubeconfig = nodes[2].kedge(&["config"]).ok();
    assert_has(&kubeconfig, &[&format!("https://{address}:6443")]);
    let file = nodes[2].dir().join("virtual.kubeconfig");
    std::fs::write(&file, kubeconfig).expect("write the kubeconfig");
    let invitation = nodes[1].kedge(&["add-node", "--format", "json"]).json();
    let strings =
        invitation["join"].as_array().expect("join strings").iter().filter_map(|string| string.as_str());
    let string = strings.into_iter().find(|string| string.starts_with(&format!("{address}:25000/")));
    let worker = Cluster::prepare_on(&network, 4);
    let join = ["join", string.expect("a join string with it"), "--worker", "--timeout", "120"];
    worker.kedge(&join).ok();
    let has_it = |nodes: &[Cluster]| holders(nodes, &address);
    let of_leader = eventually("the leader to have it", || {
        let (name, held) = (kedge_tests::trio::leader_of(&nodes[0])?, has_it(&nodes));
        (held.len() == 1 && nodes[held[0]].node == name).then(|| held[0])
    });
    let mut attempts = 0;
    let home = nodes[2].dir().to_owned();
    let program = nodes[2].kubectl_command().get_program().to_owned();
    // Every attempt makes another object: one that got no answer may have been done.
    let mut written = |what: &str, began: Instant| {
        eventually("a write through the address", || {
            attempts += 1;
            let mut command = std::process::Command::new(&program);
            command.env("KUBECONFIG", &file).env("HOME", &home).arg("--request-timeout=2s");
            command.args(["create", "configmap", &format!("c{attempts}"), "--from-literal=k=v"]);
            command.output().is_ok_and(|out| out.status.success()).then_some(())
        });
        eprintln!("FIGURE {what}: a write through the virtual address after {:?}", began.elapsed());
    };
    written("all is well", Instant::now());

    step("Kedge of the leader is killed");
    let began = Instant::now();
    nodes[of_leader].kill9();
    written("leader killed", began);
    eventually("the dead one's kernel to give it up", || {
        let held = has_it(&nodes);
        (held.len() == 1 && held[0] != of_leader).then_some(())
    });
    nodes[of_leader].run();
    nodes[of_leader].wait_ready();
    let all_are_there = |nodes: &[Cluster]| {
        eventually("three voters", || {
            (kedge_tests::trio::datastore(&nodes[of_leader])?["highAvailability"] == true).then_some(())
        });
    };
    all_are_there(&nodes);

    step("the leader is stopped: it gives the address up by itself");
    let holder = one_holder(&nodes, &address);
    let began = Instant::now();
    nodes[holder].kedge(&["stop"]).ok();
    nodes[holder].ended();
    assert!(!has_it(&nodes).contains(&holder));
    written("leader stopped", began);
    nodes[holder].run();
    nodes[holder].wait_ready();
    all_are_there(&nodes);

    step("the machine of the leader is lost");
    let holder = one_holder(&nodes, &address);
    let began = Instant::now();
    network.connect(holder + 1, false);
    written("machine of the leader lost", began);
    network.connect(holder + 1, true);
    one_holder(&nodes, &address);
    all_are_there(&nodes);

    step("no Service gets it");
    nodes[0].kedge(&["enable", &format!("load-balancer:{address}")]).ok();
    nodes[0].kubectl(&["create", "service", "loadbalancer", "greedy", "--tcp=80"]).ok();
    let refused = nodes[0].event("Service/greedy", "SyncLoadBalancerFailed");
    assert_has(&refused, &["no IPv4 address of the pool is free"]);
    written("after all", Instant::now());
    worker.kedge(&["leave", "--force", "--without", "dns"]).ok();
}
