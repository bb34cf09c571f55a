//! `kill -9` of kedge with pods running: nothing is restarted, nothing that was acknowledged is lost.

use kedge_tests::{BUSYBOX, Cluster, assert_has, eventually, processes_naming, step};

use kedge_tests::trio::containers;

#[test]
fn killed_and_started_again() {
    let mut cluster = Cluster::start();
    cluster.import_busybox();

    step("pods, a Service and some data");
    cluster.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0", "--replicas=3"]).ok();
    cluster.rolled_out("deployment/web");
    cluster.kubectl(&["expose", "deployment", "web", "--type=NodePort", "--port=8080"]).ok();
    cluster
        .kubectl(&[
            "run",
            "box",
            &format!("--image={BUSYBOX}"),
            "--",
            "sh",
            "-c",
            "trap 'exit 0' TERM; while true; do sleep 1; done",
        ])
        .ok();
    cluster.wait("pod/box", "condition=Ready");
    let address =
        format!("{}:{}", cluster.node_address(), cluster.field("service/web", ".spec.ports[0].nodePort"));
    cluster.http(&address, "/");
    let before = containers(&cluster);
    let node = cluster.field(&format!("node/{}", cluster.node), ".metadata.uid");
    let shims = shims(&cluster);

    for round in 0..3 {
        step(&format!("kill -9 right after a write was acknowledged ({round})"));
        let name = format!("written-{round}");
        cluster.kubectl(&["create", "configmap", &name, "--from-literal=k=v"]).ok();
        cluster.kill9();
        assert_eq!(self::shims(&cluster), shims, "containers ended with kedge");
        cluster.http(&address, "/");
        cluster.run();
        cluster.wait_ready();
        for written in 0..=round {
            assert_eq!(cluster.field(&format!("configmap/written-{written}"), ".data.k"), "v");
        }
    }

    step("the same node, the same containers, no restart");
    cluster.wait(&format!("node/{}", cluster.node), "condition=Ready");
    assert_eq!(cluster.field(&format!("node/{}", cluster.node), ".metadata.uid"), node);
    cluster.wait("pod/box", "condition=Ready");
    cluster.rolled_out("deployment/web");
    assert_eq!(containers(&cluster), before);
    let counts = cluster
        .kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"])
        .ok();
    assert_eq!(counts, "0 0 0 0");

    step("the adopted pods are governed again");
    assert_eq!(cluster.exec("box", "echo here"), "here\n");
    cluster.http(&address, "/");
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=1"]).ok();
    eventually("two pods to end", || {
        let pods = cluster.get(&["pods", "-l", "app=web"]);
        (pods["items"].as_array().unwrap().len() == 1).then_some(())
    });

    step("a container that ends while kedge is away is seen and restarted");
    let pid = container_process(&cluster, "box");
    cluster.kill9();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    cluster.run();
    cluster.wait_ready();
    eventually("the restart", || {
        (cluster.field("pod/box", ".status.containerStatuses[0].restartCount") == "1").then_some(())
    });
    cluster.wait("pod/box", "condition=Ready");

    step("an object deleted just before the kill is gone, and so are its containers");
    cluster.kubectl(&["delete", "pod", "box", "--wait=false"]).ok();
    cluster.kill9();
    cluster.run();
    cluster.wait_ready();
    cluster.wait("pod/box", "delete");

    step("a stop by SIGTERM is a success");
    assert_eq!(cluster.stop(), 0);
    assert_has(&cluster.log(), &["stopping"]);
    cluster.run();
    cluster.wait_ready();
    assert_eq!(containers(&cluster).len(), 1);
}

/// The end of a container reaches the runtime's events, what CRI says of it and the kubelet's first look one after
/// the other: whichever of them kedge's start falls between, it is seen.
#[test]
fn what_ends_while_kedge_starts_is_seen() {
    let mut cluster = Cluster::start();
    cluster.import_busybox();
    let pods: Vec<(String, u64)> =
        [0, 20, 40, 60, 80, 100, 150, 200].iter().map(|after| (format!("ends-{after}"), *after)).collect();
    for (name, _) in &pods {
        let image = format!("--image={BUSYBOX}");
        cluster.kubectl(&["run", name, &image, "--restart=Never", "--", "sleep", "100000"]).ok();
    }
    for (name, _) in &pods {
        cluster.wait(&format!("pod/{name}"), "condition=Ready");
    }
    for (name, after) in &pods {
        let pid = container_process(&cluster, name);
        cluster.kill9();
        cluster.run();
        std::thread::sleep(std::time::Duration::from_millis(*after));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        cluster.wait_ready();
        eventually("the end to be seen", || {
            (cluster.field(&format!("pod/{name}"), ".status.phase") == "Failed").then_some(())
        });
    }
}

/// What a power cut leaves of an image that was unpacked just before: containerd knows the layer, its file is
/// empty. The record of what was synced is of another boot and does not name it.
#[test]
fn layers_that_were_not_synced_before_a_power_cut_are_unpacked_again() {
    let mut cluster = Cluster::start();
    let deploy = |cluster: &Cluster| {
        cluster.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0"]).ok();
        cluster.rolled_out("deployment/web");
    };
    deploy(&cluster);
    let dir = cluster.dir().display().to_string();
    let record = cluster.dir().join("data/kubelet/layers");
    eventually("the record of the layer", || {
        std::fs::read_to_string(&record).is_ok_and(|text| text.contains(" sha256:")).then_some(())
    });
    cluster.kubectl(&["delete", "deployment", "web", "--cascade=foreground"]).ok();
    eventually("the pod to end", || shims(&cluster).is_empty().then_some(()));
    assert_eq!(cluster.stop(), 0);

    step("the layer is empty, and the record of another boot");
    let layers = cluster.shell(&format!("find {dir}/*/containerd {dir}/containerd -name kedge -path '*/snapshots/*' -type f 2>/dev/null || true"));
    assert!(!layers.trim().is_empty(), "no unpacked layer was found");
    for layer in layers.lines() {
        std::fs::OpenOptions::new().write(true).open(layer).unwrap().set_len(0).unwrap();
    }
    std::fs::write(&record, "another-boot\n").unwrap();
    cluster.run();
    cluster.wait_ready();
    deploy(&cluster);
    assert_has(&cluster.log(), &["before this layer's files were on the disk; it is unpacked again"]);
}

fn shims(cluster: &Cluster) -> Vec<i32> {
    let mut pids: Vec<i32> = processes_naming(cluster.dir())
        .into_iter()
        .filter(|process| process.command.contains("containerd-shim"))
        .map(|process| process.pid)
        .collect();
    pids.sort_unstable();
    pids
}

/// The host's id of the process that the container of the pod began with: its cgroup names the
/// container, and in its own namespace it is number 1 (ids wrap around, so the lowest may be a child).
fn container_process(cluster: &Cluster, pod: &str) -> i32 {
    let id = cluster.field(&format!("pod/{pod}"), ".status.containerStatuses[0].containerID");
    let id = id.rsplit('/').next().unwrap().to_owned();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("cgroup").contains(&id)
                && read("status").lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
        })
        .expect("the container has a first process")
}
