//! The metrics addon: kubectl top with the real kubectl, who may ask, and an autoscaler that scales on
//! real load; and what the kubelet tells Prometheus.

use std::collections::HashSet;

use kedge_tests::{BUSYBOX, Cluster, assert_has, eventually, step};

const BURNER: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: burner}
spec:
  selector: {matchLabels: {app: burner}}
  template:
    metadata: {labels: {app: burner}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: burn
        image: IMAGE
        command: [sh, -c, 'while true; do :; done']
        resources: {requests: {cpu: 50m, memory: 8Mi}, limits: {cpu: 200m, memory: 32Mi}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: burner}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: burner}
  minReplicas: 1
  maxReplicas: 2
  metrics:
  - type: Resource
    resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}
";

#[test]
fn what_nodes_and_pods_use() {
    let cluster = Cluster::start();
    cluster.import_busybox();
    cluster.apply(&BURNER.replace("IMAGE", BUSYBOX));

    step("a number out of range is refused");
    assert_has(&cluster.kedge(&["enable", "metrics:resolution=1"]).failed(2), &["a number from 5 to 600"]);

    step("enabled: the APIService answers");
    cluster.kedge(&["enable", "metrics:resolution=5"]).ok();
    let service = "apiservice/v1beta1.metrics.k8s.io";
    assert_eq!(cluster.field(service, ".status.conditions[?(@.type=='Available')].status"), "True");
    assert_eq!(cluster.field(service, ".spec.insecureSkipTLSVerify"), "", "its certificate is verified");
    assert_has(
        &cluster.kubectl(&["api-resources", "--api-group=metrics.k8s.io"]).ok(),
        &["NodeMetrics", "PodMetrics"],
    );

    step("kubectl top");
    let top = cluster.kubectl(&["top", "nodes"]).ok();
    assert_has(&top, &["CPU(cores)", &cluster.node]);
    eventually("the load to be seen", || {
        let top = cluster.kubectl(&["top", "pods", "-l", "app=burner", "--containers", "--no-headers"]);
        let cpu = top.stdout.split_whitespace().nth(2)?.strip_suffix('m')?.parse::<u32>().ok()?;
        (cpu >= 100).then_some(())
    });
    // Two samples of itself come after two of what was there before it.
    eventually("all pods", || {
        let all = cluster.kubectl(&["top", "pods", "-A"]).stdout;
        ["metrics-server-", "burner-"].iter().all(|name| all.contains(name)).then_some(())
    });

    step("objects, selectors, tables and what is not there");
    let base = "/apis/metrics.k8s.io/v1beta1";
    let raw = |path: &str| cluster.kubectl(&["get", "--raw", &format!("{base}{path}")]);
    let nodes = raw("/nodes").json();
    assert_eq!(nodes["kind"], "NodeMetricsList");
    assert_eq!(nodes["items"][0]["metadata"]["name"], cluster.node.as_str());
    let none = raw("/namespaces/default/pods?labelSelector=app%3Dother").json();
    assert_eq!(none["items"].as_array().map(Vec::len), Some(0));
    let pod = cluster.kubectl(&["get", "pods.metrics.k8s.io", "-l", "app=burner"]).ok();
    assert_has(&pod, &["NAME", "CPU", "MEMORY", "WINDOW", "burner-"]);
    assert_has(&raw("/namespaces/default/pods/absent").failed(1), &["not found"]);

    step("the kubelet's own numbers");
    let kubelet = format!("/api/v1/nodes/{}/proxy", cluster.node);
    let text = cluster.kubectl(&["get", "--raw", &format!("{kubelet}/metrics/resource")]).ok();
    for family in [
        "container_cpu_usage_seconds_total{container=\"burn\"",
        "container_memory_working_set_bytes{container=\"burn\"",
        "container_start_time_seconds{container=\"burn\"",
        "pod_cpu_usage_seconds_total{namespace=\"default\"",
        "pod_memory_working_set_bytes{namespace=\"default\"",
        "node_cpu_usage_seconds_total ",
        "node_memory_working_set_bytes ",
        "scrape_error 0",
    ] {
        assert_has(&text, &[family]);
    }
    let summary = cluster.kubectl(&["get", "--raw", &format!("{kubelet}/stats/summary")]).json();
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64() > Some(0), "{summary}");

    step("who may ask");
    let view = ["auth", "can-i", "list", "pods.metrics.k8s.io", "--as=ann"];
    assert_eq!(cluster.kubectl(&view).stdout.trim(), "no");
    let refused = cluster.kubectl(&["get", "--raw", &format!("{base}/nodes"), "--as=ann"]);
    assert_has(&refused.failed(1), &["forbidden"]);
    cluster.kubectl(&["create", "rolebinding", "ann", "--clusterrole=view", "--user=ann"]).ok();
    eventually("ann to be allowed", || {
        let top = cluster.kubectl(&["top", "pods", "--as=ann"]);
        top.stdout.contains("burner-").then_some(())
    });

    step("the autoscaler adds a pod");
    eventually("two pods", || (cluster.field("deployment/burner", ".spec.replicas") == "2").then_some(()));
    let event = cluster.event("HorizontalPodAutoscaler/burner", "SuccessfulRescale");
    assert_has(&event, &["cpu resource utilization (percentage of request) above target"]);

    step("disabled: the group is gone");
    cluster.kedge(&["disable", "metrics"]).ok();
    eventually("the API to be gone", || {
        let out = cluster.kubectl(&["get", "--raw", &format!("{base}/nodes")]);
        (out.code != 0).then_some(())
    });
    let left = cluster.kubectl(&["-n", "kube-system", "get", "all,secrets,configmaps", "-o", "name"]).ok();
    assert!(!left.contains("metrics-server-tls") && !left.contains("kedge-addon-metrics"), "{left}");
}

const WEB: &str = r"
apiVersion: v1
kind: PersistentVolume
metadata: {name: data}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ''
  hostPath: {path: FOLDER, type: DirectoryOrCreate}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ''
  volumeName: data
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
  initContainers:
  - {name: before, image: IMAGE, command: ['true'], resources: {limits: {cpu: 100m, memory: 48Mi}}}
  containers:
  - name: web
    image: IMAGE
    command: [sh, -c, 'httpd -p 8080 -h /data; while true; do :; done']
    volumeMounts: [{name: data, mountPath: /data}]
    readinessProbe: {exec: {command: [test, -d, /data]}, periodSeconds: 1, timeoutSeconds: 10}
    resources: {limits: {cpu: 100m, memory: 48Mi}}
";

/// The value of the one series of that name whose labels hold all of these.
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let mut found = text.lines().filter_map(|line| {
        let (own, rest) = line.split_once('{').or_else(|| line.split_once(' '))?;
        (own == name && labels.iter().all(|label| rest.contains(label))).then_some(line)
    });
    let line = found.next().unwrap_or_else(|| panic!("no {name} with {labels:?} in:\n{text}"));
    assert_eq!(found.next(), None, "{name} with {labels:?} is there more than once");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no value: {line}"))
}

/// What Prometheus asks of a text: a family has one head and stays together, and no series is there twice.
fn check_text(text: &str) {
    let (mut heads, mut series, mut current) = (HashSet::new(), HashSet::new(), "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            current = rest.split(' ').next().unwrap_or_default();
            assert!(heads.insert(current), "{current} has two heads");
        } else if !line.starts_with("# HELP ") {
            let (one, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(one.starts_with(current), "{line} stands in the family {current}");
            assert!(series.insert(one), "{one} is there twice");
        }
    }
}

#[test]
fn what_the_kubelet_tells_prometheus() {
    let cluster = Cluster::start();
    cluster.import_busybox();
    let folder = cluster.dir().join("claimed");
    cluster.apply(&WEB.replace("IMAGE", BUSYBOX).replace("FOLDER", &folder.to_string_lossy()));
    cluster.wait("pod/web", "condition=Ready");
    let scrape = |path: &str| {
        let url = format!("/api/v1/nodes/{}/proxy/{path}", cluster.node);
        let text = cluster.kubectl(&["get", "--raw", &url]).ok();
        check_text(&text);
        text
    };

    step("the container: what it has used grows, and its limits are told");
    let app = ["container=\"web\"", "namespace=\"default\"", "pod=\"web\""];
    let pod = ["container=\"\"", "name=\"\"", "namespace=\"default\"", "pod=\"web\""];
    let used = |text: &str| value(text, "container_cpu_usage_seconds_total", &app);
    let first = scrape("metrics/cadvisor");
    assert_eq!(value(&first, "container_scrape_error", &[]), 0.0);
    assert!(first.contains(BUSYBOX), "the image is named as the pod names it: {first}");
    let later = eventually("the processor time to grow", || {
        let text = scrape("metrics/cadvisor");
        (used(&text) > used(&first)).then_some(text)
    });
    let user = value(&later, "container_cpu_user_seconds_total", &app);
    let system = value(&later, "container_cpu_system_seconds_total", &app);
    // The kernel keeps the sum exactly and the parts in hundredths of a second.
    assert!(user + system <= used(&later) + 1.0, "{user} and {system} of {}", used(&later));
    assert!(value(&later, "container_cpu_usage_seconds_total", &pod) >= used(&later));
    assert_eq!(value(&later, "container_spec_cpu_quota", &app), 10_000.0);
    assert_eq!(value(&later, "container_spec_cpu_period", &app), 100_000.0);
    assert_eq!(value(&later, "container_spec_memory_limit_bytes", &app), 48.0 * 1024.0 * 1024.0);
    assert_eq!(value(&later, "container_spec_memory_limit_bytes", &pod), 48.0 * 1024.0 * 1024.0);
    eventually("it to be throttled", || {
        let text = scrape("metrics/cadvisor");
        let seconds = value(&text, "container_cpu_cfs_throttled_seconds_total", &app);
        let periods = value(&text, "container_cpu_cfs_throttled_periods_total", &app);
        (seconds > 0.0 && periods > 0.0).then_some(())
    });

    step("memory, processes and times are within what is possible");
    let memory = |name: &str, of: &[&str]| value(&later, name, of);
    let (usage, working_set) =
        (memory("container_memory_usage_bytes", &app), memory("container_memory_working_set_bytes", &app));
    assert!(
        working_set > 0.0 && working_set <= usage && usage <= 48.0 * 1024.0 * 1024.0,
        "{working_set} {usage}"
    );
    assert!(memory("container_memory_rss", &app) > 0.0);
    let whole = memory("container_memory_working_set_bytes", &pod);
    assert!(whole >= memory("container_memory_rss", &app) && whole <= 48.0 * 1024.0 * 1024.0, "{whole}");
    assert!(value(&later, "container_memory_working_set_bytes", &["id=\"/\""]) > whole);
    let faults = ["container=\"web\"", "failure_type=\"pgfault\"", "scope=\"hierarchy\""];
    assert!(value(&later, "container_memory_failures_total", &faults) > 0.0);
    assert!(value(&later, "container_processes", &app) >= 2.0, "the shell and httpd");
    let started = value(&later, "container_start_time_seconds", &app);
    let seen = value(&later, "container_last_seen", &app);
    assert!(started > 1.7e9 && started <= seen + 1.0, "{started} {seen}");

    step("the network of the pod, with its sandbox");
    let network = ["container=\"\"", "interface=\"eth0\"", "namespace=\"default\"", "pod=\"web\""];
    let received = |text: &str| value(text, "container_network_receive_bytes_total", &network);
    std::fs::write(folder.join("page"), vec![b'x'; 300_000]).expect("written");
    let (before, sent) =
        (received(&later), value(&later, "container_network_transmit_bytes_total", &network));
    let address = cluster.field("pod/web", ".status.podIP");
    assert_eq!(cluster.http(&format!("{address}:8080"), "/page").len(), 300_000);
    let after = scrape("metrics/cadvisor");
    assert!(received(&after) > before, "{before}");
    let more = value(&after, "container_network_transmit_bytes_total", &network) - sent;
    assert!((300_000.0..3_000_000.0).contains(&more), "{more}");

    step("the machine");
    assert!(value(&after, "machine_cpu_cores", &["boot_id="]) >= 1.0);
    assert!(value(&after, "machine_memory_bytes", &["boot_id="]) > 1e8);

    step("the kubelet's own work");
    let own = scrape("metrics");
    assert_eq!(value(&own, "kubelet_node_name", &[&format!("node=\"{}\"", cluster.node)]), 1.0);
    assert_eq!(value(&own, "kubelet_running_pods", &[]), 1.0);
    assert_eq!(value(&own, "kubelet_running_containers", &["container_state=\"running\""]), 1.0);
    assert_eq!(value(&own, "kubelet_started_pods_total", &[]), 1.0);
    assert_eq!(value(&own, "kubelet_started_containers_total", &["container_type=\"container\""]), 1.0);
    assert_eq!(value(&own, "kubelet_started_containers_total", &["container_type=\"init_container\""]), 1.0);
    assert_eq!(value(&own, "kubelet_pod_start_duration_seconds_count", &[]), 1.0);
    assert!(value(&own, "kubelet_pod_start_duration_seconds_sum", &[]) > 0.0);
    assert_eq!(value(&own, "kubelet_pod_worker_duration_seconds_count", &["operation_type=\"create\""]), 1.0);
    for (operation, count) in [("run_podsandbox", 1.0), ("create_container", 2.0), ("start_container", 2.0)] {
        let labels = [&*format!("operation_type=\"{operation}\"")];
        assert_eq!(value(&own, "kubelet_runtime_operations_total", &labels), count, "{operation}");
        assert_eq!(value(&own, "kubelet_runtime_operations_duration_seconds_count", &labels), count);
    }
    let claim = ["namespace=\"default\"", "persistentvolumeclaim=\"data\""];
    let capacity = value(&own, "kubelet_volume_stats_capacity_bytes", &claim);
    let available = value(&own, "kubelet_volume_stats_available_bytes", &claim);
    assert!(available > 0.0 && available < capacity, "{available} of {capacity}");
    assert!(value(&own, "process_resident_memory_bytes", &[]) > 1e6);

    step("probes, until the pod is gone");
    let probe = ["container=\"web\"", "pod=\"web\"", "probe_type=\"Readiness\""];
    let good = [&probe[..], &["result=\"successful\""]].concat();
    let count = |text: &str| value(text, "prober_probe_total", &good);
    let first = count(&scrape("metrics/probes"));
    assert!(first >= 1.0);
    eventually("another probe", || (count(&scrape("metrics/probes")) > first).then_some(()));
    let text = scrape("metrics/probes");
    assert!(value(&text, "prober_probe_duration_seconds_count", &probe) >= first);
    cluster.kubectl(&["delete", "pod/web", "--timeout=300s"]).ok();
    for path in ["metrics/probes", "metrics/cadvisor"] {
        eventually("nothing to be told of the pod", || (!scrape(path).contains("pod=\"web\"")).then_some(()));
    }
    let own = scrape("metrics");
    assert!(
        !own.contains("kubelet_volume_stats_") && value(&own, "kubelet_running_pods", &[]) == 0.0,
        "{own}"
    );
    assert_eq!(value(&own, "kubelet_pod_worker_duration_seconds_count", &["operation_type=\"kill\""]), 1.0);

    step("only for those who may read nodes/metrics");
    let url = format!("/api/v1/nodes/{}/proxy/metrics/cadvisor", cluster.node);
    let refused = cluster.kubectl(&["get", "--raw", &url, "--as=ann"]);
    assert_has(&refused.failed(1), &["forbidden"]);
}
