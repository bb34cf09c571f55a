//! What an operator tells the kubelet, and what it shows: thresholds, sysctls, RuntimeClasses, the host's logs.

use std::fs;
use std::time::Duration;

use kedge_tests::{BUSYBOX, Cluster, assert_has, eventually, step};

/// A pod with one busybox container that runs `line`; `spec` are lines of the pod.
fn pod(name: &str, line: &str, spec: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
{spec}
  containers:
  - name: c
    image: {BUSYBOX}
    command: [sh, -c, {line:?}]
"#
    )
}

#[test]
fn what_the_kubelet_is_told() {
    let mut cluster = Cluster::prepare();
    cluster.set("--eviction-hard", "memory.available<300Mi,nodefs.available<1Gi,nodefs.inodesFree<1%");
    cluster.set("--allowed-unsafe-sysctls", "kernel.shm*");
    cluster.run();
    cluster.wait_ready();
    cluster.import_busybox();
    let node = format!("node/{}", cluster.node);

    step("what thresholds keep free is not allocatable");
    let amount = |path: &str, name: &str| -> i64 {
        let text = cluster.field(&node, &format!(".status.{path}.{name}"));
        match text.strip_suffix("Ki") {
            Some(kib) => kib.parse::<i64>().unwrap() * 1024,
            None => text.parse().unwrap(),
        }
    };
    let kept = |name: &str| amount("capacity", name) - amount("allocatable", name);
    let pages: i64 = kept("memory") - (300 << 20);
    assert!((0..=1024).contains(&pages), "{pages}");
    let disk = kept("ephemeral-storage") - (1 << 30);
    assert!((-1024..=1024).contains(&disk), "{disk}");

    step("an unsafe sysctl that is allowed is set, another one is refused");
    let sysctl = |name: &str, value: &str| {
        format!("  securityContext: {{sysctls: [{{name: {name}, value: {value:?}}}]}}")
    };
    cluster.apply(&pod("allowed", "cat /proc/sys/kernel/shmmni", &sysctl("kernel.shmmni", "1234")));
    cluster.wait("pod/allowed", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "allowed"]).ok(), "1234\n");
    cluster.apply(&pod("forbidden", "true", &sysctl("kernel.msgmax", "65536")));
    cluster.wait("pod/forbidden", "jsonpath={.status.reason}=SysctlForbidden");
    assert_has(
        &cluster.field("pod/forbidden", ".status.message"),
        &["Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted"],
    );

    step("a termination message is the end of its file, however large that is");
    let line = "dd if=/dev/zero of=/dev/termination-log bs=1M seek=1048576 count=0 && \
                echo the end >> /dev/termination-log";
    cluster.apply(&pod("wordy", line, ""));
    cluster.wait("pod/wordy", "jsonpath={.status.phase}=Succeeded");
    let message = cluster.field("pod/wordy", ".status.containerStatuses[0].state.terminated.message");
    assert!(message.trim_end().ends_with("the end"), "{message:?}");

    step("a RuntimeClass's handler goes to the runtime");
    for (name, handler) in [("plain", "runc"), ("unknown", "nonesuch")] {
        cluster.apply(&format!(
            "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: {name}}}\nhandler: {handler}\n"
        ));
        cluster.apply(&pod(name, "echo here", &format!("  runtimeClassName: {name}")));
    }
    cluster.wait("pod/plain", "jsonpath={.status.phase}=Succeeded");
    assert_has(
        &cluster.event("Pod/unknown", "FailedCreatePodSandBox"),
        &["Failed to create pod sandbox: rpc error: code = ", "no runtime for \"nonesuch\" is configured"],
    );
    assert_eq!(cluster.field("pod/unknown", ".status.phase"), "Pending");

    step("a class that was deleted since");
    cluster.kubectl(&["delete", "runtimeclass", "unknown"]).ok();
    eventually("the event", || {
        let events = cluster.get(&["events", "--field-selector=involvedObject.name=unknown"]);
        let wanted = "Failed to create pod sandbox: runtimeclass.node.k8s.io \"unknown\" not found";
        events["items"].as_array()?.iter().find(|event| event["message"] == wanted).map(|_| ())
    });

    step("the host's logs, through the API server");
    fs::write(cluster.dir().join("log/host.log"), "a line\n").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", cluster.dir().join("log/out.log")).unwrap();
    let raw = |path: &str| {
        let path = format!("/api/v1/nodes/{}/proxy/logs/{path}", cluster.node);
        cluster.kubectl(&["get", "--raw", &path])
    };
    assert_has(&raw("").ok(), &["<a href=\"host.log\">host.log</a>", "<a href=\"pods/\">pods/</a>"]);
    assert_eq!(raw("host.log").ok(), "a line\n");
    for refused in ["out.log", "nothing.log", "%2e%2e/config.yaml"] {
        assert_ne!(raw(refused).code, 0, "{refused}");
    }
}

#[test]
fn a_full_disk_is_pressure() {
    let mut cluster = Cluster::prepare();
    // More than any machine of this test has: the condition comes at once.
    cluster.set("--eviction-hard", "nodefs.available<99.9%");
    cluster.run();
    cluster.wait_ready();
    let node = format!("node/{}", cluster.node);
    cluster.wait(&node, "condition=DiskPressure");
    let condition = ".status.conditions[?(@.type==\"DiskPressure\")]";
    assert_eq!(cluster.field(&node, &format!("{condition}.reason")), "KubeletHasDiskPressure");
    assert_eq!(cluster.field(&node, &format!("{condition}.message")), "kubelet has disk pressure");
    eventually("the taint", || {
        cluster.field(&node, ".spec.taints[*].key").contains("node.kubernetes.io/disk-pressure").then_some(())
    });

    step("another setting at the next start: the pressure is over");
    assert_eq!(cluster.stop(), 0);
    cluster.set("--eviction-hard", "off");
    cluster.run();
    cluster.wait_ready();
    cluster.wait(&node, "condition=DiskPressure=false");
    eventually("the taint to go", || {
        (!cluster.field(&node, ".spec.taints[*].key").contains("disk-pressure")).then_some(())
    });
}

/// How often the kubelet has asked the runtime for a sandbox: once each time that it reads a pod.
fn reads(cluster: &Cluster) -> u64 {
    let text =
        cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/metrics", cluster.node)]).ok();
    let name = "kubelet_runtime_operations_total{operation_type=\"podsandbox_status\"} ";
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    found.map_or(0, |number| number.parse().expect("a number"))
}

/// The same when nothing more comes.
fn settled_reads(cluster: &Cluster) -> u64 {
    let mut last = reads(cluster);
    eventually("the kubelet to rest", || {
        std::thread::sleep(Duration::from_secs(2));
        let now = reads(cluster);
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
}

#[test]
fn a_pod_is_looked_at_for_what_concerns_it() {
    let mut cluster = Cluster::prepare();
    cluster.run();
    cluster.wait_ready();
    cluster.import_busybox();
    let before = settled_reads(&cluster);
    cluster.apply(&pod("box", "sleep 3600", "  readinessGates: [{conditionType: example.com/open}]"));
    cluster.wait("pod/box", "jsonpath={.status.phase}=Running");
    let started = settled_reads(&cluster);
    eprintln!("reads of the runtime for the start of a pod: {}", started - before);
    let told = |kind: &str, status: &str, message: usize| {
        let patch = serde_json::json!({ "status": { "conditions": [
            { "type": kind, "status": status, "message": message.to_string() },
        ] } });
        let patch = patch.to_string();
        cluster.kubectl(&["patch", "pod", "box", "--subresource=status", "--patch", &patch]).ok();
    };

    step("statuses that nobody waits for");
    for number in 0..10 {
        told("example.com/other", "True", number);
    }
    let after = settled_reads(&cluster);
    assert!(after - started <= 2, "{started} reads, then {after}");

    step("changes that a round has nothing to do for: one read each");
    for number in 0..10 {
        cluster.kubectl(&["label", "pod", "box", "--overwrite", &format!("number={number}")]).ok();
    }
    let labelled = settled_reads(&cluster);
    assert!((1..=12).contains(&(labelled - after)), "{after} reads, then {labelled}");

    step("its readiness gate");
    assert_eq!(cluster.field("pod/box", ".status.conditions[?(@.type==\"Ready\")].status"), "False");
    told("example.com/open", "True", 0);
    cluster.wait("pod/box", "condition=Ready");
    told("example.com/open", "False", 0);
    cluster.wait("pod/box", "condition=Ready=false");
}
