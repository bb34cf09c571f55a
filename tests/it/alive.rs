//! What stops answering for a while and comes back: the API server, containerd, the network plugins. The node
//! says so, goes on with what it can, and is whole again by itself.

use std::fs;
use std::time::{Duration, Instant};

use kedge_tests::{Cluster, Network, assert_has, eventually, step};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use kedge_tests::trio::invitation;

/// One part of `kedge status`, while the node answers.
fn part(node: &Cluster, name: &str) -> Option<Value> {
    let status: Value = serde_json::from_str(&node.kedge(&["status", "--format", "json"]).stdout).ok()?;
    status["components"].as_array()?.iter().find(|part| part["name"] == name).cloned()
}

/// Waits until a part is not ready because of `word`, and gives what helps.
fn fails(node: &Cluster, name: &str, word: &str) -> String {
    eventually(&format!("{name} to say {word:?}"), || {
        let part = part(node, name)?;
        let said = part["lastError"].as_str().or_else(|| part["lastError"].as_str())?.to_owned();
        (part["ready"] == false && said.contains(word))
            .then(|| part["remedy"].as_str().unwrap_or_default().to_owned())
    })
}

/// The node's process lives for so long.
fn stays_up(node: &mut Cluster, long: Duration) {
    let until = Instant::now() + long;
    while Instant::now() < until {
        if let Some(code) = node.ended() {
            panic!("kedge ended with {code}:\n{}", node.log());
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// A process that was stopped; it goes on in the end, whatever happens.
struct Frozen(Pid);

impl Frozen {
    fn containerd_of(node: &Cluster) -> Self {
        let file = node.dir().join("run/containerd/containerd.pid");
        let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        Self(Pid::from_raw(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn a_node_is_whole_again() {
    let mut cluster = Cluster::prepare();
    let plugins = cluster.dir().join("cni");
    fs::create_dir(&plugins).unwrap();
    cluster.set("--cni-bin-dir", &plugins.display().to_string());

    step("without network plugins the node says so, and they may come later");
    cluster.run();
    let remedy = fails(&cluster, "network", "CNI plugins are missing");
    assert_has(&remedy, &["containernetworking-plugins", "cni-bin-dir"]);
    fails(&cluster, "kubelet", "CNI plugins are missing");
    let packaged =
        ["/usr/lib/cni", "/opt/cni/bin"].into_iter().find(|dir| fs::exists(format!("{dir}/bridge")).unwrap());
    for plugin in fs::read_dir(packaged.expect("network plugins are installed")).unwrap().flatten() {
        fs::copy(plugin.path(), plugins.join(plugin.file_name())).unwrap();
    }
    cluster.wait_ready();
    cluster.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0", "--replicas=2"]).ok();
    cluster.kubectl(&["expose", "deployment", "web", "--port=8080"]).ok();
    cluster.rolled_out("deployment/web");
    let endpoints = |cluster: &Cluster, count: usize| {
        eventually(&format!("{count} endpoints"), || {
            let found = cluster.try_field("endpoints/web", ".subsets[*].addresses[*].ip")?;
            (found.split_whitespace().count() == count).then_some(())
        });
    };
    endpoints(&cluster, 2);
    let ids = cluster.field("pods", ".items[*].status.containerStatuses[*].containerID");

    step("pods that somebody says are not ready are ready again");
    let uid = cluster.field("pods", ".items[0].metadata.uid");
    let name = cluster.field("pods", ".items[0].metadata.name");
    let since = "2001-02-03T04:05:06Z";
    let marked = format!(
        r#"{{"metadata":{{"uid":"{uid}"}},"status":{{"conditions":[{{"type":"Ready","status":"False","lastTransitionTime":"{since}"}}]}}}}"#
    );
    let patch =
        ["patch", "pod", &name, "--subresource=status", "--type=strategic", "-p", &marked, "-o", "json"];
    let answered = cluster.kubectl(&patch).json();
    let conditions = answered["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "False"), "{answered:#}");
    cluster.wait(&format!("pod/{name}"), "condition=Ready");
    endpoints(&cluster, 2);
    // What is not the kubelet's stays.
    let foreign = r#"{"status":{"conditions":[{"type":"example.com/mine","status":"True"}]}}"#;
    cluster.kubectl(&["patch", "pod", &name, "--subresource=status", "--type=strategic", "-p", foreign]).ok();
    let version = || cluster.field(&format!("pod/{name}"), ".metadata.resourceVersion");
    let rested = eventually("what it had to write to be written", || {
        let before = version();
        std::thread::sleep(Duration::from_secs(1));
        (version() == before).then_some(before)
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(version(), rested, "written for nothing");

    step("containerd hangs: the node says so");
    let frozen = Frozen::containerd_of(&cluster);
    let remedy = fails(&cluster, "containerd", "does not answer");
    assert_has(&remedy, &["log", "kill -9"]);
    fails(&cluster, "kubelet", "container runtime is down");
    cluster.wait(&format!("node/{}", cluster.node), "condition=Ready=False");
    assert_ne!(cluster.kedge(&["status"]).code, 0);

    step("it goes on: so does the node, and nothing was restarted");
    drop(frozen);
    cluster.wait(&format!("node/{}", cluster.node), "condition=Ready");
    cluster.wait_ready();
    cluster.rolled_out("deployment/web");
    cluster.wait(&format!("pod/{name}"), "condition=Ready");
    endpoints(&cluster, 2);
    assert_eq!(cluster.field("pods", ".items[*].status.containerStatuses[*].containerID"), ids);
}

#[test]
fn a_containerd_that_is_not_there_is_named() {
    let mut cluster = Cluster::prepare();
    cluster.set("--containerd", "/nonexistent/containerd");
    cluster.run();
    assert_ne!(cluster.wait_ended(), 0);
    let status = cluster.kedge(&["status"]);
    let said = format!("{}{}", status.stdout, status.stderr);
    assert_has(
        &said,
        &["/nonexistent/containerd", "remedy: ", "install the package containerd", "the setting containerd"],
    );
}

#[test]
fn a_worker_starts_before_its_control_plane() {
    let network = Network::new(2);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    let mut worker = Cluster::prepare_on(&network, 2);
    worker.kedge(&["join", &invitation(&first, &[]), "--worker", "--timeout", "90"]).ok();
    let node = format!("node/{}", worker.node);
    first.wait(&node, "condition=Ready");

    step("both are off, and the worker is on first");
    worker.kill9();
    first.kill9();
    worker.run();
    let remedy = fails(&worker, "kubelet", "the API server does not answer");
    assert_has(&remedy, &["by itself", "kedge inspect"]);
    stays_up(&mut worker, Duration::from_secs(20));

    step("its control plane comes: the worker goes on by itself");
    first.run();
    first.wait_ready();
    first.wait(&node, "condition=Ready");
    worker.kedge(&["status", "--wait-ready", "--timeout", "300"]).ok();

    step("nobody hears it for more than 40 s: its pods are not ready, and are again when it is back");
    first.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0", "--replicas=1"]).ok();
    let on_worker = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeName":"{}"}}}}}}}}"#, worker.node);
    first.kubectl(&["patch", "deployment", "web", "-p", &on_worker]).ok();
    first.rolled_out("deployment/web");
    network.connect(2, false);
    first.wait(&node, "condition=Ready=Unknown");
    let pods = ["wait", "pods", "-l", "app=web", "--timeout=300s"];
    first.kubectl(&[&pods[..], &["--for=condition=Ready=False"]].concat()).ok();
    fails(&worker, "kubelet", "the API server does not answer");
    network.connect(2, true);
    first.wait(&node, "condition=Ready");
    first.kubectl(&[&pods[..], &["--for=condition=Ready"]].concat()).ok();
    worker.kedge(&["status", "--wait-ready", "--timeout", "300"]).ok();
}
