//! The metrics addon: kubectl top with the real kubectl, who may ask, and an autoscaler that scales on
//! real load.

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
    let all = cluster.kubectl(&["top", "pods", "-A"]).ok();
    assert_has(&all, &["metrics-server-", "burner-"]);

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
    let events = cluster.kubectl(&["get", "events", "--field-selector=reason=SuccessfulRescale"]).ok();
    assert_has(&events, &["cpu resource utilization (percentage of request) above target"]);

    step("disabled: the group is gone");
    cluster.kedge(&["disable", "metrics"]).ok();
    eventually("the API to be gone", || {
        let out = cluster.kubectl(&["get", "--raw", &format!("{base}/nodes")]);
        (out.code != 0).then_some(())
    });
    let left = cluster.kubectl(&["-n", "kube-system", "get", "all,secrets,configmaps", "-o", "name"]).ok();
    assert!(!left.contains("metrics-server-tls") && !left.contains("kedge-addon-metrics"), "{left}");
}
