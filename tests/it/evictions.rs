//! Pods that the kubelet ends by itself: they use more of its disk than they may, or the node has too little.

use std::process::Command;

use kedge_tests::{BUSYBOX, Cluster, Disk, assert_has, eventually, skipped, step};

/// A pod whose containers run these lines; `spec` are lines of the pod.
fn pod(name: &str, spec: &str, containers: &[(&str, &str)]) -> String {
    let list: String = containers
        .iter()
        .enumerate()
        .map(|(at, (line, more))| {
            format!(
                "  - name: c{at}\n    image: {BUSYBOX}\n    imagePullPolicy: IfNotPresent\n    command: [sh, -c, {line:?}]\n{more}"
            )
        })
        .collect();
    format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{spec}  containers:\n{list}")
}

/// Writes so many mebibytes and stays; it does not end when it is asked to.
fn filling(file: &str, mebibytes: u32) -> String {
    format!("trap '' TERM; dd if=/dev/zero of={file} bs=1M count={mebibytes}; while true; do sleep 1; done")
}

const IDLE: &str = "trap '' TERM; while true; do sleep 1; done";

fn wait_evicted(cluster: &Cluster, pod: &str) -> String {
    cluster.wait(&format!("pod/{pod}"), "jsonpath={.status.reason}=Evicted");
    assert_eq!(cluster.field(&format!("pod/{pod}"), ".status.phase"), "Failed");
    cluster.field(&format!("pod/{pod}"), ".status.message")
}

#[test]
fn a_pod_keeps_within_its_limits() {
    let cluster = Cluster::start();
    cluster.import_busybox();
    let volume = |size: &str| format!("  volumes: [{{name: scratch, emptyDir: {{{size}}}}}]\n");
    let mounted = |limit: &str| {
        format!(
            "    volumeMounts: [{{name: scratch, mountPath: /scratch}}]\n    resources: {{limits: {{{limit}}}}}\n"
        )
    };
    // Nobody waits ten minutes for any of them.
    let patient = "  terminationGracePeriodSeconds: 600\n";
    let file = filling("/scratch/file", 8);
    let (small, large) = (mounted("ephemeral-storage: 4Mi"), mounted("ephemeral-storage: 100Mi"));
    let log = "head -c 6000000 /dev/zero | tr '\\0' 'x' | fold -w 1000; sleep 3600";
    for manifest in [
        pod("volume", &format!("{patient}{}", volume("sizeLimit: 4096Ki")), &[(&file, &mounted(""))]),
        pod("whole", &format!("{patient}{}", volume("")), &[(&file, &small)]),
        pod("logs", &volume(""), &[(log, &small), (IDLE, &large)]),
        pod("within", &volume("sizeLimit: 50Mi"), &[(&file, &large)]),
    ] {
        cluster.apply(&manifest);
    }

    step("what is too much ends the pod, in upstream's words");
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"scratch\" exceeds the limit \"4Mi\". "),
        ("whole", "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
        ("logs", "Container c0 exceeded its local ephemeral storage limit \"4Mi\". "),
    ] {
        assert_eq!(wait_evicted(&cluster, name), message, "{name}");
        assert_has(&cluster.event(&format!("Pod/{name}"), "Evicted"), &[message.trim_end()]);
        // It is the pod's own fault.
        let condition = ".status.conditions[?(@.type==\"DisruptionTarget\")].status";
        assert_eq!(cluster.field(&format!("pod/{name}"), condition), "", "{name}");
    }

    step("its volumes are gone, and the others run");
    let uid = cluster.field("pod/volume", ".metadata.uid");
    let folder = cluster.dir().join("data/kubelet/pods").join(&uid);
    eventually("the pod's folder to go", || (!folder.exists()).then_some(()));
    assert_eq!(cluster.field("pod/within", ".status.phase"), "Running");
    assert_eq!(cluster.field("pod/within", ".status.containerStatuses[0].restartCount"), "0");

    step("Prometheus is told why");
    let counted =
        cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/metrics", cluster.node)]);
    let counted = counted.ok();
    for limit in ["emptydirfs.limit", "ephemeralpodfs.limit", "ephemeralcontainerfs.limit"] {
        assert_has(&counted, &[&format!("kubelet_evictions{{eviction_signal=\"{limit}\"}} 1\n")]);
    }
}

/// Runs pods, then starts the node again with floors that it cannot reach.
fn under_pressure(flags: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::prepare();
    cluster.set("--eviction-hard", "off");
    cluster.run();
    cluster.wait_ready();
    cluster.import_busybox();
    let patient = "  terminationGracePeriodSeconds: 600\n";
    cluster.apply(&pod("plain", patient, &[(&filling("/file", 1), "")]));
    cluster.apply(&pod("needed", "  priorityClassName: system-node-critical\n", &[(IDLE, "")]));
    for name in ["plain", "needed"] {
        cluster.wait(&format!("pod/{name}"), "condition=Ready");
    }
    assert_eq!(cluster.stop(), 0);
    for (flag, value) in flags {
        cluster.set(flag, value);
    }
    cluster.run();
    cluster.wait_ready();
    cluster
}

/// What is the same however the floor was met.
fn judge_eviction(cluster: &Cluster, resource: &str, pressure: &str) {
    let message = wait_evicted(cluster, "plain");
    let low = format!("The node was low on resource: {resource}. Threshold quantity: ");
    assert_has(&message, &[&low, ", available: "]);
    if resource != "pids" {
        let used = format!("request is 0, has larger consumption of {resource}. ");
        assert_has(&message, &["Container c0 was using ", &used]);
    }
    let condition = ".status.conditions[?(@.type==\"DisruptionTarget\")]";
    assert_eq!(cluster.field("pod/plain", &format!("{condition}.status")), "True");
    assert_eq!(cluster.field("pod/plain", &format!("{condition}.reason")), "TerminationByKubelet");
    assert_eq!(cluster.field("pod/plain", &format!("{condition}.message")), message);
    assert_has(&cluster.event("Pod/plain", "Evicted"), &[message.trim_end()]);
    assert_has(
        &cluster.event(&format!("Node/{}", cluster.node), "EvictionThresholdMet"),
        &[&format!("Attempting to reclaim {resource}")],
    );
    cluster.wait(&format!("node/{}", cluster.node), &format!("condition={pressure}"));
    assert_eq!(cluster.field("pod/needed", ".status.phase"), "Running");
}

#[test]
fn a_node_without_room_ends_pods_but_not_those_it_needs() {
    let mut cluster = under_pressure(&[
        ("--eviction-hard", "nodefs.available<99.9%"),
        ("--eviction-pressure-transition-period", "1s"),
    ]);
    judge_eviction(&cluster, "ephemeral-storage", "DiskPressure");

    step("a critical pod runs on");
    assert_eq!(cluster.field("pod/needed", ".status.containerStatuses[0].restartCount"), "0");

    step("who comes past the scheduler is refused, but for critical ones");
    let here = format!("  nodeName: {}\n", cluster.node);
    let critical = format!("{here}  priorityClassName: system-node-critical\n");
    cluster.apply(&pod("late", &here, &[(IDLE, "")]));
    cluster.apply(&pod("late-needed", &critical, &[(IDLE, "")]));
    assert_eq!(wait_evicted(&cluster, "late"), "Pod was rejected: The node had condition: [DiskPressure]. ");
    cluster.wait("pod/late-needed", "condition=Ready");

    step("with room again pods are taken");
    assert_eq!(cluster.stop(), 0);
    cluster.set("--eviction-hard", "off");
    cluster.run();
    cluster.wait_ready();
    cluster.wait(&format!("node/{}", cluster.node), "condition=DiskPressure=false");
    cluster.apply(&pod("again", "", &[(IDLE, "")]));
    cluster.wait("pod/again", "condition=Ready");
}

#[test]
fn a_soft_floor_is_borne_for_a_while() {
    let cluster = under_pressure(&[
        ("--eviction-soft", "nodefs.available<99.9%"),
        ("--eviction-soft-grace-period", "nodefs.available=12s"),
        ("--eviction-max-pod-grace-period", "2"),
        ("--eviction-minimum-reclaim", "nodefs.available=1Gi"),
    ]);
    judge_eviction(&cluster, "ephemeral-storage", "DiskPressure");
}

#[test]
fn memory_that_is_short_ends_those_who_asked_for_none() {
    let cluster = under_pressure(&[("--eviction-hard", "memory.available<99%")]);
    judge_eviction(&cluster, "memory", "MemoryPressure");

    step("of those who come, the ones that asked for memory are taken first");
    let here = format!("  nodeName: {}\n", cluster.node);
    let asks = "    resources: {requests: {memory: 20Mi}}\n";
    cluster.apply(&pod("best-effort", &here, &[(IDLE, "")]));
    assert_eq!(
        wait_evicted(&cluster, "best-effort"),
        "Pod was rejected: The node had condition: [MemoryPressure]. "
    );
    // It is taken, and then it is the only one that can go.
    cluster.apply(&pod("burstable", &here, &[(IDLE, asks)]));
    assert_has(&wait_evicted(&cluster, "burstable"), &["The node was low on resource: memory. "]);
}

#[test]
fn process_ids_that_are_short() {
    let cluster = under_pressure(&[("--eviction-hard", "pid.available<99.99%")]);
    judge_eviction(&cluster, "pids", "PIDPressure");
}

#[test]
fn who_fills_the_disk_goes_and_the_others_stay() {
    let mut cluster = Cluster::prepare();
    let folder = cluster.dir().join("data/kubelet");
    // Images and logs are elsewhere: what lies here is the pods' alone.
    let Some(_disk) = Disk::mount(&folder, 300) else {
        skipped("who fills the disk goes", Disk::NONE);
        return;
    };
    let out = Command::new("stat").args(["-f", "-c", "%d"]).arg(&folder).output().expect("stat");
    let inodes: u64 = String::from_utf8_lossy(&out.stdout).trim().parse().expect("free inodes");
    let floor = inodes - 5000;
    cluster.set("--eviction-hard", &format!("nodefs.available<100Mi,nodefs.inodesFree<{floor}"));
    cluster.set("--eviction-pressure-transition-period", "2s");
    cluster.run();
    cluster.wait_ready();
    cluster.import_busybox();
    let node = format!("node/{}", cluster.node);
    let volume = "  volumes: [{name: scratch, emptyDir: {}}]\n";
    let mounted = "    volumeMounts: [{name: scratch, mountPath: /scratch}]\n";
    let files = format!("i=0; while [ $i -lt 10000 ]; do : > /scratch/$i; i=$((i+1)); done; {IDLE}");
    cluster.apply(&pod("modest", volume, &[(&filling("/scratch/file", 10), mounted)]));
    // The critical one uses more, and stays all the same.
    cluster.apply(&pod(
        "important",
        &format!("{volume}  priorityClassName: system-cluster-critical\n"),
        &[(&filling("/scratch/file", 20), mounted)],
    ));
    for name in ["modest", "important"] {
        cluster.wait(&format!("pod/{name}"), "condition=Ready");
    }
    for (name, line, resource) in
        [("writer", filling("/scratch/file", 190), "ephemeral-storage"), ("files", files, "inodes")]
    {
        step(name);
        cluster.apply(&pod(name, volume, &[(&line, mounted)]));
        let low = format!("The node was low on resource: {resource}. Threshold quantity: ");
        assert_has(&wait_evicted(&cluster, name), &[&low]);
        cluster.wait(&node, "condition=DiskPressure=false");
        eventually("the taint to go", || {
            (!cluster.field(&node, ".spec.taints[*].key").contains("disk-pressure")).then_some(())
        });
        for other in ["modest", "important"] {
            assert_eq!(cluster.field(&format!("pod/{other}"), ".status.phase"), "Running", "{other}");
        }
    }
}
