//! The addon flannel: its arguments on a running cluster, off and on again, and a pod network of the user's.

use kedge_tests::{BUSYBOX, Cluster, Network, assert_has, eventually, step};

const PODS: &str = r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers:
      - name: web
        image: IMAGE
        command: [sh, -c, 'mkdir /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www']
";

/// What another network's installer would write: a bridge with a range of its own.
const FOREIGN: &str = r#"{"cniVersion":"0.4.0","name":"other","plugins":[{"type":"bridge","bridge":"NAME",
"isGateway":true,"ipam":{"type":"host-local","dataDir":"DIR","ranges":[[{"subnet":"10.177.0.0/24"}]]}}]}"#;

const BACKEND: &str = ".metadata.annotations.flannel\\.alpha\\.coreos\\.com/backend-type";

fn ready(cluster: &Cluster, node: &str, wanted: &str) {
    eventually(&format!("{node} to have Ready={wanted}"), || {
        let path = ".status.conditions[?(@.type=='Ready')].status";
        (cluster.try_field(&format!("node/{node}"), path)? == wanted).then_some(())
    });
}

fn pods(cluster: &Cluster) -> Vec<(String, String)> {
    let list = cluster.get(&["pods", "-l", "app=web"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items
        .iter()
        .map(|pod| {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            (
                text(&pod["metadata"]["name"]),
                format!("{} {} {restarts}", pod["metadata"]["uid"], pod["status"]["podIP"]),
            )
        })
        .collect()
}

fn reach_each_other(cluster: &Cluster) {
    let list = cluster.get(&["pods", "-l", "app=web"]);
    let items = list["items"].as_array().cloned().unwrap_or_default();
    for from in &items {
        for to in &items {
            let (name, address) = (from["metadata"]["name"].as_str(), to["status"]["podIP"].as_str());
            let (name, address) = (name.expect("a name"), address.expect("an address"));
            eventually(&format!("{name} to reach {address}"), || {
                let line = format!("busybox timeout 2 wget -q -O - http://{address}:8080/");
                let out = cluster.kubectl(&["exec", name, "--", "sh", "-c", &line]);
                (out.code == 0).then_some(())
            });
        }
    }
}

#[test]
fn the_data_path_changes_under_running_pods() {
    let network = Network::new(2);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    let mut second = Cluster::prepare_on(&network, 2);
    let invitation = first.kedge(&["add-node", "--output", "json"]).json();
    let join = invitation["join"][0].as_str().expect("a join string").to_owned();
    second.kedge(&["join", &join, "--worker", "--timeout", "120"]).ok();
    for node in [&first, &second] {
        node.import_busybox();
    }
    first.apply(&PODS.replace("IMAGE", BUSYBOX));
    first.rolled_out("daemonset/web");
    let before = pods(&first);
    assert_eq!(before.len(), 2);
    reach_each_other(&first);

    step("host-gw, on both nodes, with the same pods");
    first.kedge(&["enable", "flannel:backend=host-gw"]).ok();
    for node in [&first.node, &second.node] {
        assert_eq!(first.field(&format!("node/{node}"), BACKEND), "host-gw");
    }
    reach_each_other(&first);
    assert_eq!(pods(&first), before, "no pod was lost or started again");
    let info = first.kedge(&["addons", "list", "--output", "json"]).json();
    let flannel =
        info.as_array().and_then(|all| all.iter().find(|addon| addon["name"] == "flannel")).cloned();
    let flannel = flannel.expect("flannel is listed");
    assert_eq!(
        (flannel["state"].as_str(), flannel["arguments"]["backend"].as_str()),
        (Some("enabled"), Some("host-gw"))
    );

    step("back to VXLAN with another port and number");
    first.kedge(&["enable", "flannel:backend=vxlan;port=4789;vni=7"]).ok();
    reach_each_other(&first);
    assert_eq!(pods(&first), before);

    step("what cannot be is refused");
    let refused = first.kedge(&["enable", "flannel:network=10.99.0.0/16"]).failed(2);
    assert_has(&refused, &["the cluster's range of pods is 10.244.0.0/16", "it cannot be changed"]);
    assert_has(&first.kedge(&["enable", "flannel:backend=wireguard"]).failed(2), &["vxlan, host-gw"]);
    second.remove();
    first.remove();
}

#[test]
fn a_pod_network_of_ones_own() {
    // A machine of its own: a pod network that somebody has left on this one would keep Kedge's away.
    let network = Network::new(1);
    let mut cluster = Cluster::prepare_on(&network, 1);
    let foreign = cluster.dir().join("foreign-cni");
    let bridge = format!("ko{}", std::process::id());
    let conf = foreign.join("10-other.conflist");
    let leases = cluster.dir().join("foreign-leases").display().to_string();
    let text = FOREIGN.replace("NAME", &bridge).replace("DIR", &leases);
    std::fs::write(
        cluster.dir().join("config.yaml"),
        format!("cni-conf-dir: {}\npod-network: none\ncni-bin-dir: /usr/lib/cni\n", foreign.display()),
    )
    .expect("write the configuration");

    step("without flannel a node waits for a CNI configuration");
    cluster.run();
    eventually("the API server", || {
        if cluster.kedge(&["config", "--server", cluster.server()]).code != 0 {
            return None;
        }
        cluster.write_kubeconfig();
        (cluster.kubectl(&["get", "node", &cluster.node]).code == 0).then_some(())
    });
    ready(&cluster, &cluster.node, "False");
    let state = cluster.kedge(&["addons", "list", "--output", "json"]).ok();
    assert_has(&state, &["flannel"]);
    std::fs::create_dir_all(&foreign).expect("make a folder");
    std::fs::write(&conf, text).expect("write the other network's configuration");
    ready(&cluster, &cluster.node, "True");
    cluster.import_busybox();
    cluster.apply(&PODS.replace("IMAGE", BUSYBOX));
    cluster.rolled_out("daemonset/web");
    assert_has(&pods(&cluster)[0].1, &["10.177.0."]);
    assert_eq!(cluster.field(&format!("node/{}", cluster.node), BACKEND), "");
    cluster.kubectl(&["delete", "daemonset", "web"]).ok();
    eventually("the pods to be gone", || pods(&cluster).is_empty().then_some(()));

    step("Kedge's own comes, and goes again");
    cluster.kedge(&["enable", "flannel"]).ok();
    ready(&cluster, &cluster.node, "True");
    assert_eq!(cluster.field(&format!("node/{}", cluster.node), BACKEND), "vxlan");
    std::fs::remove_file(&conf).expect("remove the other network's configuration");
    cluster.kedge(&["disable", "flannel"]).ok();
    assert_has(&cluster.kedge(&["disable", "flannel"]).failed(1), &["is not enabled"]);
    ready(&cluster, &cluster.node, "False");
    assert_eq!(cluster.field(&format!("node/{}", cluster.node), BACKEND), "");
    cluster.kedge(&["enable", "flannel"]).ok();
    ready(&cluster, &cluster.node, "True");
    cluster.shell(&format!("ip link delete {bridge}"));
    cluster.remove();
}

/// Pods and Services have addresses of the networks that a cluster was made with.
#[test]
fn the_networks_of_a_cluster_stay() {
    let mut cluster = Cluster::start();
    let flag = |cluster: &Cluster, name: &str| {
        let at = cluster.flags().iter().position(|flag| flag == name).expect("the flag");
        cluster.flags()[at + 1].clone()
    };
    for name in ["--pod-cidr", "--service-cidr"] {
        let (made, dns) = (flag(&cluster, name), flag(&cluster, "--cluster-dns"));
        cluster.stop();
        cluster.set(name, "10.99.0.0/16");
        if name == "--service-cidr" {
            cluster.set("--cluster-dns", "10.99.0.10");
        }
        let words = [&name[2..], "10.99.0.0/16", "was made with", &made, "kedge reset"];
        assert_has(&cluster.kedge(&["install", "--check"]).failed(1), &words);
        cluster.run();
        assert_ne!(cluster.wait_ended(), 0);
        assert_has(&cluster.log(), &words);
        cluster.set(name, &made);
        cluster.set("--cluster-dns", &dns);
        cluster.run();
        cluster.wait_ready();
    }
}
