//! Resizing a running pod (KEP-1287): what the cgroups have, what the status says, and who is restarted.

use std::fs;
use std::path::{Path, PathBuf};

use kedge_tests::{BUSYBOX, Cluster, assert_has, eventually, skipped, step};

const FOREVER: &str = "trap 'exit 0' TERM; while true; do sleep 1; done";
const STATUS: &str = ".status.containerStatuses[0]";
const PENDING: &str = ".status.conditions[?(@.type==\"PodResizePending\")]";
const IN_PROGRESS: &str = ".status.conditions[?(@.type==\"PodResizeInProgress\")]";

/// A pod of one container with these requests and limits for CPU and memory; `more` are lines of the container.
fn pod(name: &str, requests: [&str; 2], limits: [&str; 2], more: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: {BUSYBOX}
    command: [sh, -c, {FOREVER:?}]
    resources:
      requests: {{cpu: {}, memory: {}}}
      limits: {{cpu: {}, memory: {}}}
{more}
"#,
        requests[0], requests[1], limits[0], limits[1]
    )
}

fn resize(cluster: &Cluster, name: &str, requests: [&str; 2], limits: [&str; 2]) {
    let patch = format!(
        "{{\"spec\":{{\"containers\":[{{\"name\":\"c\",\"resources\":{{\
         \"requests\":{{\"cpu\":\"{}\",\"memory\":\"{}\"}},\"limits\":{{\"cpu\":\"{}\",\"memory\":\"{}\"}}}}}}]}}}}",
        requests[0], requests[1], limits[0], limits[1]
    );
    cluster.kubectl(&["patch", "pod", name, "--subresource=resize", "--patch", &patch]).ok();
}

/// The pod's folder below a cgroup v1 hierarchy.
fn group(cluster: &Cluster, name: &str, controller: &str) -> PathBuf {
    fn find(dir: &Path, wanted: &str) -> Option<PathBuf> {
        let folders = fs::read_dir(dir).ok()?.flatten().filter(|entry| entry.path().is_dir());
        folders
            .map(|entry| entry.path())
            .find_map(|path| if path.ends_with(wanted) { Some(path) } else { find(&path, wanted) })
    }
    let wanted = format!("pod{}", cluster.field(&format!("pod/{name}"), ".metadata.uid"));
    find(&Path::new("/sys/fs/cgroup").join(controller), &wanted).expect("the pod's cgroup")
}

/// Shares, quota and memory limit of the pod's group and of its container's.
fn limits(cluster: &Cluster, name: &str) -> [[String; 3]; 2] {
    let id = cluster.field(&format!("pod/{name}"), &format!("{STATUS}.containerID"));
    let id = id.trim_start_matches("containerd://").to_owned();
    ["", id.as_str()].map(|below| {
        [("cpu", "cpu.shares"), ("cpu", "cpu.cfs_quota_us"), ("memory", "memory.limit_in_bytes")].map(
            |(controller, file)| {
                let file = group(cluster, name, controller).join(below).join(file);
                fs::read_to_string(&file)
                    .unwrap_or_else(|e| panic!("{}: {e}", file.display()))
                    .trim()
                    .to_owned()
            },
        )
    })
}

fn completed(cluster: &Cluster, name: &str, generation: &str) {
    eventually(&format!("the resize of {name} to be carried out"), || {
        let events = cluster
            .get(&["events", &format!("--field-selector=involvedObject.name={name},reason=ResizeCompleted")]);
        let wanted = format!("\"generation\":{generation}}}");
        let found = events["items"]
            .as_array()?
            .iter()
            .any(|event| event["message"].as_str().is_some_and(|message| message.ends_with(&wanted)));
        found.then_some(())
    });
    eventually("its condition to go", || {
        cluster.field(&format!("pod/{name}"), IN_PROGRESS).is_empty().then_some(())
    });
}

#[test]
fn resized_in_place() {
    let mut cluster = Cluster::start();
    cluster.import_busybox();
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        skipped("resized in place", "cgroup v2: the files that this test reads are those of v1");
        return;
    }
    let all = |one: [&str; 3]| [one.map(str::to_owned), one.map(str::to_owned)];
    let started = |cluster: &Cluster| cluster.field("pod/grows", &format!("{STATUS}.containerID"));

    step("more of everything, without a restart");
    cluster.apply(&pod("grows", ["100m", "32Mi"], ["200m", "64Mi"], ""));
    cluster.wait("pod/grows", "condition=Ready");
    let id = started(&cluster);
    assert_eq!(limits(&cluster, "grows"), all(["102", "20000", "67108864"]));
    assert_eq!(cluster.field("pod/grows", &format!("{STATUS}.allocatedResources.cpu")), "100m");
    resize(&cluster, "grows", ["200m", "64Mi"], ["400m", "128Mi"]);
    assert_has(
        &cluster.event("Pod/grows", "ResizeStarted"),
        &[
            "Pod resize started: {\"containers\":[{\"name\":\"c\",\"resources\":{\"limits\":{\"cpu\":\"400m\",",
            "\"generation\":2}",
        ],
    );
    completed(&cluster, "grows", "2");
    assert_eq!(limits(&cluster, "grows"), all(["204", "40000", "134217728"]));
    let status = |cluster: &Cluster, path: &str| cluster.field("pod/grows", &format!("{STATUS}.{path}"));
    assert_eq!(status(&cluster, "resources.limits.memory"), "128Mi");
    assert_eq!(status(&cluster, "resources.requests.cpu"), "200m");
    assert_eq!(status(&cluster, "allocatedResources.memory"), "64Mi");
    assert_eq!(status(&cluster, "restartCount"), "0");
    assert_eq!(started(&cluster), id);
    assert_eq!(cluster.field("pod/grows", ".status.observedGeneration"), "2");

    step("less CPU and more memory at the same time");
    resize(&cluster, "grows", ["100m", "64Mi"], ["100m", "256Mi"]);
    completed(&cluster, "grows", "3");
    assert_eq!(limits(&cluster, "grows"), all(["102", "10000", "268435456"]));
    assert_eq!(started(&cluster), id);

    step("a memory limit below what is in use is refused and carried out when there is less");
    cluster.exec("grows", "mkdir -p /dev/shm && dd if=/dev/zero of=/dev/shm/full bs=1M count=48 2>/dev/null");
    resize(&cluster, "grows", ["100m", "24Mi"], ["100m", "24Mi"]);
    assert_has(
        &cluster.event("Pod/grows", "ResizeError"),
        &[
            "Pod resize error: {",
            "cannot decrease memory limits: [attempting to set pod memory limit (25165824) below current usage (",
            "attempting to set container \\\"c\\\" memory limit (25165824) below current usage (",
        ],
    );
    cluster.wait("pod/grows", &format!("jsonpath={{{IN_PROGRESS}.reason}}=Error"));
    assert_eq!(cluster.field("pod/grows", &format!("{IN_PROGRESS}.observedGeneration")), "4");
    assert_eq!(limits(&cluster, "grows"), all(["102", "10000", "268435456"]));
    assert_eq!(status(&cluster, "resources.limits.memory"), "256Mi");
    assert_eq!(status(&cluster, "allocatedResources.memory"), "24Mi");

    step("what was granted is still to be done after a kill -9");
    cluster.kill9();
    cluster.run();
    cluster.wait_ready();
    assert_eq!(status(&cluster, "resources.limits.memory"), "256Mi");
    cluster.exec("grows", "rm /dev/shm/full");
    completed(&cluster, "grows", "4");
    assert_eq!(limits(&cluster, "grows"), all(["102", "10000", "25165824"]));
    assert_eq!(started(&cluster), id);
    assert_eq!(status(&cluster, "restartCount"), "0");

    step("more than the node has: Infeasible, everything stays");
    resize(&cluster, "grows", ["1000", "24Mi"], ["1000", "24Mi"]);
    cluster.wait("pod/grows", &format!("jsonpath={{{PENDING}.reason}}=Infeasible"));
    assert_has(
        &cluster.field("pod/grows", &format!("{PENDING}.message")),
        &["Node didn't have enough capacity: cpu, requested: 1000000, capacity: "],
    );
    assert_has(
        &cluster.event("Pod/grows", "ResizeInfeasible"),
        &["Pod resize Infeasible: {", "\"generation\":5"],
    );
    assert_eq!(limits(&cluster, "grows"), all(["102", "10000", "25165824"]));
    assert_eq!(status(&cluster, "allocatedResources.cpu"), "100m");

    step("and is so after a kill -9, without a second event");
    cluster.kill9();
    cluster.run();
    cluster.wait_ready();
    cluster.wait("pod/grows", "condition=Ready");
    assert_eq!(cluster.field("pod/grows", &format!("{PENDING}.reason")), "Infeasible");
    assert_eq!(status(&cluster, "allocatedResources.cpu"), "100m");
    assert_eq!(limits(&cluster, "grows"), all(["102", "10000", "25165824"]));
    resize(&cluster, "grows", ["100m", "24Mi"], ["100m", "24Mi"]);
    eventually("the condition to go", || cluster.field("pod/grows", PENDING).is_empty().then_some(()));
    let events = cluster.get(&["events", "--field-selector=reason=ResizeInfeasible"]);
    assert_eq!(events["items"].as_array().map(Vec::len), Some(1), "{events}");
    assert_eq!(started(&cluster), id);
}

#[test]
fn restarts_and_waiting() {
    let cluster = Cluster::start();
    cluster.import_busybox();

    step("RestartContainer for memory: CPU changes in place, memory restarts");
    let policy = "    resizePolicy:\n    - {resourceName: cpu, restartPolicy: NotRequired}\n    - {resourceName: memory, restartPolicy: RestartContainer}";
    cluster.apply(&pod("again", ["100m", "32Mi"], ["200m", "64Mi"], policy));
    cluster.wait("pod/again", "condition=Ready");
    let count = || cluster.field("pod/again", &format!("{STATUS}.restartCount"));
    resize(&cluster, "again", ["150m", "32Mi"], ["200m", "64Mi"]);
    completed(&cluster, "again", "2");
    assert_eq!(count(), "0");
    resize(&cluster, "again", ["150m", "32Mi"], ["200m", "96Mi"]);
    completed(&cluster, "again", "3");
    eventually("the restart", || (count() == "1").then_some(()));
    assert_eq!(cluster.event("Pod/again", "Killing"), "Container c resize requires restart");
    cluster.wait("pod/again", "condition=Ready");
    assert_eq!(cluster.field("pod/again", &format!("{STATUS}.resources.limits.memory")), "96Mi");
    // The next one does not wait for a back-off.
    resize(&cluster, "again", ["150m", "32Mi"], ["200m", "64Mi"]);
    completed(&cluster, "again", "4");
    eventually("the second restart", || (count() == "2").then_some(()));
    assert_eq!(cluster.field("pod/again", &format!("{STATUS}.resources.limits.memory")), "64Mi");

    step("a sidecar is resized too; a pod whose other container has no limit has none either");
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: two}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: side
    image: {BUSYBOX}
    restartPolicy: Always
    command: [sh, -c, {FOREVER:?}]
    resources: {{requests: {{cpu: 20m, memory: 16Mi}}, limits: {{memory: 32Mi}}}}
  containers:
  - name: c
    image: {BUSYBOX}
    command: [sh, -c, {FOREVER:?}]
    resources: {{requests: {{cpu: 50m, memory: 16Mi}}}}
"#
    ));
    cluster.wait("pod/two", "condition=Ready");
    cluster
        .kubectl(&[
            "patch",
            "pod",
            "two",
            "--subresource=resize",
            "--patch",
            r#"{"spec":{"initContainers":[{"name":"side","resources":{"requests":{"cpu":"40m"},"limits":{"memory":"48Mi"}}}],
                "containers":[{"name":"c","resources":{"requests":{"cpu":"30m"},"limits":{"cpu":"100m"}}}]}}"#,
        ])
        .ok();
    completed(&cluster, "two", "2");
    let side = ".status.initContainerStatuses[0]";
    assert_eq!(cluster.field("pod/two", &format!("{side}.resources.limits.memory")), "48Mi");
    assert_eq!(cluster.field("pod/two", &format!("{side}.restartCount")), "0");
    assert_eq!(cluster.field("pod/two", &format!("{STATUS}.resources.limits.cpu")), "100m");
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let [group, container] = limits(&cluster, "two");
        assert_eq!(container[..2], ["30", "10000"]);
        assert_eq!(group[..2], ["71", "-1"]);
    }
    cluster.kubectl(&["delete", "pod", "two", "--timeout=300s"]).ok();

    step("no room beside another pod: Deferred, until that one goes");
    let node = cluster.get(&["node", &cluster.node]);
    let cpus: i64 =
        node["status"]["allocatable"]["cpu"].as_str().and_then(|cpu| cpu.parse().ok()).expect("whole CPUs");
    let half = format!("{}m", cpus * 500);
    let most = format!("{}m", cpus * 500 + 1);
    cluster.apply(&pod("neighbour", [&half, "16Mi"], [&half, "16Mi"], ""));
    cluster.wait("pod/neighbour", "condition=Ready");
    resize(&cluster, "again", [&most, "32Mi"], [&most, "64Mi"]);
    cluster.wait("pod/again", &format!("jsonpath={{{PENDING}.reason}}=Deferred"));
    assert_has(
        &cluster.field("pod/again", &format!("{PENDING}.message")),
        &[&format!("Node didn't have enough resource: cpu, requested: {}, used: ", cpus * 500 + 1)],
    );
    assert_has(&cluster.event("Pod/again", "ResizeDeferred"), &["Pod resize Deferred: {"]);
    assert_eq!(cluster.field("pod/again", &format!("{STATUS}.allocatedResources.cpu")), "150m");
    cluster.kubectl(&["delete", "pod", "neighbour", "--timeout=300s"]).ok();
    completed(&cluster, "again", "5");
    assert!(cluster.field("pod/again", PENDING).is_empty());
    assert_eq!(cluster.field("pod/again", &format!("{STATUS}.allocatedResources.cpu")), most);
    assert_eq!(count(), "2");
}
