//! What Kubernetes' conformance suite does to a whole node and what nothing else here tries: the life of an
//! object of every kind, evictions after a time, pods that the node refuses, ranges of Services.

use kedge_tests::{BUSYBOX, Cluster, Proxy, assert_has, eventually, step};
use serde_json::{Value, json};

/// Collection, kind and the least that makes an object of it; `{ns}` is the test's namespace.
fn kinds() -> Vec<(&'static str, Value)> {
    let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let selector = json!({ "matchLabels": { "a": "b" } });
    let workload = |more: Value| {
        let mut spec = json!({ "selector": selector, "template": template });
        for (key, value) in more.as_object().expect("an object") {
            spec[key] = value.clone();
        }
        json!({ "spec": spec })
    };
    let mut job = template.clone();
    job["spec"]["restartPolicy"] = json!("Never");
    let mut elsewhere = template.clone();
    elsewhere["spec"]["nodeSelector"] = json!({ "no": "where" });
    vec![
        ("/api/v1/namespaces/{ns}/configmaps", json!({ "data": { "a": "b" } })),
        ("/api/v1/namespaces/{ns}/secrets", json!({ "data": { "a": "Yg==" } })),
        ("/api/v1/namespaces/{ns}/endpoints", json!({ "subsets": [] })),
        (
            "/api/v1/namespaces/{ns}/limitranges",
            json!({ "spec": { "limits": [{ "type": "Container", "default": { "cpu": "1" } }] } }),
        ),
        ("/api/v1/namespaces/{ns}/podtemplates", json!({ "template": template })),
        (
            "/api/v1/namespaces/{ns}/pods",
            json!({ "spec": { "schedulerName": "nobody", "containers": [{ "name": "c", "image": "i" }] } }),
        ),
        (
            "/api/v1/namespaces/{ns}/replicationcontrollers",
            json!({ "spec": { "replicas": 0, "selector": { "a": "b" }, "template": template } }),
        ),
        ("/api/v1/namespaces/{ns}/resourcequotas", json!({ "spec": { "hard": { "cpu": "99" } } })),
        ("/api/v1/namespaces/{ns}/serviceaccounts", json!({})),
        ("/api/v1/namespaces/{ns}/services", json!({ "spec": { "ports": [{ "port": 80 }] } })),
        (
            "/api/v1/namespaces/{ns}/events",
            json!({ "involvedObject": { "namespace": "{ns}" }, "reason": "Test", "type": "Normal" }),
        ),
        ("/api/v1/nodes", json!({})),
        ("/apis/apps/v1/namespaces/{ns}/deployments", workload(json!({ "replicas": 0 }))),
        ("/apis/apps/v1/namespaces/{ns}/replicasets", workload(json!({ "replicas": 0 }))),
        (
            "/apis/apps/v1/namespaces/{ns}/statefulsets",
            workload(json!({ "replicas": 0, "serviceName": "x" })),
        ),
        ("/apis/apps/v1/namespaces/{ns}/daemonsets", workload(json!({ "template": elsewhere }))),
        ("/apis/apps/v1/namespaces/{ns}/controllerrevisions", json!({ "revision": 1, "data": { "a": 1 } })),
        (
            "/apis/batch/v1/namespaces/{ns}/jobs",
            json!({ "spec": { "suspend": true, "template": { "spec": job["spec"] } } }),
        ),
        (
            "/apis/batch/v1/namespaces/{ns}/cronjobs",
            json!({ "spec": { "schedule": "0 0 1 1 *", "jobTemplate": { "spec": { "template": { "spec": job["spec"] } } } } }),
        ),
        ("/apis/coordination.k8s.io/v1/namespaces/{ns}/leases", json!({ "spec": { "holderIdentity": "h" } })),
        (
            "/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices",
            json!({ "addressType": "IPv4", "endpoints": [] }),
        ),
        (
            "/apis/events.k8s.io/v1/namespaces/{ns}/events",
            json!({ "eventTime": "2026-01-01T00:00:00.000000Z", "regarding": { "namespace": "{ns}" },
            "reason": "Test", "action": "Do", "type": "Normal", "reportingController": "x.io/c", "reportingInstance": "i" }),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/{ns}/ingresses",
            json!({ "spec": { "defaultBackend": { "service": { "name": "s", "port": { "number": 80 } } } } }),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/{ns}/networkpolicies",
            json!({ "spec": { "podSelector": {} } }),
        ),
        ("/apis/networking.k8s.io/v1/ingressclasses", json!({ "spec": { "controller": "example.com/c" } })),
        ("/apis/node.k8s.io/v1/runtimeclasses", json!({ "handler": "h" })),
        (
            "/apis/policy/v1/namespaces/{ns}/poddisruptionbudgets",
            json!({ "spec": { "minAvailable": 1, "selector": selector } }),
        ),
        ("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles", json!({ "rules": [] })),
        ("/apis/scheduling.k8s.io/v1/priorityclasses", json!({ "value": 17 })),
        ("/apis/storage.k8s.io/v1/storageclasses", json!({ "provisioner": "x.io/p" })),
        ("/apis/storage.k8s.io/v1/csidrivers", json!({ "spec": {} })),
        ("/apis/storage.k8s.io/v1/csinodes", json!({ "spec": { "drivers": [] } })),
        ("/apis/storage.k8s.io/v1/namespaces/{ns}/csistoragecapacities", json!({ "storageClassName": "x" })),
        (
            "/apis/storage.k8s.io/v1/volumeattachments",
            json!({ "spec": { "attacher": "a", "nodeName": "n", "source": { "persistentVolumeName": "p" } } }),
        ),
        (
            "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas",
            json!({ "spec": { "priorityLevelConfiguration": { "name": "x" } } }),
        ),
        (
            "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations",
            json!({ "spec": { "type": "Limited",
            "limited": { "limitResponse": { "type": "Reject" } } } }),
        ),
        ("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", json!({ "webhooks": [] })),
        ("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", json!({ "webhooks": [] })),
        (
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
            json!({ "spec": { "policyName": "p", "validationActions": ["Deny"] } }),
        ),
    ]
}

/// Kinds whose status comes with the stored metadata.
const KEEP_METADATA: [&str; 1] = ["volumeattachments"];

fn life(proxy: &Proxy, collection: &str, object: &Value) {
    let send = |method: &str, path: &str, kind: &str, body: &Value| {
        proxy.send(method, path, &format!("application/{kind}"), &body.to_string())
    };
    let plural = collection.rsplit('/').next().expect("a path");
    let with_name = |index: usize| {
        let mut object = object.clone();
        object["metadata"] = json!({ "name": format!("life-{index}"), "labels": { "life": plural } });
        object
    };
    let (one, selected) =
        (format!("{collection}/life-0"), format!("{collection}?labelSelector=life%3D{plural}"));
    let made = send("POST", collection, "json", &with_name(0));
    assert_eq!(made.status, 201, "{collection}: {}", made.body);
    let note = |key: &str| json!({ "metadata": { "annotations": { key: "true" } } });
    for kind in ["merge-patch", "strategic-merge-patch"] {
        let answer = send("PATCH", &one, &format!("{kind}+json"), &note(kind));
        assert_eq!(answer.json()["metadata"]["annotations"][kind], "true", "{collection}: {}", answer.body);
    }
    let mut applied = note("applied");
    for field in ["apiVersion", "kind"] {
        applied[field] = made.json()[field].clone();
    }
    let answer = send("PATCH", &format!("{one}?fieldManager=m"), "apply-patch+yaml", &applied);
    assert_eq!(answer.status, 200, "{collection}: {}", answer.body);
    eventually("an update without a conflict", || {
        let mut now = proxy.get(&one).json();
        now["metadata"]["annotations"]["updated"] = json!("true");
        (send("PUT", &one, "json", &now).status == 200).then_some(())
    });
    if proxy.get(&format!("{one}/status")).status == 200 && !plural.starts_with("event") {
        let answer = send("PATCH", &format!("{one}/status"), "merge-patch+json", &note("status"));
        assert_eq!(answer.status, 200, "{collection}: {}", answer.body);
        let kept = answer.json()["metadata"]["annotations"]["status"] == "true";
        assert_eq!(kept, !KEEP_METADATA.contains(&plural), "{collection}: {}", answer.body);
    }
    assert_eq!(proxy.send("DELETE", &one, "application/json", "").status, 200, "{collection}");
    eventually("the deletion", || (proxy.get(&one).status == 404).then_some(()));
    for index in 1..=2 {
        assert_eq!(send("POST", collection, "json", &with_name(index)).status, 201, "{collection}");
    }
    let answer = proxy.send("DELETE", &selected, "application/json", "");
    assert_eq!(answer.status, 200, "{collection}: {}", answer.body);
    eventually("the deletion of a collection", || {
        proxy.get(&selected).json()["items"].as_array()?.is_empty().then_some(())
    });
}

#[test]
fn lives_of_objects() {
    let cluster = Cluster::start();
    let proxy = cluster.proxy();
    cluster.kubectl(&["create", "namespace", "lives"]).ok();
    for (collection, object) in kinds() {
        step(collection);
        let object: Value = serde_json::from_str(&object.to_string().replace("{ns}", "lives")).expect("JSON");
        life(&proxy, &collection.replace("{ns}", "lives"), &object);
    }

    step("a range of Services is Ready, and stays while one of its addresses is used");
    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    let ready = |name: &str| {
        let range = proxy.get(&format!("{ranges}/{name}")).json();
        let list = range["status"]["conditions"].as_array()?.clone();
        list.into_iter().find(|condition| condition["type"] == "Ready")
    };
    eventually("the configured range to be Ready", || {
        (ready("kubernetes")?["status"] == "True").then_some(())
    });
    cluster.apply("{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}, spec: {cidrs: [10.199.0.0/28]}}");
    eventually("the new range to be Ready", || (ready("more")?["status"] == "True").then_some(()));
    cluster.apply("{apiVersion: v1, kind: Service, metadata: {name: inside}, spec: {clusterIP: 10.199.0.5, ports: [{port: 80}]}}");
    cluster.kubectl(&["delete", "servicecidr", "more", "--wait=false"]).ok();
    eventually("the range to say why it stays", || (ready("more")?["reason"] == "Terminating").then_some(()));
    cluster.kubectl(&["delete", "service", "inside"]).ok();
    eventually("the range to go", || (proxy.get(&format!("{ranges}/more")).status == 404).then_some(()));

    step("explain knows what a definition says of its fields");
    cluster.apply(
        r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: foos.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: foos, kind: Foo}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        description: Foo for testing
        properties:
          spec:
            type: object
            description: What is wanted of a Foo
            properties: {bars: {type: array, description: Its bars, items: {type: object, properties: {name: {type: string, description: Name of a bar}}}}}
",
    );
    cluster.wait("crd/foos.example.com", "condition=Established");
    let explained = eventually("explain", || {
        let out = cluster.kubectl(&["explain", "foos"]);
        (out.code == 0 && out.stdout.contains("Foo for testing")).then_some(out.stdout)
    });
    assert_has(&explained, &["APIVersion defines", "What is wanted of a Foo"]);
    assert_has(&cluster.kubectl(&["explain", "foos.spec.bars"]).ok(), &["Its bars", "Name of a bar"]);
}

#[test]
fn refused_and_driven_off() {
    let cluster = Cluster::start();
    cluster.import_busybox();
    let node = &cluster.node;
    let pod = |name: &str, spec: &str, container: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, {spec}, containers: [{{name: c, image: {BUSYBOX}, command: [sleep, '1000'] {container}}}]}}}}"
        )
    };
    let why = |name: &str| {
        eventually("a pod to be refused", || {
            (cluster.field(name, ".status.phase") == "Failed").then(|| cluster.field(name, ".status.reason"))
        })
    };

    step("two pods want a port of the node, past the scheduler");
    let (place, port) = (format!("nodeName: {node}"), ", ports: [{containerPort: 80, hostPort: 27017}]");
    cluster.apply(&pod("first", &place, port));
    cluster.wait("pod/first", "condition=Ready");
    cluster.apply(&pod("second", &place, port));
    assert_eq!(why("pod/second"), "NodePorts");

    step("a sysctl that would touch others");
    cluster.apply(&pod("sysctl", "securityContext: {sysctls: [{name: kernel.msgmax, value: '10000'}]}", ""));
    assert_eq!(why("pod/sysctl"), "SysctlForbidden");

    step("a taint drives pods off at once, after their time, or never");
    let tolerates =
        |more: &str| format!("tolerations: [{{key: away, operator: Exists, effect: NoExecute {more}}}]");
    cluster.apply(&pod("at-once", "restartPolicy: Always", ""));
    cluster.apply(&pod("later", &tolerates(", tolerationSeconds: 3"), ""));
    cluster.apply(&pod("never", &tolerates(""), ""));
    for name in ["at-once", "later", "never"] {
        cluster.wait(&format!("pod/{name}"), "condition=Ready");
    }
    // As people set it: without saying since when.
    cluster
        .kubectl(&[
            "patch",
            "node",
            node,
            "--type=merge",
            "-p",
            r#"{"spec":{"taints":[{"key":"away","effect":"NoExecute"}]}}"#,
        ])
        .ok();
    cluster.wait("pod/at-once", "delete");
    cluster.wait("pod/later", "delete");
    assert_eq!(cluster.field("pod/never", ".status.phase"), "Running");
}
