//! A stock flanneld as a node's peer. The program is not part of the project: `FLANNELD` names one (from
//! 0.20 on), and the test is run by name with `--ignored`. Its namespace has what a node with flanneld has:
//! a Node object, the daemon, a bridge as its CNI plugin makes it from `subnet.env`, and a pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kedge_tests::{BUSYBOX, Cluster, Network, Out, eventually, run, step};
use serde_json::{Value, json};

const NODE: &str = "stock-flannel";

/// The namespace with flanneld.
struct Peer {
    program: PathBuf,
    dir: PathBuf,
    namespace: String,
    pod_namespace: String,
    kubeconfig: PathBuf,
    children: Vec<Child>,
    daemon: Option<Child>,
}

fn inside(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

fn ip(namespace: &str, line: &str) -> String {
    run(Command::new("ip").args(["-n", namespace]).args(line.split(' ')), b"").ok()
}

fn link(namespace: &str, device: &str) -> Value {
    let text = ip(namespace, &format!("-d -j link show {device}"));
    serde_json::from_str::<Value>(&text).expect("ip prints JSON")[0].take()
}

impl Peer {
    fn new(network: &Network, host: usize, cluster: &Cluster) -> Self {
        let program = std::env::var_os("FLANNELD").map(PathBuf::from).expect("FLANNELD names a flanneld");
        let namespace = network.namespace(host);
        let dir = cluster.dir().join("flanneld");
        fs::create_dir(&dir).expect("make flanneld's folder");
        let kubeconfig = dir.join("kubeconfig");
        let mut config: Value = cluster.kubectl(&["config", "view", "--raw", "-o", "json"]).json();
        let token = cluster.kubectl(&["create", "token", "flannel", "-n", "kube-flannel"]).ok();
        config["users"][0]["user"] = json!({ "token": token.trim() });
        fs::write(&kubeconfig, config.to_string()).expect("write flanneld's kubeconfig");
        let pod_namespace = format!("{namespace}p");
        Self { program, dir, namespace, pod_namespace, kubeconfig, children: Vec::new(), daemon: None }
    }

    /// Starts flanneld with the network's configuration from the cluster.
    fn start(&mut self, cluster: &Cluster, arguments: &[&str]) {
        // A kubelet mounts it into flanneld's pod.
        let conf = cluster.kubectl(&[
            "get",
            "configmap",
            "-n",
            "kube-flannel",
            "kube-flannel-cfg",
            "-o",
            "jsonpath={.data.net-conf\\.json}",
        ]);
        fs::write(self.dir.join("net-conf.json"), conf.ok()).expect("write net-conf.json");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log"));
        let subnet_env = self.dir.join("subnet.env");
        let _ = fs::remove_file(&subnet_env);
        let child = inside(&self.namespace, &self.program)
            .env("NODE_NAME", NODE)
            .args(["--kube-subnet-mgr", "--ip-masq", "--iface=eth0"])
            .arg(format!("--kubeconfig-file={}", self.kubeconfig.display()))
            .arg(format!("--net-config-path={}", self.dir.join("net-conf.json").display()))
            .arg(format!("--subnet-file={}", subnet_env.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("open flanneld's log"))
            .spawn()
            .expect("start flanneld");
        self.daemon = Some(child);
        eventually("flanneld to have its lease", || subnet_env.exists().then_some(()));
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    fn env(&self, name: &str) -> String {
        let text = fs::read_to_string(self.dir.join("subnet.env")).expect("flanneld's subnet.env");
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        value.unwrap_or_else(|| panic!("{name} is not in {text}")).to_owned()
    }

    /// A pod as the bridge plugin makes it, with a server of `page`. Its address.
    fn pod(&mut self, page: &str) -> String {
        let (gateway, mtu) = (self.env("FLANNEL_SUBNET"), self.env("FLANNEL_MTU"));
        let address = gateway.replace(".1/24", ".5");
        let (node, pod) = (self.namespace.clone(), self.pod_namespace.clone());
        run(Command::new("ip").args(["netns", "add", &pod]), b"").ok();
        for line in [
            format!("link add cni0 mtu {mtu} type bridge"),
            format!("addr add {gateway} dev cni0"),
            "link set cni0 up".to_owned(),
            format!("link add vpod mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}"),
            "link set vpod master cni0 up".to_owned(),
        ] {
            ip(&node, &line);
        }
        let default = format!("route add default via {}", gateway.replace("/24", ""));
        for line in
            [&format!("addr add {address}/24 dev eth0"), "link set eth0 up", "link set lo up", &default]
        {
            ip(&pod, line);
        }
        run(inside(&node, Path::new("sysctl")).args(["-w", "net.ipv4.ip_forward=1"]), b"").ok();
        let www = self.dir.join("www");
        fs::create_dir(&www).expect("make the server's folder");
        fs::write(www.join("page"), page).expect("write the page");
        let server = inside(&pod, Path::new("busybox"))
            .args(["httpd", "-f", "-p", "80", "-h"])
            .arg(&www)
            .spawn()
            .expect("start busybox httpd");
        self.children.push(server);
        address
    }

    fn fetch(&self, url: &str) -> Out {
        run(inside(&self.pod_namespace, Path::new("busybox")).args(["wget", "-qO-", url]), b"")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("=== flanneld\n{}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        let _ = run(Command::new("ip").args(["netns", "delete", &self.pod_namespace]), b"");
    }
}

/// A page of many full packets passes in both directions.
fn both_ways(cluster: &Cluster, peer: &Peer, here: &str, there: &str, page: &str) {
    eventually("flanneld's pod to reach Kedge's", || {
        peer.fetch(&format!("http://{here}:8080/page")).stdout.eq(page).then_some(())
    });
    eventually("Kedge's pod to reach flanneld's", || {
        let out = cluster.kubectl(&["exec", "web", "--", "wget", "-qO-", &format!("http://{there}/page")]);
        out.stdout.eq(page).then_some(())
    });
}

fn announced(cluster: &Cluster, node: &str, key: &str) -> String {
    cluster.field(
        &format!("node/{node}"),
        &format!(".metadata.annotations.flannel\\.alpha\\.coreos\\.com/{key}"),
    )
}

fn configure(cluster: &Cluster, backend: &Value) {
    let conf = json!({ "Network": "10.244.0.0/16", "Backend": backend }).to_string();
    let patch = json!({ "data": { "net-conf.json": conf } }).to_string();
    cluster
        .kubectl(&[
            "patch",
            "configmap",
            "kube-flannel-cfg",
            "-n",
            "kube-flannel",
            "--type=merge",
            "-p",
            &patch,
        ])
        .ok();
}

#[test]
#[ignore = "FLANNELD has to name a stock flanneld"]
fn a_stock_flanneld_is_a_peer() {
    let network = Network::new(2);
    let (first, second) = (network.namespace(1), network.namespace(2));
    let mut cluster = Cluster::prepare_on(&network, 1);
    cluster.run();
    cluster.wait_ready();
    cluster.import_busybox();
    let restart = |cluster: &mut Cluster| {
        cluster.stop();
        cluster.run();
        cluster.wait_ready();
    };

    step(
        "a Node without a range gets one; flanneld takes its lease with the cluster's account and ConfigMap",
    );
    cluster.apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {NODE}}}}}"));
    eventually("a range of pods", || {
        (!cluster.try_field(&format!("node/{NODE}"), ".spec.podCIDR")?.is_empty()).then_some(())
    });
    let mut peer = Peer::new(&network, 2, &cluster);
    peer.start(&cluster, &[]);
    assert_eq!(announced(&cluster, NODE, "public-ip"), network.address(2));
    cluster.wait(&format!("node/{NODE}"), "condition=NetworkUnavailable=False");

    step("pods reach each other both ways, in packets as large as fit");
    let page: String = (0..20_000).map(|line| format!("{line}\n")).collect();
    let there = peer.pod(&page);
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec:
  nodeName: {}
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: {BUSYBOX}
    command: [sh, -c, "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done > /page; L=$(stat -c %s /page); while true; do {{ printf 'HTTP/1.0 200 OK\\r\\nContent-Length: %s\\r\\n\\r\\n' $L; cat /page; }} | nc -l -p 8080; done"]
"#,
        cluster.node
    ));
    cluster.wait("pod/web", "condition=Ready");
    let here = cluster.field("pod/web", ".status.podIP");
    both_ways(&cluster, &peer, &here, &there, &page);
    assert_eq!(link(&first, "kedge0")["mtu"].to_string(), peer.env("FLANNEL_MTU"));

    step("flanneld starts again, then with a new device");
    peer.stop();
    peer.start(&cluster, &[]);
    both_ways(&cluster, &peer, &here, &there, &page);
    peer.stop();
    ip(&second, "link delete flannel.1");
    peer.start(&cluster, &[]);
    both_ways(&cluster, &peer, &here, &there, &page);

    step("flanneld announces another address, then Kedge's node does");
    let other = |host: usize| format!("{}0{host}", network.address(host));
    ip(&second, &format!("addr add {}/24 dev eth0", other(2)));
    peer.stop();
    peer.start(&cluster, &[&format!("--public-ip={}", other(2))]);
    assert_eq!(announced(&cluster, NODE, "public-ip"), other(2));
    both_ways(&cluster, &peer, &here, &there, &page);
    ip(&first, &format!("addr add {}/24 dev eth0", other(1)));
    let overwrite = format!("flannel.alpha.coreos.com/public-ip-overwrite={}", other(1));
    cluster.kubectl(&["annotate", "node", &cluster.node, &overwrite]).ok();
    eventually("Kedge to announce it", || {
        (announced(&cluster, &cluster.node, "public-ip") == other(1)).then_some(())
    });
    eventually("flanneld to send there", || {
        let entries =
            run(Command::new("bridge").args(["-n", &second, "fdb", "show", "dev", "flannel.1"]), b"").ok();
        entries.contains(&other(1)).then_some(())
    });
    both_ways(&cluster, &peer, &here, &there, &page);

    step("both start again: nothing is announced anew, nothing breaks");
    let before = announced(&cluster, &cluster.node, "backend-data");
    restart(&mut cluster);
    assert_eq!(announced(&cluster, &cluster.node, "backend-data"), before);
    both_ways(&cluster, &peer, &here, &there, &page);

    step("another number, port and MTU by the ConfigMap that both read");
    configure(&cluster, &json!({ "Type": "vxlan", "VNI": 4, "Port": 4789, "MTU": 1400 }));
    peer.stop();
    restart(&mut cluster);
    peer.start(&cluster, &[]);
    both_ways(&cluster, &peer, &here, &there, &page);
    let [ours, theirs] = [&first, &second].map(|namespace| link(namespace, "flannel.4"));
    for key in ["id", "port", "learning"] {
        assert_eq!(ours["linkinfo"]["info_data"][key], theirs["linkinfo"]["info_data"][key], "{key}");
    }
    // flanneld knows the setting since 0.21.5.
    assert_eq!(ours["mtu"], 1350);
    assert!(theirs["mtu"] == 1350 || theirs["mtu"] == 1450, "{theirs}");

    step("nodes in one segment without a tunnel: direct routing, then host-gw");
    configure(&cluster, &json!({ "Type": "vxlan", "DirectRouting": true }));
    peer.stop();
    restart(&mut cluster);
    peer.start(&cluster, &[]);
    both_ways(&cluster, &peer, &here, &there, &page);
    configure(&cluster, &json!({ "Type": "host-gw" }));
    peer.stop();
    restart(&mut cluster);
    peer.start(&cluster, &[]);
    both_ways(&cluster, &peer, &here, &there, &page);
    for (namespace, pods) in [(&first, &there), (&second, &here)] {
        let route = ip(namespace, &format!("route get {pods}"));
        assert!(route.contains("dev eth0"), "{route}");
    }
    assert_eq!(announced(&cluster, NODE, "backend-type"), "host-gw");
    assert_eq!(announced(&cluster, &cluster.node, "backend-type"), "host-gw");

    step("the Node of flanneld is deleted: no way there is left");
    peer.stop();
    cluster.kubectl(&["delete", "node", NODE]).ok();
    eventually("the route to be gone", || {
        (!ip(&first, "route").contains(&there.replace(".5", ".0"))).then_some(())
    });
}
