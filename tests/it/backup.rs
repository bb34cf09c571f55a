//! Snapshots, recovery and certificates: what was saved comes back, damage is found, time never runs
//! backwards for those who watch.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kedge_tests::{Cluster, Network, assert_has, eventually, step};

#[test]
fn a_snapshot_brings_everything_back() {
    let mut cluster = Cluster::prepare();
    let settings = "snapshot-interval: 5s\nsnapshot-keep: 2\n";
    fs::write(cluster.dir().join("config.yaml"), settings).unwrap();
    cluster.run();
    cluster.wait_ready();
    fill(&cluster, 50);
    cluster.apply(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {app: \
         web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec:\n      containers: [{name: hello, image: \
         'kedge.dev/hello:1.0'}]\n",
    );
    cluster.rolled_out("deployment/web");
    let pod = cluster.field("pods", ".items[*].metadata.uid");
    let expected = contents(&cluster);
    assert_eq!(expected.len(), 50);

    step("saved, read back, listed, for root only");
    let saved = cluster.kedge(&["snapshot", "save", "--name", "before", "--format", "json"]).json();
    let file = PathBuf::from(saved["file"].as_str().unwrap());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(saved["confirmed"] == true && saved["objects"].as_u64().unwrap() > 50, "{saved}");
    let verified = cluster.kedge(&["snapshot", "verify", "before", "--format", "json"]).json();
    assert_eq!(verified["revision"], saved["revision"]);
    let resources = verified["resources"].as_object().unwrap();
    let configmaps = resources.iter().find(|(resource, _)| resource.starts_with("configmaps"));
    assert!(configmaps.is_some_and(|(_, count)| count.as_u64() >= Some(50)), "{resources:?}");
    assert_has(&cluster.kedge(&["snapshot", "list"]).ok(), &["before", &saved["revision"].to_string()]);
    let taken = cluster.kedge(&["snapshot", "save", "--name", "before"]).failed(1);
    assert_has(&taken, &["before", "already"]);

    step("one is kept by itself, and only so many");
    let scheduled = |cluster: &Cluster| {
        let list = cluster.kedge(&["snapshot", "list", "--format", "json"]).json();
        let all: Vec<String> = list.as_array().unwrap().iter().map(|one| one["name"].to_string()).collect();
        all.into_iter().filter(|name| name.contains("auto-")).collect::<Vec<_>>()
    };
    let first = eventually("a scheduled snapshot", || scheduled(&cluster).into_iter().next_back());
    let later = eventually("the first one gone", || {
        let now = scheduled(&cluster);
        (!now.contains(&first)).then_some(now)
    });
    assert!(later.len() <= 3, "{later:?}");
    assert_has(&cluster.kedge(&["status"]).ok(), &["last snapshot: "]);

    step("a flipped byte is found, wherever it is, and nothing is restored from it");
    let good = fs::read(&file).unwrap();
    let bad = cluster.dir().join("bad.snapshot");
    let pid = cluster.pid();
    for at in [100, 700, good.len() / 2, good.len() - 5] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&bad, &bytes).unwrap();
        let error = cluster.kedge(&["snapshot", "verify", &bad.display().to_string()]).failed(1);
        assert_has(&error, &["bad.snapshot", "no usable snapshot", "damaged"]);
        cluster.kedge(&["snapshot", "restore", &bad.display().to_string(), "--yes"]).failed(1);
    }
    fs::write(&bad, &good[..good.len() - 1]).unwrap();
    cluster.kedge(&["snapshot", "verify", &bad.display().to_string()]).failed(1);
    assert!(cluster.ended().is_none() && cluster.pid() == pid);
    let unasked = cluster.kedge(&["snapshot", "restore", "before"]).failed(2);
    assert_has(&unasked, &["--yes"]);

    step("everything deleted, something new made");
    cluster.kubectl(&["delete", "configmaps", "--all", "--wait=false"]).ok();
    cluster.kubectl(&["create", "configmap", "later", "--from-literal=value=x"]).ok();
    let last: u64 = cluster.field("configmap/later", ".metadata.resourceVersion").parse().unwrap();

    step("restored: all is back as it was, and no version is older than what was seen");
    let began = Instant::now();
    let out = cluster.kedge(&["snapshot", "restore", "before", "--yes"]).ok();
    let took = began.elapsed();
    assert_has(&out, &["restored", "former state", "before-restore-"]);
    cluster.write_kubeconfig();
    assert_eq!(contents(&cluster), expected);
    let versions = cluster.field("configmaps", ".items[*].metadata.resourceVersion");
    for version in versions.split(' ') {
        assert!(version.parse::<u64>().unwrap() > last, "{version} <= {last}");
    }
    cluster.rolled_out("deployment/web");
    assert_eq!(cluster.field("pods", ".items[*].metadata.uid"), pod);
    assert_eq!(cluster.field("pods", ".items[*].status.containerStatuses[*].restartCount"), "0");
    cluster.kubectl(&["create", "configmap", "after", "--from-literal=value=y"]).ok();
    let after: u64 = cluster.field("configmap/after", ".metadata.resourceVersion").parse().unwrap();
    assert!(after > last);
    killed_while_it_restores(&mut cluster, &expected, took);
    assert!(fs::read_dir(cluster.dir().join("data")).unwrap().flatten().any(|entry| {
        entry.file_name().to_string_lossy().starts_with("before-restore-")
            && entry.path().join("store").is_dir()
    }));
}

/// Wherever it is cut off, the next start finds all of the old state or all of the new one.
fn killed_while_it_restores(cluster: &mut Cluster, expected: &[String], took: Duration) {
    const ROUNDS: u32 = 12;
    step("killed while it restores, at twelve times");
    let mut found = Vec::new();
    // The first process was stopped by the restore before this; from then on they are in the background.
    assert_eq!(cluster.wait_ended(), 0);
    for round in 0..ROUNDS {
        let marker = format!("round-{round}");
        cluster.kubectl(&["create", "configmap", &marker, "--from-literal=value=x"]).ok();
        let last: u64 =
            cluster.field(&format!("configmap/{marker}"), ".metadata.resourceVersion").parse().unwrap();
        let mut child = cluster.spawn(&["snapshot", "restore", "before", "--yes"]);
        std::thread::sleep(took * round / ROUNDS);
        let _ = child.kill();
        child.wait().expect("wait for the command");
        let data = cluster.dir().join("data");
        let committed = data.join("restore.ready").exists();
        cluster.kedge(&["start"]).ok();
        cluster.wait_ready();
        assert!(!data.join("restore.ready").exists());
        assert_eq!(contents(cluster), expected);
        let kept = cluster.kubectl(&["get", "configmap", &marker]).code == 0;
        let after = cluster.kubectl(&["get", "configmap", "after"]).code == 0;
        // "after" went with the first restore that was done, each marker with its own.
        assert!(!kept || after || found.contains(&"new"), "a mixture");
        assert!(!committed || !kept, "what was committed is not there");
        cluster.kubectl(&["create", "configmap", &format!("since-{round}")]).ok();
        let now: u64 =
            cluster.field(&format!("configmap/since-{round}"), ".metadata.resourceVersion").parse().unwrap();
        assert!(now > last, "time ran backwards: {now} after {last}");
        found.push(if kept { "old" } else { "new" });
    }
    eprintln!("FIGURE restore of {took:?} killed {ROUNDS} times: {}", found.join(" "));
    cluster.rolled_out("deployment/web");
}

#[test]
fn a_snapshot_is_restored_on_another_machine() {
    let network = Network::new(2);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    fill(&first, 20);
    let expected = contents(&first);
    let file = first.dir().join("moved.snapshot").display().to_string();
    first.kedge(&["snapshot", "save", &file]).ok();
    let token = first.kubectl(&["create", "token", "default"]).ok();
    assert_eq!(first.stop(), 0);

    let second = Cluster::prepare_on(&network, 2);
    let out = second.kedge(&["snapshot", "restore", &file, "--yes", "--timeout", "120"]).ok();
    assert_has(&out, &[&first.node, "Node objects that were restored too"]);
    second.write_kubeconfig();
    assert_eq!(contents(&second), expected);
    second.wait(&format!("node/{}", second.node), "condition=Ready");

    step("it is the same cluster: what its key signed is good");
    let review = format!(
        r#"{{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{{"token":"{}"}}}}"#,
        token.trim()
    );
    let answer = second.kubectl_with(&["create", "-f", "-", "-o", "json"], &review).json();
    assert_eq!(answer["status"]["authenticated"], true, "{answer}");

    step("and it runs pods");
    second.kubectl(&["delete", "node", &first.node]).ok();
    second.kubectl(&["run", "hello", "--image=kedge.dev/hello:1.0"]).ok();
    second.wait("pod/hello", "condition=Ready");
}

#[test]
fn a_standby_goes_on_alone() {
    let network = Network::new(2);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    fill(&first, 20);
    let invitation = first.kedge(&["add-node", "--format", "json"]).json();
    let mut second = Cluster::prepare_on(&network, 2);
    second.kedge(&["join", invitation["join"][0].as_str().unwrap(), "--timeout", "120"]).ok();
    second.write_kubeconfig();
    let refused = second.kedge(&["recover", "--yes"]).failed(1);
    assert_has(&refused, &["nothing to recover", "remove-node"]);
    let expected = contents(&second);
    assert_eq!(expected.len(), 20);

    step("the only voter is lost for good");
    first.kill9();
    let process = second.pid();
    let asked = second.kedge(&["recover"]);
    assert_has(&asked.stdout, &["Lost is what", &first.node]);
    assert_has(&asked.failed(2), &["nothing was changed", "--yes"]);
    assert_eq!(second.pid(), process, "who only asks stops nothing");
    let out = second.kedge(&["recover", "--yes", "--timeout", "200"]).ok();
    assert_has(&out, &["Lost is what", &first.node, "recovered at revision", "before-recover"]);
    assert_eq!(contents(&second), expected);
    second.kubectl(&["create", "configmap", "after", "--from-literal=value=x"]).ok();
    assert_eq!(members(&second), [second.node.clone()]);
    second.wait(&format!("node/{}", first.node), "delete");

    step("it was a mistake: back to what was before, as the command says, and the lost one is there again");
    let way_back = out.lines().find(|line| line.contains("before-recover") && line.contains("&&"));
    let way_back = way_back.expect("the way back").trim().replacen("kedge ", "\"$KEDGE\" ", 1);
    let way_back = way_back.replace("&& kedge ", "&& \"$KEDGE\" ");
    second.shell(&way_back);
    first.run();
    first.wait_ready();
    eventually("both members", || (members(&first) == members(&second)).then_some(()));
    assert_eq!(members(&second).len(), 2);
    // Both answer that from copies of their own; what follows needs a leader.
    second.wait_ready();
    assert_eq!(contents(&second), expected);
    second.kubectl(&["get", "configmap", "after"]).failed(1);
    second.wait(&format!("node/{}", first.node), "condition=Ready");

    step("once more, for good");
    first.kill9();
    second.kedge(&["recover", "--yes", "--timeout", "200"]).ok();
    second.kubectl(&["create", "configmap", "after", "--from-literal=value=x"]).ok();

    step("the lost one may join again, after it has forgotten everything");
    first.kedge(&["leave", "--force", "--without", "dns"]).ok();
    let invitation = second.kedge(&["add-node", "--format", "json"]).json();
    first.kedge(&["join", invitation["join"][0].as_str().unwrap(), "--timeout", "120"]).ok();
    second.wait(&format!("node/{}", first.node), "condition=Ready");
    assert_eq!(members(&second).len(), 2, "nobody of before");
    let nodes = second.kubectl(&["get", "nodes", "-o", "name"]).ok();
    assert_eq!(nodes.lines().count(), 2, "{nodes}");
    second.kill9();
}

/// The names of the datastore's members.
fn members(node: &Cluster) -> Vec<String> {
    eventually("the node's status", || {
        let members = kedge_tests::trio::datastore(node)?["members"].as_array()?.clone();
        let mut names: Vec<String> =
            members.iter().filter_map(|member| Some(member["name"].as_str()?.to_owned())).collect();
        names.sort();
        Some(names)
    })
}

#[test]
fn certificates_are_checked_and_rotated() {
    let mut cluster = Cluster::start();
    let found = cluster.kedge(&["certs", "check", "--format", "json"]).json();
    let names: Vec<&str> = found.as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    for name in ["apiserver", "kubelet", "kubelet-client", "admin", "ca", "node"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert_has(&cluster.kedge(&["certs", "check"]).ok(), &["CERTIFICATE", "apiserver", "system:node:"]);

    let before = certificate_files(&cluster);
    let pid = cluster.pid();
    cluster.kedge(&["certs", "rotate"]).ok();
    let after = certificate_files(&cluster);
    for (name, old) in &before {
        assert_eq!(after[name] == *old, name.contains("ca"), "{name}");
    }
    assert!(cluster.ended().is_none() && cluster.pid() == pid);

    step("the old kubeconfig and the new one work; logs go through the kubelet's listener");
    cluster.kubectl(&["run", "hello", "--image=kedge.dev/hello:1.0"]).ok();
    cluster.wait("pod/hello", "condition=Ready");
    cluster.write_kubeconfig();
    cluster.kubectl(&["logs", "hello"]).ok();

    step("rotated while the node is stopped");
    assert_eq!(cluster.stop(), 0);
    cluster.kedge(&["certs", "rotate", "--format", "json"]).ok();
    let offline = certificate_files(&cluster);
    assert!(offline["apiserver"] != after["apiserver"] && offline["ca"] == after["ca"]);
    cluster.run();
    cluster.wait_ready();
}

fn fill(cluster: &Cluster, count: usize) {
    let manifest: Vec<String> = (0..count)
        .map(|i| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c-{i:03}}}\ndata: {{value: '{i}'}}\n")
        })
        .collect();
    cluster.apply(&manifest.join("---\n"));
}

/// Names and values of the ConfigMaps that [`fill`] made.
fn contents(cluster: &Cluster) -> Vec<String> {
    let path = "jsonpath={range .items[*]}{.metadata.name}={.data.value}{\"\\n\"}{end}";
    let text = cluster.kubectl(&["get", "configmaps", "-o", path]).ok();
    text.lines().filter(|line| line.starts_with("c-")).map(str::to_owned).collect()
}

fn certificate_files(cluster: &Cluster) -> BTreeMap<String, Vec<u8>> {
    let folder: &Path = &cluster.dir().join("data/pki");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|ending| ending == "crt"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect()
}
