//! What an operator does with a node: inspect it, report a bug, reset it, take it away, make it from a file.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use kedge_tests::{Cluster, Network, assert_has, eventually, kedge_binary, run, step};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use kedge_tests::trio::invitation;

/// Runs a program on a host of the network and gives what it printed.
fn inside(network: &Network, host: usize, words: &[&str]) -> String {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", network.namespace(host))).arg("--").args(words);
    run(&mut command, b"").ok()
}

fn findings(node: &Cluster) -> (i32, Vec<Value>) {
    let out = node.kedge(&["inspect", "--output", "json"]);
    let list: Value = serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out}"));
    (out.code, list.as_array().expect("a list of findings").clone())
}

fn of<'a>(list: &'a [Value], check: &str) -> &'a Value {
    list.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("no {check} in {list:?}"))
}

#[test]
fn inspect_names_what_is_wrong_and_the_report_holds_no_secret() {
    let network = Network::new(1);
    let mut node = Cluster::prepare_on(&network, 1);
    step("before there is a node: the same checks, and none of a node");
    let (_, list) = findings(&node);
    assert_eq!(of(&list, "kedge")["state"], "warn");
    assert!(list.iter().all(|finding| finding["check"] != "dns"), "{list:?}");

    node.run();
    node.wait_ready();
    node.kedge(&["enable", "dns"]).ok();

    step("a node that is well");
    let (code, list) = findings(&node);
    assert_eq!(code, 0, "{list:#?}");
    for check in
        ["cgroups", "kernel", "ports", "routes", "forwarding", "certificates", "containerd", "nodes", "dns"]
    {
        assert_eq!(of(&list, check)["state"], "ok", "{:#}", of(&list, check));
    }
    assert_has(of(&list, "dns")["message"].as_str().unwrap(), &["from a pod", "kubernetes.default.svc"]);
    assert_has(&node.kedge(&["inspect"]).ok(), &["ok    dns", "0 failed"]);

    step("forwarding is switched off: named, with the remedy, and exit code 1");
    inside(&network, 1, &["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"]);
    let (code, list) = findings(&node);
    assert_eq!(code, 1);
    let found = of(&list, "forwarding");
    assert_eq!(found["state"], "fail", "{found:#}");
    assert_has(found["remedy"].as_str().unwrap(), &["ip_forward"]);
    inside(&network, 1, &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);

    step("a firewall that drops what is forwarded: opened by the node, and seen to be");
    inside(&network, 1, &["nft", "add table ip filter"]);
    inside(
        &network,
        1,
        &["nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"],
    );
    eventually("the rules that let pods' packets pass", || {
        let (_, list) = findings(&node);
        (of(&list, "firewall")["state"] == "ok" && of(&list, "dns")["state"] == "ok").then_some(())
    });
    inside(&network, 1, &["nft", "delete table ip filter"]);

    step("a report with planted secrets holds none of them");
    node.kubectl(&["create", "secret", "generic", "planted", "--from-literal=password=hunter2-planted"]).ok();
    let manifest = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "annotations": {"note": "hunter2-planted", "example.com/api-token": "annotation-planted"}},
        "spec": {"containers": [{"name": "web", "image": "kedge.dev/hello:1.0",
            "readinessProbe": {"httpGet": {"path": "/", "port": 8080, "httpHeaders": [{"name": "X-Api-Key", "value": "header-planted"}]}},
            "env": [{"name": "MODE", "value": "variable-planted"}, {"name": "API_TOKEN", "value": "token-planted"}]}]}}"#;
    node.apply(manifest);
    let never = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "never"}, "spec": {"nodeSelector": {"no": "such"},
        "containers": [{"name": "never", "image": "kedge.dev/hello:1.0", "command": ["x", "--password", "argument-planted"],
            "args": ["curl -u admin:login-planted https://git-planted@host.example"]}]}}"#;
    node.apply(never);
    node.wait("pod/web", "condition=Ready");
    let join = invitation(&node, &[]);
    let token = join.split('/').nth(1).expect("a token").to_owned();
    let config = node.dir().join("config.yaml");
    fs::write(&config, format!("join: {join}\n")).expect("write the configuration");
    let file = node.dir().join("report.tar.gz");
    let out = node.kedge(&["inspect", "--quiet", "--tarball", &file.display().to_string()]);
    assert!(file.exists(), "{out}");
    fs::write(&config, "").expect("write the configuration");
    let unpacked = run(Command::new("tar").args(["-xzOf"]).arg(&file), b"").ok();
    let key = fs::read_to_string(node.dir().join("data/pki/ca.key")).expect("read a key");
    let line = key.lines().nth(1).expect("a line of the key");
    for secret in ["-planted", "PRIVATE KEY", &token, line] {
        assert!(!unpacked.contains(secret), "the report holds {secret}");
    }
    let names = run(Command::new("tar").arg("-tzf").arg(&file), b"").ok();
    assert_has(
        &names,
        &[
            "kedge-inspect/inspect.json",
            "kedge-inspect/status.json",
            "kedge-inspect/config/effective.yaml",
            "kedge-inspect/cluster/nodes.json",
            "kedge-inspect/cluster/events.json",
            "kedge-inspect/machine/nft.txt",
            "kedge-inspect/logs/",
        ],
    );
    assert!(
        !names.contains("secrets") && !names.contains("kubeconfig") && !names.contains(".key"),
        "{names}"
    );
    let objects = ["-xzOf", "kedge-inspect/cluster/pods.json", "kedge-inspect/machine/nft.txt"];
    let mut command = Command::new("tar");
    command.arg(objects[0]).arg(&file).args(&objects[1..]);
    assert_has(
        &run(&mut command, b"").ok(),
        &["\"web\"", "API_TOKEN", "X-Api-Key", "host.example", "table inet kedge"],
    );
}

/// What a machine has that a node could leave behind. Other nodes of the machine come and go meanwhile: only
/// what is in the node's own network namespace is compared as a whole.
fn traces(network: &Network, node: &Cluster) -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    for words in [
        ["ip", "-o", "link"].as_slice(),
        &["ip", "-o", "address"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["nft", "list", "ruleset"],
    ] {
        for line in inside(network, 1, words).lines() {
            // States and lifetimes change by themselves.
            let line = line.split(" state ").next().unwrap_or_default();
            traces.insert(format!("{}: {}", words.join(" "), line.trim()));
        }
    }
    let folder = node.dir().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
    traces.extend(mounts.lines().filter(|line| line.contains(&folder)).map(str::to_owned));
    traces.extend(kedge_tests::processes_naming(node.dir()).into_iter().map(|process| process.command));
    for name in ["data", "run", "log"] {
        for entry in fs::read_dir(node.dir().join(name)).into_iter().flatten().flatten() {
            traces.insert(entry.path().display().to_string());
        }
    }
    traces
}

/// Files of pods' network namespaces and folders of their control groups.
fn of_pods(node: &Cluster) -> Vec<String> {
    let uids: Vec<String> = fs::read_dir(node.dir().join("data/kubelet/pods"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let out = run(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", "*pod*"]), b"");
    let groups = out.stdout.lines().filter(|path| {
        let path = path.replace('_', "-");
        uids.iter().any(|uid| path.contains(uid.as_str()))
    });
    groups.map(str::to_owned).collect()
}

#[test]
fn reset_and_uninstall_leave_nothing() {
    let network = Network::new(1);
    let mut node = Cluster::prepare_on(&network, 1);
    eventually("the host's addresses to settle", || {
        (!inside(&network, 1, &["ip", "-o", "address"]).contains("tentative")).then_some(())
    });
    let before = traces(&network, &node);
    let names_before: BTreeSet<String> = netns_names();
    node.kedge(&["start"]).ok();
    node.wait_ready();
    node.kedge(&["enable", "dns"]).ok();
    let manifest = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"volumes": [{"name": "scratch", "emptyDir": {"medium": "Memory"}}],
            "containers": [{"name": "web", "image": "kedge.dev/hello:1.0", "ports": [{"containerPort": 8080, "hostPort": 8089}],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}]}}"#;
    node.apply(manifest);
    node.wait("pod/web", "condition=Ready");
    node.kubectl(&[
        "expose",
        "pod",
        "web",
        "--port=8080",
        "--type=NodePort",
        "--labels=a=b",
        "--selector=a=b",
    ])
    .ok();
    node.kedge(&["snapshot", "save", "--name", "kept"]).ok();
    let authority = fs::read_to_string(node.dir().join("data/pki/ca.crt")).expect("read the authority");

    step("reset asks first");
    assert_has(&node.kedge(&["reset"]).failed(2), &["--yes", "nothing was changed"]);
    node.kubectl(&["get", "pod", "web"]).ok();

    step("reset: the same settings, an empty cluster, and the copies stay");
    let begun = std::time::Instant::now();
    node.kedge(&["reset", "--yes", "--without", "dns"]).ok();
    eprintln!("reset took {:.1} s", begun.elapsed().as_secs_f64());
    node.write_kubeconfig();
    node.kubectl(&["get", "pod", "web"]).failed(1);
    assert_eq!(node.field("nodes", ".items[*].metadata.name"), node.node);
    let now = fs::read_to_string(node.dir().join("data/pki/ca.crt")).expect("read the authority");
    assert_ne!(now, authority, "a fresh cluster has keys of its own");
    assert_has(&node.kedge(&["snapshot", "list"]).ok(), &["kept"]);
    let old: Vec<_> = kedge_tests::processes_naming(node.dir())
        .into_iter()
        .filter(|process| process.command.contains("containerd-shim"))
        .collect();
    assert!(old.is_empty(), "containers of the old cluster: {old:?}");

    step("uninstall leaves what was there before, and nothing else");
    node.apply(manifest);
    node.wait("pod/web", "condition=Ready");
    assert!(traces(&network, &node).len() > before.len() + 10);
    let groups = of_pods(&node);
    assert!(!groups.is_empty(), "the pod has control groups");
    let begun = std::time::Instant::now();
    node.kedge(&["uninstall"]).ok();
    eprintln!("uninstall took {:.1} s", begun.elapsed().as_secs_f64());
    let after = traces(&network, &node);
    let left: Vec<&String> = after.difference(&before).collect();
    assert!(left.is_empty(), "left: {left:#?}");
    let lost: Vec<&String> = before.difference(&after).collect();
    assert!(lost.iter().all(|line| line.contains(&node.dir().display().to_string())), "lost: {lost:#?}");
    let groups: Vec<&String> = groups.iter().filter(|path| fs::metadata(path).is_ok()).collect();
    assert!(groups.is_empty(), "control groups: {groups:?}");
    // Those of other nodes' pods belong to living processes; a dead one's file cannot be entered.
    let dead: Vec<String> = netns_names()
        .difference(&names_before)
        .filter(|name| name.starts_with("cni-"))
        .filter(|name| run(Command::new("ip").args(["netns", "pids", name]), b"").stdout.trim().is_empty())
        .cloned()
        .collect();
    assert!(dead.is_empty(), "network namespaces: {dead:?}");
    assert!(!node.dir().join("log").exists(), "the folder of logs stays");
    node.remove();
}

/// The next start would adopt it, with mounts in which no pod can live.
#[test]
fn a_start_that_fails_leaves_no_containerd() {
    let network = Network::new(1);
    let mut node = Cluster::prepare_on(&network, 1);
    let containerds = || {
        let mut all = kedge_tests::processes_naming(node.dir());
        all.retain(|process| process.command.contains("containerd"));
        all
    };
    step("ip netns exec hides the control groups");
    let mut wrong = Command::new("ip");
    wrong.args(["netns", "exec", &network.namespace(1)]).arg(kedge_binary()).arg("run").args(node.flags());
    let said = run(&mut wrong, b"").failed(1);
    assert_has(&said, &["not mounted at /sys/fs/cgroup", "nsenter --net=/run/netns/"]);
    assert!(containerds().is_empty(), "left: {:?}", containerds());

    step("as it should be");
    node.kedge(&["start"]).ok();
    node.wait_ready();
    runs_a_pod(&node);
    node.remove();
}

fn runs_a_pod(node: &Cluster) {
    node.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web", "image": "kedge.dev/hello:1.0"}]}}"#,
    );
    node.wait("pod/web", "condition=Ready");
}

#[test]
fn a_removal_that_was_cut_off_is_finished() {
    let network = Network::new(1);
    let mut node = Cluster::prepare_on(&network, 1);
    node.kedge(&["start"]).ok();
    node.wait_ready();
    runs_a_pod(&node);
    let names = own_namespaces(&node);
    assert!(!names.is_empty(), "pods have network namespaces");

    step("killed after the shims, before the containers: they are found by their pods' control groups");
    let groups = of_pods(&node);
    node.kedge(&["stop"]).ok();
    for process in kedge_tests::processes_naming(node.dir()) {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    node.kedge(&["uninstall"]).ok();
    assert!(names.is_disjoint(&netns_names()), "left of {names:?}");
    let groups: Vec<&String> = groups.iter().filter(|path| fs::metadata(path).is_ok()).collect();
    assert!(groups.is_empty(), "control groups: {groups:?}");

    step("pods whose network could not be made leave nothing either");
    let plugins = node.dir().join("plugins");
    fs::create_dir(&plugins).expect("create the plugins' folder");
    for name in ["bridge", "host-local", "portmap", "loopback"] {
        let plugin = plugins.join(name);
        let fails =
            "#!/bin/sh\necho '{\"cniVersion\": \"1.0.0\", \"code\": 100, \"msg\": \"not today\"}'\nexit 1\n";
        fs::write(&plugin, fails).expect("write a plugin");
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).expect("make it a program");
    }
    node.kedge(&["start", "--cni-bin-dir", &plugins.display().to_string()]).ok();
    node.wait_ready();
    let out = node.kedge(&["enable", "dns", "--timeout", "20"]).failed(1);
    assert_has(&out, &["FailedCreatePodSandBox", "kedge disable dns"]);
    let names = own_namespaces(&node);
    assert!(!names.is_empty(), "containerd makes the namespace before it asks the plugins");
    node.kedge(&["uninstall"]).ok();
    assert!(names.is_disjoint(&netns_names()), "left of {names:?}");
    node.remove();
}

/// The network namespaces that this node's containerd has made; other nodes of the machine have theirs there too.
fn own_namespaces(node: &Cluster) -> BTreeSet<String> {
    let database = node.dir().join("data/containerd/io.containerd.metadata.v1.bolt/meta.db");
    let bytes = fs::read(database).expect("read containerd's database");
    let text = String::from_utf8_lossy(&bytes);
    netns_names()
        .into_iter()
        .filter(|name| name.starts_with("cni-") && text.contains(name.as_str()))
        .collect()
}

fn netns_names() -> BTreeSet<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[test]
fn nodes_made_from_files() {
    let network = Network::new(2);
    let mut first = Cluster::prepare_on(&network, 1);
    let drop_ins = first.dir().join("config.yaml.d");
    fs::create_dir(&drop_ins).expect("create the folder of drop-ins");
    fs::write(
        first.dir().join("config.yaml"),
        "# the whole node\nnode-labels: {disk: ssd, kind: board}\naddons: [dns]\nsnapshot-keep: 3\n",
    )
    .expect("write the configuration");
    fs::write(drop_ins.join("10-keep.yaml"), "snapshot-keep: 4\n").expect("write a drop-in");

    step("what counts, and where it was said");
    let shown = first.kedge(&["config", "show"]).ok();
    let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
    assert_has(&line("snapshot-keep:"), &["4", "10-keep.yaml"]);
    assert_has(&line("addons:"), &["dns", "config.yaml"]);
    assert_has(&line("node-name:"), &[&first.node, "--node-name"]);
    assert_has(&line("cluster-port:"), &["25000", "# default"]);
    let json = first.kedge(&["config", "show", "--output", "json"]).json();
    assert!(
        json.as_array().unwrap().iter().any(|row| row["key"] == "port" && row["origin"] == "default"),
        "{json}"
    );
    fs::write(drop_ins.join("20-wrong.yaml"), "snapshot_kep: 1\n").expect("write a drop-in");
    assert_has(
        &first.kedge(&["config", "show"]).failed(2),
        &["20-wrong.yaml", "did you mean \"snapshot-keep\"?"],
    );
    fs::remove_file(drop_ins.join("20-wrong.yaml")).expect("remove the drop-in");

    step("the first start enables the addons and labels the node");
    first.run();
    first.wait_ready();
    let labels = first.get(&["node", &first.node])["metadata"]["labels"].clone();
    assert_eq!((&labels["disk"], &labels["kind"]), (&Value::from("ssd"), &Value::from("board")), "{labels}");
    let addons = first.kedge(&["addons", "list", "-o", "json"]).json();
    assert_eq!(
        addons.as_array().unwrap().iter().find(|addon| addon["name"] == "dns").unwrap()["state"],
        "enabled"
    );

    step("a node that cannot reach its cluster yet says so, and goes on by itself");
    let mut second = Cluster::prepare_on(&network, 2);
    let join = invitation(&first, &[]);
    let file = second.dir().join("config.yaml");
    let settings = "role: worker\nnode-labels: {zone: attic}\nnode-taints: [\"edge=yes:NoSchedule\"]\n";
    let wrong = join.replacen(&network.address(1), &network.address(9), 1);
    fs::write(&file, format!("join: {wrong}\n{settings}")).expect("write the configuration");
    second.run();
    eventually("status to name what it waits for", || {
        let out = second.kedge(&["status", "--output", "json"]);
        let status: Value = serde_json::from_str(&out.stdout).ok()?;
        let part = status["components"].as_array()?.iter().find(|part| part["name"] == "join")?.clone();
        part["lastError"].as_str().map(|_| ())
    });
    fs::write(&file, format!("join: {join}\n{settings}")).expect("write the configuration");
    eventually("the second node to be Ready", || {
        let out = second.kedge(&["status", "--wait-ready", "--timeout", "15"]);
        (out.code == 0).then_some(())
    });
    let node = first.get(&["node", &second.node]);
    assert_eq!(node["metadata"]["labels"]["zone"], "attic", "{node:#}");
    assert!(
        node["spec"]["taints"].as_array().unwrap().iter().any(|taint| taint["key"] == "edge"),
        "{node:#}"
    );

    step("the clocks of both agree, and a reset of a member is refused");
    let (_, list) = findings(&first);
    assert_has(of(&list, "nodes")["message"].as_str().unwrap(), &["2 nodes"]);
    assert_has(&second.kedge(&["reset", "--yes"]).failed(1), &["kedge leave", "--force"]);
}

#[test]
fn status_says_why_a_node_does_not_run() {
    let mut node = Cluster::prepare();
    let listener = TcpListener::bind(("0.0.0.0", node.port)).expect("take the node's port");
    node.run();
    assert_ne!(node.wait_ended(), 0);
    let out = node.kedge(&["status", "--output", "json"]);
    assert_eq!(out.code, 1);
    let status: Value = serde_json::from_str(&out.stdout).expect("JSON");
    assert_eq!(status["state"], "stopped");
    let last = &status["lastFailure"];
    assert_has(last["error"].as_str().expect("an error"), &["ddress", "in use"]);
    assert_has(last["remedy"].as_str().expect("a remedy"), &["kedge inspect"]);
    let (code, list) = findings(&node);
    assert_eq!(code, 1);
    let port = format!("port {} is in use", node.port);
    assert!(
        list.iter()
            .any(|found| found["state"] == "fail" && found["message"].as_str().unwrap().contains(&port))
    );
    drop(listener);

    step("with the port free again the same command works, and the old error is gone");
    node.run();
    node.wait_ready();
    let status = node.kedge(&["status", "--output", "json"]).json();
    assert_eq!(status["lastFailure"], Value::Null);
    assert!(status["datastore"]["syncMicros"].as_u64().is_some(), "{status:#}");
    node.kill9();
    let out = node.kedge(&["status"]);
    assert_has(&out.stdout, &["stopped", "killed"]);
}

#[test]
fn quiet_colours_manual_pages_and_completion() {
    let kedge = |arguments: &[&str], variables: &[(&str, &str)]| {
        run(Command::new(kedge_binary()).args(arguments).envs(variables.iter().copied()), b"")
    };
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("config.yaml"), "").expect("write the configuration");
    let own = [
        "--data-dir".to_owned(),
        path("data"),
        "--run-dir".to_owned(),
        path("run"),
        "--config".to_owned(),
        path("config.yaml"),
    ];
    let with = |first: &[&str]| -> Vec<String> {
        first.iter().map(|word| (*word).to_owned()).chain(own.clone()).collect()
    };
    let call = |first: &[&str], variables: &[(&str, &str)]| {
        let words = with(first);
        kedge(&words.iter().map(String::as_str).collect::<Vec<_>>(), variables)
    };

    step("quiet: nothing but data and errors");
    let out = call(&["stop", "--quiet"], &[]);
    assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str()), (0, "", ""), "{out}");
    assert!(call(&["stop"], &[]).ok().contains("does not run"));

    step("colour: never into a pipe, unless forced, and NO_COLOR wins");
    let escape = '\u{1b}';
    assert!(!call(&["status"], &[]).stdout.contains(escape));
    assert!(call(&["status"], &[("CLICOLOR_FORCE", "1")]).stdout.contains(escape));
    assert!(!call(&["status"], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).stdout.contains(escape));

    step("YAML everywhere");
    for arguments in
        [["status", "--output", "yaml"].as_slice(), &["inspect", "-o", "yaml"], &["version", "-o", "yaml"]]
    {
        let out = call(arguments, &[]);
        assert!(out.stdout.contains(": "), "{out}");
    }

    step("manual pages");
    kedge(&["man", &path("man")], &[]).ok();
    for page in ["kedge.1", "kedge-install.1", "kedge-snapshot-save.1", "kedge-inspect.1"] {
        let mut text = String::new();
        fs::File::open(dir.path().join("man").join(page))
            .and_then(|mut file| file.read_to_string(&mut text))
            .expect(page);
        assert!(text.contains(".TH"), "{page}");
    }

    step("completion knows the commands");
    for shell in ["bash", "zsh", "fish"] {
        assert_has(&kedge(&["completion", shell], &[]).ok(), &["inspect", "reset"]);
    }
}
