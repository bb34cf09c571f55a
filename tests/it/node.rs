//! What a new node looks like to a client: the Node object, discovery, explain, versions, health.

use kedge_tests::{Cluster, assert_has, step};

#[test]
fn a_new_node_and_discovery() {
    let cluster = Cluster::start();

    step("get nodes: every column is filled in");
    let wide = cluster.kubectl(&["get", "nodes", "-o", "wide"]).ok();
    let columns: Vec<&str> = wide.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(columns[..5], ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]);
    assert_has(&wide, &["INTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME", "containerd://"]);
    let row: Vec<&str> = wide.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[0], cluster.node);
    assert_eq!(row[1], "Ready");
    assert_eq!(row[2], "control-plane");
    assert!(row[4].starts_with("v1.36.") && row[4].contains("+kedge."), "{wide}");
    assert!(!wide.contains("<unknown>"), "{wide}");

    step("the Node object");
    let node = cluster.get(&["node", &cluster.node]);
    let info = &node["status"]["nodeInfo"];
    for field in [
        "machineID",
        "bootID",
        "kernelVersion",
        "osImage",
        "containerRuntimeVersion",
        "kubeletVersion",
        "operatingSystem",
        "architecture",
    ] {
        assert!(info[field].as_str().is_some_and(|value| !value.is_empty()), "{field}: {info}");
    }
    assert_eq!(info["operatingSystem"], "linux");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(info["kernelVersion"], kernel.trim());
    for (name, status) in
        [("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False")]
    {
        let path = format!(".status.conditions[?(@.type==\"{name}\")].status");
        assert_eq!(cluster.field(&format!("node/{}", cluster.node), &path), status, "{name}");
    }
    for resource in ["cpu", "memory", "pods", "ephemeral-storage"] {
        assert!(node["status"]["capacity"][resource].is_string(), "{resource}: {node}");
        assert!(node["status"]["allocatable"][resource].is_string(), "{resource}: {node}");
    }
    let cpus = std::thread::available_parallelism().unwrap().get().to_string();
    assert_eq!(node["status"]["capacity"]["cpu"], cpus);
    let labels = &node["metadata"]["labels"];
    assert_eq!(labels["kubernetes.io/hostname"], cluster.node);
    assert_eq!(labels["kubernetes.io/os"], "linux");
    assert!(labels["node-role.kubernetes.io/control-plane"].is_string());
    assert!(cluster.node_address().parse::<std::net::IpAddr>().is_ok());
    assert!(node["spec"]["podCIDR"].is_string(), "{node}");
    assert!(
        node["status"]["images"].to_string().contains("kedge.dev/hello:1.0"),
        "the node's images are not in its status"
    );
    let description = cluster.kubectl(&["describe", "node", &cluster.node]).ok();
    assert_has(
        &description,
        &["Allocatable:", "Allocated resources:", "Non-terminated Pods:", "KubeletReady"],
    );
}

#[test]
fn discovery_explain_and_versions() {
    let cluster = Cluster::start();

    step("what a new cluster holds");
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        cluster.wait(&format!("namespace/{namespace}"), "jsonpath={.status.phase}=Active");
    }
    // The Lease is made beside the Node becoming Ready.
    let name = format!("lease/{}", cluster.node);
    cluster.kubectl(&["wait", "-n", "kube-node-lease", &name, "--for=create", "--timeout=300s"]).ok();
    let lease = cluster.get(&["lease", "-n", "kube-node-lease", &cluster.node]);
    assert_eq!(lease["spec"]["holderIdentity"], cluster.node);
    cluster.wait("serviceaccount/default", "create");
    cluster.wait("configmap/kube-root-ca.crt", "create");
    let service = cluster.get(&["service", "kubernetes"]);
    assert_eq!(service["spec"]["type"], "ClusterIP");
    assert_eq!(service["spec"]["ports"][0]["port"], 443);
    for class in ["system-node-critical", "system-cluster-critical"] {
        cluster.get(&["priorityclass", class]);
    }
    cluster.get(&["clusterrole", "cluster-admin"]);

    step("api-resources and api-versions");
    let resources = cluster.kubectl(&["api-resources", "-o", "wide"]).ok();
    for line in [
        ["deployments", "deploy", "apps/v1", "true", "Deployment"],
        ["pods", "po", "v1", "true", "Pod"],
        ["configmaps", "cm", "v1", "true", "ConfigMap"],
        ["services", "svc", "v1", "true", "Service"],
        ["cronjobs", "cj", "batch/v1", "true", "CronJob"],
        ["networkpolicies", "netpol", "networking.k8s.io/v1", "true", "NetworkPolicy"],
        [
            "customresourcedefinitions",
            "crd,crds",
            "apiextensions.k8s.io/v1",
            "false",
            "CustomResourceDefinition",
        ],
    ] {
        let found = resources.lines().any(|row| {
            let words: Vec<&str> = row.split_whitespace().collect();
            words.len() >= 5 && words[..5] == line
        });
        assert!(found, "{line:?} is not in\n{resources}");
    }
    let versions = cluster.kubectl(&["api-versions"]).ok();
    for version in [
        "v1",
        "apps/v1",
        "batch/v1",
        "autoscaling/v2",
        "networking.k8s.io/v1",
        "policy/v1",
        "rbac.authorization.k8s.io/v1",
        "storage.k8s.io/v1",
        "coordination.k8s.io/v1",
        "discovery.k8s.io/v1",
        "events.k8s.io/v1",
        "scheduling.k8s.io/v1",
        "node.k8s.io/v1",
        "certificates.k8s.io/v1",
        "admissionregistration.k8s.io/v1",
        "apiregistration.k8s.io/v1",
        "apiextensions.k8s.io/v1",
        "authentication.k8s.io/v1",
        "authorization.k8s.io/v1",
        "flowcontrol.apiserver.k8s.io/v1",
    ] {
        assert!(versions.lines().any(|line| line == version), "{version} is not in\n{versions}");
    }

    step("explain");
    let text = cluster.kubectl(&["explain", "deployment.spec.strategy"]).ok();
    assert_has(&text, &["KIND:       Deployment", "VERSION:    v1", "rollingUpdate", "type", "Recreate"]);
    assert_has(&cluster.kubectl(&["explain", "pod", "--recursive"]).ok(), &["livenessProbe", "hostAliases"]);
    let error = cluster.kubectl(&["explain", "deployment.spec.nothing"]).failed(1);
    assert_has(&error, &["field \"nothing\" does not exist"]);

    step("documents");
    let proxy = cluster.proxy();
    let document = proxy.get("/openapi/v2").json();
    assert_eq!(document["swagger"], "2.0");
    assert!(document["definitions"]["io.k8s.api.apps.v1.Deployment"].is_object());
    let index = proxy.get("/openapi/v3").json();
    let path = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = proxy.get(path).json();
    assert!(document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    let aggregated = proxy.send_with(
        "GET",
        "/apis",
        &[("Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")],
        "",
    );
    assert_eq!(aggregated.json()["kind"], "APIGroupDiscoveryList");
    assert_eq!(proxy.get("/apis").json()["kind"], "APIGroupList");

    step("version and health");
    let version = cluster.kubectl(&["version", "-o", "json"]).json();
    assert!(version["serverVersion"]["gitVersion"].as_str().unwrap().starts_with("v1.36."), "{version}");
    assert_eq!(version["serverVersion"]["minor"], "36");
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(proxy.get(path).body, "ok", "{path}");
    }
    assert_has(&proxy.get("/readyz?verbose").body, &["[+]", "readyz check passed"]);
    let missing = proxy.get("/apis/none.example.com/v1");
    assert_eq!(missing.status, 404);
}
