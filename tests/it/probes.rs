//! A container's life: probes, restarts and back-off, running out of memory, and its end.

use std::fs;
use std::time::{Duration, Instant};

use kedge_tests::{BUSYBOX, Cluster, assert_has, eventually, step};

/// A pod with one busybox container; `more` are lines of the container, `spec` lines of the pod.
fn pod(name: &str, line: &str, more: &str, spec: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
{spec}
  containers:
  - name: c
    image: {BUSYBOX}
    command: [sh, -c, {line:?}]
{more}
"#
    )
}

const QUICK: &str = "  terminationGracePeriodSeconds: 1";
const FOREVER: &str = "trap 'exit 0' TERM; while true; do sleep 1; done";

#[test]
fn probes() {
    let cluster = Cluster::start();
    cluster.import_busybox();

    step("liveness: the container is restarted and events say why");
    cluster.apply(&pod(
        "live",
        "touch /tmp/ok; sleep 3; rm /tmp/ok; while true; do sleep 1; done",
        "    livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 2}",
        QUICK,
    ));
    assert_has(&cluster.event("Pod/live", "Unhealthy"), &["Liveness probe failed: ", "/tmp/ok"]);
    assert_eq!(cluster.event("Pod/live", "Killing"), "Container c failed liveness probe, will be restarted");
    eventually("a restart", || {
        let count = cluster.field("pod/live", ".status.containerStatuses[0].restartCount");
        count.parse::<u32>().ok().filter(|count| *count >= 1)
    });
    assert_eq!(
        cluster.field("pod/live", ".status.containerStatuses[0].lastState.terminated.exitCode"),
        "137"
    );
    cluster.kubectl(&["delete", "pod", "live", "--timeout=300s"]).ok();

    step("readiness: out of the Service and back, without a restart");
    cluster.apply(&pod(
        "ready",
        &format!("touch /tmp/ok; {FOREVER}"),
        "    readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}\n    ports: [{containerPort: 80}]",
        QUICK,
    ));
    cluster.wait("pod/ready", "condition=Ready");
    cluster.kubectl(&["expose", "pod", "ready", "--port=80"]).ok();
    let slice_ready = || {
        let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=ready"]);
        slices["items"][0]["endpoints"][0]["conditions"]["ready"].as_bool()
    };
    let addresses = |field: &str| {
        cluster
            .kubectl(&["get", "endpoints", "ready", "-o", &format!("jsonpath={{.subsets[*].{field}[*].ip}}")])
            .stdout
    };
    let ip = cluster.field("pod/ready", ".status.podIP");
    eventually("the endpoint", || (slice_ready() == Some(true)).then_some(()));
    eventually("the address", || (addresses("addresses") == ip).then_some(()));
    cluster.exec("ready", "rm /tmp/ok");
    cluster.wait("pod/ready", "condition=Ready=false");
    assert_has(&cluster.event("Pod/ready", "Unhealthy"), &["Readiness probe failed: "]);
    eventually("the endpoint not to be ready", || (slice_ready() == Some(false)).then_some(()));
    eventually("the address not to be ready", || {
        (addresses("notReadyAddresses") == ip && addresses("addresses").is_empty()).then_some(())
    });
    assert_has(&cluster.kubectl(&["get", "pod", "ready"]).ok(), &["0/1"]);
    cluster.exec("ready", "touch /tmp/ok");
    cluster.wait("pod/ready", "condition=Ready");
    assert_eq!(cluster.field("pod/ready", ".status.containerStatuses[0].restartCount"), "0");
    eventually("the endpoint again", || (slice_ready() == Some(true)).then_some(()));

    step("startup: the liveness probe waits for it");
    cluster.apply(&pod(
        "slow",
        &format!("sleep 15; touch /tmp/started; {FOREVER}"),
        "    startupProbe: {exec: {command: [cat, /tmp/started]}, periodSeconds: 1, failureThreshold: 60}\n    livenessProbe: {exec: {command: [cat, /tmp/started]}, periodSeconds: 1, failureThreshold: 1}",
        QUICK,
    ));
    cluster.wait("pod/slow", "jsonpath={.status.containerStatuses[0].started}=false");
    cluster.wait("pod/slow", "jsonpath={.status.containerStatuses[0].started}=true");
    assert_has(&cluster.event("Pod/slow", "Unhealthy"), &["Startup probe failed: "]);
    cluster.wait("pod/slow", "condition=Ready");
    assert_eq!(cluster.field("pod/slow", ".status.containerStatuses[0].restartCount"), "0");

    step("HTTP and TCP probes");
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: kedge.dev/hello:1.0
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
"#,
    );
    cluster.wait("pod/web", "condition=Ready");
    cluster.apply(&pod(
        "refused",
        FOREVER,
        "    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}",
        QUICK,
    ));
    assert_has(
        &cluster.event("Pod/refused", "Unhealthy"),
        &["Readiness probe failed: Get \"http://", ":8080/\"", "connect: connection refused"],
    );
}

#[test]
fn restarts_and_ends() {
    let cluster = Cluster::start();
    cluster.import_busybox();

    step("a container that fails again and again: CrashLoopBackOff");
    cluster.apply(&pod("crash", "echo oops; exit 3", "", QUICK));
    cluster
        .wait("pod/crash", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CrashLoopBackOff");
    let status = &cluster.get(&["pod", "crash"])["status"]["containerStatuses"][0].clone();
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(status["lastState"]["terminated"]["reason"], "Error");
    assert_has(
        status["state"]["waiting"]["message"].as_str().unwrap(),
        &["back-off ", "restarting failed container=c pod=crash_default("],
    );
    assert_has(
        &cluster.event("Pod/crash", "BackOff"),
        &["Back-off restarting failed container c in pod crash_default("],
    );
    assert_eq!(cluster.kubectl(&["logs", "crash", "--previous"]).ok(), "oops\n");
    cluster.kubectl(&["delete", "pod", "crash", "--timeout=300s"]).ok();

    step("restart policies");
    for (name, policy, line, phase) in [
        ("never-bad", "Never", "exit 3", "Failed"),
        ("never-good", "Never", "exit 0", "Succeeded"),
        ("onfailure-good", "OnFailure", "exit 0", "Succeeded"),
    ] {
        cluster.apply(&pod(name, line, "", &format!("  restartPolicy: {policy}")));
        cluster.wait(&format!("pod/{name}"), &format!("jsonpath={{.status.phase}}={phase}"));
        assert_eq!(
            cluster.field(&format!("pod/{name}"), ".status.containerStatuses[0].restartCount"),
            "0",
            "{name}"
        );
    }
    cluster.apply(&pod(
        "onfailure-second",
        "if [ -e /scratch/seen ]; then exit 0; fi; touch /scratch/seen; exit 1",
        "    volumeMounts: [{name: work, mountPath: /scratch}]",
        "  restartPolicy: OnFailure\n  volumes: [{name: work, emptyDir: {}}]",
    ));
    cluster.wait("pod/onfailure-second", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(cluster.field("pod/onfailure-second", ".status.containerStatuses[0].restartCount"), "1");
    assert_has(&cluster.kubectl(&["get", "pods"]).ok(), &["Completed", "Error"]);

    step("too much memory: OOMKilled");
    cluster.apply(&pod(
        "greedy",
        "x=0123456789abcdef; while true; do x=$x$x; done",
        "    resources: {limits: {memory: 32Mi}}",
        "  restartPolicy: Never",
    ));
    cluster.wait("pod/greedy", "jsonpath={.status.phase}=Failed");
    assert_eq!(
        cluster.field("pod/greedy", ".status.containerStatuses[0].state.terminated.reason"),
        "OOMKilled"
    );
    assert_eq!(cluster.field("pod/greedy", ".status.containerStatuses[0].state.terminated.exitCode"), "137");

    step("the end: preStop first, then SIGTERM");
    let host = cluster.dir().join("host");
    fs::create_dir_all(&host).unwrap();
    let mount = "    volumeMounts: [{name: host, mountPath: /host}]";
    let volume = format!("  volumes: [{{name: host, hostPath: {{path: {}}}}}]", host.display());
    cluster.apply(&pod(
        "polite",
        "trap 'echo term >> /host/log; exit 0' TERM; while true; do sleep 1; done",
        &format!("    lifecycle: {{preStop: {{exec: {{command: [sh, -c, \"echo stopping >> /host/log; sleep 1\"]}}}}}}\n{mount}"),
        &format!("  terminationGracePeriodSeconds: 60\n{volume}"),
    ));
    cluster.wait("pod/polite", "condition=Ready");
    cluster.kubectl(&["delete", "pod", "polite", "--timeout=300s"]).ok();
    assert_eq!(fs::read_to_string(host.join("log")).unwrap(), "stopping\nterm\n");

    step("the end: one that does not listen is killed after its grace period, not before");
    cluster.apply(&pod(
        "deaf",
        "trap '' TERM; while true; do sleep 1; done",
        "",
        "  terminationGracePeriodSeconds: 4",
    ));
    cluster.wait("pod/deaf", "condition=Ready");
    let start = Instant::now();
    cluster.kubectl(&["delete", "pod", "deaf", "--wait=false"]).ok();
    assert_has(&cluster.kubectl(&["get", "pod", "deaf"]).ok(), &["Terminating"]);
    cluster.wait("pod/deaf", "delete");
    assert!(start.elapsed() >= Duration::from_secs(3), "killed after {:?}", start.elapsed());
    assert_has(&cluster.event("Pod/deaf", "Killing"), &["Stopping container c"]);

    step("the end: now");
    cluster.apply(&pod(
        "now",
        "trap '' TERM; while true; do sleep 1; done",
        "",
        "  terminationGracePeriodSeconds: 600",
    ));
    cluster.wait("pod/now", "condition=Ready");
    cluster.kubectl(&["delete", "pod", "now", "--grace-period=0", "--force", "--timeout=300s"]).ok();
    eventually("the container to be gone", || {
        let log = fs::read_dir(cluster.dir().join("log/pods")).ok()?;
        let there =
            log.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("default_now_"));
        (!there).then_some(())
    });
}
