//! Nodes with addresses of both IP families, and with IPv6 alone.

use std::collections::BTreeSet;
use std::time::Instant;

use kedge_tests::{BUSYBOX, Cluster, Families, Network, assert_has, eventually, step, web};
use serde_json::{Value, json};

fn name(host: usize) -> String {
    format!("kedge-test-{}-{host}", std::process::id())
}

fn texts(list: &Value) -> Vec<String> {
    serde_json::from_value(list.clone()).unwrap_or_else(|error| panic!("{error}: {list}"))
}

/// A list of `{"ip": ...}`.
fn ips(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|one| one["ip"].as_str().expect("an address").to_owned()).collect()
}

/// For a URL.
fn host(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn internal_addresses(node: &Value) -> Vec<String> {
    let all = node["status"]["addresses"].as_array().expect("addresses");
    let internal = all.iter().filter(|one| one["type"] == "InternalIP");
    internal.map(|one| one["address"].as_str().expect("an address").to_owned()).collect()
}

fn workload(replicas: usize, policy: &str) -> String {
    let web = web(replicas, &format!("type: NodePort, ipFamilyPolicy: {policy}"));
    format!(
        r#"{web}---
apiVersion: v1
kind: Service
metadata: {{name: sticky}}
spec:
  ipFamilyPolicy: {policy}
  sessionAffinity: ClientIP
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
"#
    )
}

fn run_box(node: &Cluster, name: &str, host: &str) {
    let pod = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {host}
  terminationGracePeriodSeconds: 1
  containers:
  - name: box
    image: {BUSYBOX}
    command: [sleep, "3600"]
    env:
    - {{name: POD_IPS, valueFrom: {{fieldRef: {{fieldPath: status.podIPs}}}}}}
    - {{name: HOST_IPS, valueFrom: {{fieldRef: {{fieldPath: status.hostIPs}}}}}}
"#
    );
    node.apply(&pod);
    node.wait(&format!("pod/{name}"), "condition=Ready");
}

/// From inside a pod, until it answers.
fn asks(node: &Cluster, pod: &str, url: &str) -> String {
    eventually(&format!("{url} from pod {pod}"), || {
        let out = node.kubectl(&["exec", pod, "--", "wget", "-q", "-O", "-", url]);
        (out.code == 0 && out.stdout.contains("hello 1.0")).then_some(out.stdout)
    })
}

fn flannel(node: &Value, key: &str) -> String {
    let text = node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{key}")].as_str();
    text.unwrap_or_else(|| panic!("no {key}: {}", node["metadata"]["annotations"])).to_owned()
}

/// The Node says that its pod network is up, with flannel's reason.
fn network_is_up(node: &Cluster, name: &str) {
    eventually("the condition NetworkUnavailable", || {
        let object = node.get(&["node", name]);
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let found = conditions.into_iter().find(|one| one["type"] == "NetworkUnavailable")?;
        (found["status"] == "False" && found["reason"] == "FlannelIsUp").then_some(())
    });
}

fn net_conf(node: &Cluster) -> Value {
    let map = node.get(&["configmap", "-n", "kube-flannel", "kube-flannel-cfg"]);
    assert_has(map["data"]["cni-conf.json"].as_str().expect("cni-conf.json"), &["\"flannel\"", "cbr0"]);
    serde_json::from_str(map["data"]["net-conf.json"].as_str().expect("net-conf.json")).expect("JSON")
}

#[test]
fn a_node_of_both_families() {
    let network = Network::of(1, Families::Both);
    let (v4, v6) = (network.address(1), network.address_v6(1));
    let settings = vec![
        ("--pod-cidr", "10.244.0.0/16,fd00:10:244::/56".to_owned()),
        ("--service-cidr", "10.96.0.0/16,fd00:10:96::/112".to_owned()),
    ];
    let mut node = Cluster::prepare_with(&network, 1, &name(1), settings);
    node.run();
    node.wait_ready();
    node.import_busybox();

    step("the Node has both addresses and a range of each family");
    network_is_up(&node, &node.node);
    let object = node.get(&["node", &node.node]);
    assert_eq!(internal_addresses(&object), [v4.clone(), v6.clone()]);
    assert_eq!(texts(&object["spec"]["podCIDRs"]), ["10.244.0.0/24", "fd00:10:244::/64"]);
    assert_eq!(object["spec"]["podCIDR"], "10.244.0.0/24");
    assert_eq!((flannel(&object, "public-ip"), flannel(&object, "public-ipv6")), (v4.clone(), v6.clone()));
    assert_has(&flannel(&object, "backend-v6-data"), &["VtepMAC"]);
    let conf = net_conf(&node);
    assert_eq!(
        (&conf["Network"], &conf["IPv6Network"], &conf["EnableIPv6"], &conf["Backend"]["Type"]),
        (&json!("10.244.0.0/16"), &json!("fd00:10:244::/56"), &json!(true), &json!("vxlan"))
    );

    step("the API answers by both with a certificate for both");
    for address in [&v4, &v6] {
        let server = format!("https://{}:6443", host(address));
        node.kubectl(&["--server", &server, "get", "nodes"]).ok();
    }

    step("a pod has an address of each family, in the cluster's order");
    run_box(&node, "box", &node.node);
    node.apply(&workload(1, "RequireDualStack"));
    node.rolled_out("deployment/web");
    let pods = node.get(&["pods", "-l", "app=web"]);
    let status = &pods["items"][0]["status"];
    let pod_ips = ips(&status["podIPs"]);
    assert_eq!(pod_ips.len(), 2, "{status}");
    assert!(pod_ips[0].starts_with("10.244.0.") && pod_ips[1].starts_with("fd00:10:244:"), "{status}");
    assert_eq!(
        (&status["podIP"], ips(&status["hostIPs"])),
        (&json!(pod_ips[0]), vec![v4.clone(), v6.clone()])
    );
    let told = node.exec("box", "echo $POD_IPS $HOST_IPS; cat /etc/hosts");
    let of_box = ips(&node.get(&["pod", "box"])["status"]["podIPs"]);
    assert_has(&told, &[&of_box.join(","), &format!("{v4},{v6}"), &format!("{}\tbox", of_box[1])]);

    step("Services answer by both: cluster IPs, node ports, session affinity");
    for ip in &pod_ips {
        asks(&node, "box", &format!("http://{}:8080/", host(ip)));
    }
    for name in ["web", "sticky"] {
        let service = node.get(&["service", name]);
        assert_eq!(texts(&service["spec"]["ipFamilies"]), ["IPv4", "IPv6"]);
        let addresses = texts(&service["spec"]["clusterIPs"]);
        assert!(addresses[0].starts_with("10.96.") && addresses[1].starts_with("fd00:10:96::"), "{service}");
        for address in &addresses {
            let answer = asks(&node, "box", &format!("http://{}/", host(address)));
            // The client's own address and family: nothing is masqueraded on the way.
            let own = &of_box[usize::from(address.contains(':'))];
            assert_has(&answer, &[&format!("{own}]:")]);
        }
        let slices = node.get(&["endpointslices", "-l", &format!("kubernetes.io/service-name={name}")]);
        let slices = slices["items"].as_array().expect("slices").clone();
        let types: BTreeSet<&str> = slices.iter().filter_map(|slice| slice["addressType"].as_str()).collect();
        assert_eq!(types, BTreeSet::from(["IPv4", "IPv6"]));
        let endpoints = node.get(&["endpoints", name]);
        assert_eq!(ips(&endpoints["subsets"][0]["addresses"]), [pod_ips[0].clone()], "the first family's");
    }
    let port = node.field("service/web", ".spec.ports[0].nodePort");
    for address in [&v4, &v6] {
        node.http(&format!("{}:{port}", host(address)), "/");
    }

    step("a pod on the host's network has the node's addresses");
    node.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: onhost}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{{name: box, image: "{BUSYBOX}", command: [sleep, "3600"]}}]
"#
    ));
    node.wait("pod/onhost", "condition=Ready");
    assert_eq!(ips(&node.get(&["pod", "onhost"])["status"]["podIPs"]), [v4, v6]);

    step("a Service of the other family alone, and one that cannot be");
    let alone = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "six" },
        "spec": { "ipFamilies": ["IPv6"], "selector": { "app": "web" },
                  "ports": [{ "port": 80, "targetPort": 8080 }] } });
    node.apply(&alone.to_string());
    let six = node.get(&["service", "six"]);
    assert_eq!(six["spec"]["clusterIPs"].as_array().map(Vec::len), Some(1), "{six}");
    asks(&node, "box", &format!("http://{}/", host(six["spec"]["clusterIP"].as_str().expect("an address"))));

    step("names have addresses of both families, and addresses have names");
    node.kedge(&["enable", "dns"]).ok();
    let web = texts(&node.get(&["service", "web"])["spec"]["clusterIPs"]);
    for (kind, address) in [("a", &web[0]), ("aaaa", &web[1])] {
        eventually(&format!("the {kind} record"), || {
            let kind = format!("-type={kind}");
            let name = "web.default.svc.cluster.local";
            node.kubectl(&["exec", "box", "--", "nslookup", &kind, name])
                .stdout
                .contains(address)
                .then_some(())
        });
    }
    let back = node.kubectl(&["exec", "box", "--", "nslookup", &web[1]]).ok();
    assert_has(&back, &["web.default.svc.cluster.local"]);
    asks(&node, "box", "http://web/");

    step("after a restart everything is as it was");
    assert_eq!(node.stop(), 0);
    node.run();
    node.wait_ready();
    let again = node.get(&["node", &node.node]);
    assert_eq!(again["spec"]["podCIDRs"], object["spec"]["podCIDRs"]);
    for address in &web {
        asks(&node, "box", &format!("http://{}/", host(address)));
    }
}

#[test]
fn two_nodes_of_ipv6_alone() {
    let network = Network::of(2, Families::V6);
    let settings = vec![
        ("--pod-cidr", "fd00:10:244::/56".to_owned()),
        ("--service-cidr", "fd00:10:96::/112".to_owned()),
    ];
    let mut first = Cluster::prepare_with(&network, 1, &name(1), settings.clone());
    first.run();
    first.wait_ready();
    first.import_busybox();

    step("the join string has the IPv6 address in brackets, and joining by it works");
    let made = first.kedge(&["add-node", "--format", "json"]).json();
    let string = made["join"][0].as_str().expect("a join string").to_owned();
    assert!(string.starts_with(&format!("[{}]:25000/", network.address(1))), "{string}");
    // As a single node again, after leaving, it needs settings of its own: the default networks are IPv4.
    let second = Cluster::prepare_with(&network, 2, &name(2), settings);
    second.kedge(&["join", &string, "--timeout", "120"]).ok();
    first.wait(&format!("node/{}", second.node), "condition=Ready");
    second.write_kubeconfig();
    second.import_busybox();

    step("both have IPv6 alone");
    let mut ranges = BTreeSet::new();
    for (number, node) in [(1, &first), (2, &second)] {
        network_is_up(&first, &node.node);
        let object = second.get(&["node", &node.node]);
        assert_eq!(internal_addresses(&object), [network.address(number)]);
        let own = texts(&object["spec"]["podCIDRs"]);
        assert_eq!(own.len(), 1);
        ranges.extend(own);
        assert_eq!(flannel(&object, "public-ipv6"), network.address(number));
    }
    assert_eq!(ranges, BTreeSet::from(["fd00:10:244:1::/64".to_owned(), "fd00:10:244::/64".to_owned()]));
    let conf = net_conf(&second);
    assert_eq!(
        (&conf["EnableIPv4"], &conf["EnableIPv6"], &conf["IPv6Network"]),
        (&json!(false), &json!(true), &json!("fd00:10:244::/56"))
    );

    step("the Service kubernetes leads to both API servers");
    eventually("both API servers", || {
        let slice = first.try_get(&["endpointslice", "kubernetes"])?;
        let list = slice["endpoints"].as_array()?.iter().map(|one| one["addresses"][0].clone());
        let found: BTreeSet<String> = list.filter_map(|one| one.as_str().map(str::to_owned)).collect();
        (slice["addressType"] == "IPv6" && found == (1..=2).map(|host| network.address(host)).collect())
            .then_some(())
    });
    assert_eq!(first.field("service/kubernetes", ".spec.clusterIP"), "fd00:10:96::1");

    step("pods of both nodes reach each other by address, Service and name");
    first.kedge(&["enable", "dns"]).ok();
    first.apply(&workload(2, "PreferDualStack"));
    first.rolled_out("deployment/web");
    run_box(&first, "box1", &first.node);
    run_box(&first, "box2", &second.node);
    let pods = first.get(&["pods", "-l", "app=web"]);
    let service = first.get(&["service", "web"]);
    assert_eq!(texts(&service["spec"]["ipFamilies"]), ["IPv6"]);
    let cluster_ip = service["spec"]["clusterIP"].as_str().expect("an address");
    for client in ["box1", "box2"] {
        for pod in pods["items"].as_array().expect("pods") {
            let own = ips(&pod["status"]["podIPs"]);
            assert_eq!(own.len(), 1);
            let answer = asks(&first, client, &format!("http://[{}]:8080/", own[0]));
            assert_has(&answer, &[pod["metadata"]["name"].as_str().expect("a name")]);
        }
        asks(&first, client, &format!("http://[{cluster_ip}]/"));
        asks(&first, client, "http://web/");
        let name = "web.default.svc.cluster.local";
        let found = first.kubectl(&["exec", client, "--", "nslookup", "-type=aaaa", name]).ok();
        assert_has(&found, &[cluster_ip]);
    }

    step("node ports answer on both nodes");
    let port = first.field("service/web", ".spec.ports[0].nodePort");
    for host in 1..=2 {
        first.http(&format!("[{}]:{port}", network.address(host)), "/");
    }

    step("logs and exec go to the other node");
    for node in [&first, &second] {
        assert_has(&node.kubectl(&["exec", "box1", "--", "echo", "said"]).ok(), &["said"]);
        assert_has(&node.kubectl(&["exec", "box2", "--", "echo", "said"]).ok(), &["said"]);
    }

    step("it leaves again");
    second.kedge(&["leave", "--force", "--without", "dns"]).ok();
    first.wait(&format!("node/{}", second.node), "delete");
}

#[test]
fn control_plane_nodes_of_ipv6_alone_are_killed() {
    let network = Network::of(4, Families::V6);
    let settings = vec![
        ("--pod-cidr", "fd00:10:244::/56".to_owned()),
        ("--service-cidr", "fd00:10:96::/112".to_owned()),
    ];
    let mut nodes: Vec<Cluster> =
        (1..=4).map(|host| Cluster::prepare_with(&network, host, &name(host), settings.clone())).collect();
    nodes[0].run();
    nodes[0].wait_ready();
    step("three of the control plane, and a worker that joins by the first one's address");
    for (number, node) in nodes.iter().enumerate().skip(1) {
        let string = kedge_tests::trio::invitation(&nodes[0], &[]);
        let worker: &[&str] = if number == 3 { &["--worker"] } else { &[] };
        node.kedge(&[&["join", &string, "--timeout", "120"], worker].concat()).ok();
        if number < 3 {
            node.write_kubeconfig();
        }
    }
    nodes[3].import_busybox();
    let worker = nodes[3].node.clone();
    run_box(&nodes[1], "box", &worker);
    nodes[1].apply(&workload(4, "PreferDualStack"));
    nodes[1].rolled_out("deployment/web");
    let before = kedge_tests::trio::containers(&nodes[1]);
    let pods = nodes[1].get(&["pods", "-l", "app=web"]);
    let spread =
        pods["items"].as_array().expect("pods").iter().filter_map(|pod| pod["spec"]["nodeName"].as_str());
    assert_eq!(spread.collect::<BTreeSet<_>>().len(), 4, "{pods}");
    let pod =
        pods["items"].as_array().expect("pods").iter().find(|pod| pod["spec"]["nodeName"] == worker.as_str());
    let pod = pod.and_then(|pod| pod["metadata"]["name"].as_str()).expect("the worker's pod").to_owned();
    let cluster_ip = nodes[1].field("service/web", ".spec.clusterIP");

    // One after the other, so that the worker loses each one that it may be connected to.
    for dead in 0..3 {
        let asked = (dead + 1) % 3;
        step(&format!("control-plane node {} is killed", dead + 1));
        let began = Instant::now();
        nodes[dead].kill9();
        asks(&nodes[asked], "box", &format!("http://[{cluster_ip}]/"));
        let served = began.elapsed();
        let logs = eventually("the logs of the worker's pods", || {
            let out = nodes[asked].kubectl(&["logs", &pod]);
            (out.code == 0).then_some(began.elapsed())
        });
        let late = format!("late{dead}");
        eventually("a Service to be made", || {
            let make = ["expose", "deployment/web", "--name", &late, "--port=80", "--target-port=8080"];
            let out = nodes[asked].kubectl(&make);
            (out.code == 0 || out.stderr.contains("already exists")).then_some(())
        });
        let address = nodes[asked].field(&format!("service/{late}"), ".spec.clusterIP");
        asks(&nodes[asked], "box", &format!("http://[{address}]/"));
        eprintln!(
            "FIGURE IPv6, control-plane node {} killed: the worker's pod was served after {served:?}, its logs were \
             there after {logs:?}, a new Service after {:?}",
            dead + 1,
            began.elapsed()
        );
        nodes[dead].run();
        nodes[dead].wait_ready();
        eventually("three voters", || {
            let now = kedge_tests::trio::datastore(&nodes[asked])?;
            (now["highAvailability"] == true).then_some(())
        });
    }
    nodes[1].wait(&format!("node/{worker}"), "condition=Ready");
    assert_eq!(kedge_tests::trio::containers(&nodes[1]), before, "a container was restarted");
    nodes[3].kedge(&["leave", "--force", "--without", "dns"]).ok();
    nodes[1].wait(&format!("node/{worker}"), "delete");
}
