//! Helm against a node: a chart with a custom resource's definition, hooks and tests through its whole
//! life. `HELM` names the program (otherwise it is beside kubectl, or found in PATH).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kedge_tests::{Cluster, Out, assert_has, eventually, kubectl_program, run, step};
use serde_json::Value;

/// Where it is: beside kubectl in `target/tools/bin` and in the package that both come from.
fn program() -> PathBuf {
    let kubectl = kubectl_program();
    let beside = [kubectl.with_file_name("helm"), kubectl.with_file_name("../helm/helm")];
    std::env::var_os("HELM")
        .map(PathBuf::from)
        .or_else(|| beside.into_iter().find(|path| path.is_file()))
        .unwrap_or_else(|| PathBuf::from("helm"))
}

struct Helm<'a>(&'a Cluster);

impl Helm<'_> {
    /// With nobody's settings, and nothing kept outside the test's folder.
    fn run(&self, arguments: &[&str]) -> Out {
        let home = self.0.dir().join("helm");
        let mut command = Command::new(program());
        command.env("KUBECONFIG", self.0.kubeconfig()).env("HOME", &home);
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, home.join(folder));
        }
        run(command.args(arguments), b"")
    }

    fn revisions(&self) -> Vec<(u64, String)> {
        let history = self.run(&["history", "shop", "-o", "json"]).json();
        let of = |entry: &Value| {
            (
                entry["revision"].as_u64().unwrap_or_default(),
                entry["status"].as_str().unwrap_or_default().into(),
            )
        };
        history.as_array().into_iter().flatten().map(of).collect()
    }
}

const CRD: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: shelves.shop.example.com}
spec:
  group: shop.example.com
  scope: Namespaced
  names: {plural: shelves, singular: shelf, kind: Shelf}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {boards: {type: integer, maximum: 9}}}
"#;

const SHELF: &str = r#"
apiVersion: shop.example.com/v1
kind: Shelf
metadata: {name: shelf}
spec: {boards: {{ .Values.boards }}}
"#;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app.kubernetes.io/managed-by: {{ .Release.Service }}}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: kedge.dev/hello:{{ .Values.version }}
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: seen}
data:
  kube: {{ .Capabilities.KubeVersion.Version | quote }}
  apps: {{ .Capabilities.APIVersions.Has "apps/v1/Deployment" | quote }}
  {{- with lookup "v1" "Namespace" "" "kube-system" }}
  found: {{ .metadata.name }}
  {{- end }}
"#;

/// A job that runs before or after the rest, and a test as `helm test` runs it.
const HOOKS: &str = r#"
apiVersion: batch/v1
kind: Job
metadata:
  name: before
  annotations: {helm.sh/hook: "pre-install,pre-upgrade", helm.sh/hook-delete-policy: before-hook-creation}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: c, image: "docker.io/library/busybox:test", command: [sh, -c, "{{ .Values.before }}"]}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: goodbye
  annotations: {helm.sh/hook: post-delete}
---
apiVersion: v1
kind: Pod
metadata:
  name: asks
  annotations: {helm.sh/hook: test, helm.sh/hook-delete-policy: before-hook-creation}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "docker.io/library/busybox:test", command: [wget, -qO-, "http://{{ .Values.address }}:8080/"]}
"#;

fn chart(folder: &Path) {
    fs::create_dir_all(folder.join("templates")).expect("make the chart's folders");
    fs::create_dir_all(folder.join("crds")).expect("make the chart's folders");
    for (file, text) in [
        ("Chart.yaml", "apiVersion: v2\nname: shop\nversion: 0.1.0\nkubeVersion: '>=1.36.0-0'\n"),
        ("values.yaml", "replicas: 1\nversion: '1.0'\nboards: 3\nbefore: 'true'\naddress: none.invalid\n"),
        ("crds/shelf.yaml", CRD),
        ("templates/shelf.yaml", SHELF),
        ("templates/web.yaml", WEB),
        ("templates/hooks.yaml", HOOKS),
        ("templates/NOTES.txt", "Open {{ .Release.Name }}.\n"),
    ] {
        fs::write(folder.join(file), text).expect("write the chart");
    }
}

#[test]
fn a_chart_with_hooks_definitions_and_tests() {
    let cluster = Cluster::start();
    cluster.import_busybox();
    let folder = cluster.dir().join("shop");
    chart(&folder);
    let chart = folder.display().to_string();
    let helm = Helm(&cluster);
    let version = helm.run(&["version", "--short"]).ok();
    eprintln!("helm {version}");

    step("a dry run on the server changes nothing");
    let shown =
        helm.run(&["install", "shop", &chart, "--dry-run=server", "--skip-crds", "--set", "boards=0"]);
    // The kind of the custom resource is not known before its definition is.
    assert!(shown.code != 0 && shown.stderr.contains("Shelf"), "{shown}");
    assert_eq!(
        cluster.get(&["all", "-l", "app.kubernetes.io/managed-by=Helm"])["items"],
        serde_json::json!([])
    );

    step("install: definitions, the hook, the rest, and wait until it is ready");
    let out = helm.run(&["install", "shop", &chart, "--wait", "--timeout", "4m"]).ok();
    assert_has(&out, &["STATUS: deployed", "Open shop."]);
    assert_eq!(cluster.field("shelf/shelf", ".spec.boards"), "3");
    assert_eq!(cluster.field("deployment/web", ".status.readyReplicas"), "1");
    assert_eq!(cluster.field("job/before", ".status.succeeded"), "1");
    assert_eq!(cluster.field("configmap/seen", ".data.apps"), "true");
    assert_eq!(cluster.field("configmap/seen", ".data.found"), "kube-system");
    assert_has(&cluster.field("configmap/seen", ".data.kube"), &["v1.36."]);

    step("helm test runs the chart's test and says how it went");
    let address = cluster.field("pods", ".items[?(@.metadata.labels.app==\"web\")].status.podIP");
    let wrong = helm.run(&["test", "shop", "--timeout", "4m"]);
    assert!(wrong.code != 0, "{wrong}");
    let set = format!("address={address}");
    helm.run(&["upgrade", "shop", &chart, "--set", &set, "--wait", "--timeout", "4m"]).ok();
    assert_has(&helm.run(&["test", "shop", "--logs", "--timeout", "4m"]).ok(), &["Succeeded", "hello 1.0"]);

    step("an upgrade of what runs; the same again changes nothing");
    let newer =
        ["upgrade", "shop", &chart, "--reuse-values", "--set", "version=2.0,replicas=2,boards=4", "--wait"];
    helm.run(&newer).ok();
    assert_eq!(cluster.field("deployment/web", ".status.updatedReplicas"), "2");
    assert_eq!(cluster.field("shelf/shelf", ".spec.boards"), "4");
    let generation = cluster.field("deployment/web", ".metadata.generation");
    helm.run(&newer).ok();
    assert_eq!(cluster.field("deployment/web", ".metadata.generation"), generation);

    step("what the API refuses, and a hook that fails, leave what runs");
    let refused = helm.run(&["upgrade", "shop", &chart, "--reuse-values", "--set", "boards=10"]);
    assert!(refused.code != 0, "{refused}");
    assert_has(&refused.stderr, &["spec.boards", "less than or equal to 9"]);
    let failed =
        helm.run(&["upgrade", "shop", &chart, "--reuse-values", "--set", "before=false", "--timeout", "4m"]);
    assert!(failed.code != 0, "{failed}");
    assert_eq!(cluster.field("shelf/shelf", ".spec.boards"), "4");
    let last = helm.revisions();
    assert_eq!(last.iter().filter(|(_, status)| status == "failed").count(), 2, "{last:?}");

    step("what others have changed by hand is put right, and a rollback brings the first one back");
    cluster.kubectl(&["delete", "service", "web"]).ok();
    helm.run(&["rollback", "shop", "1", "--wait", "--timeout", "4m"]).ok();
    assert_eq!(cluster.field("shelf/shelf", ".spec.boards"), "3");
    let image = ".spec.template.spec.containers[0].image";
    assert_eq!(cluster.field("deployment/web", image), "kedge.dev/hello:1.0");
    assert_has(&cluster.field("service/web", ".spec.clusterIP"), &["."]);
    assert_eq!(helm.revisions().last().map(|(_, status)| status.clone()).as_deref(), Some("deployed"));

    step("a release is listed, shown and compared");
    let listed = helm.run(&["list", "-o", "json"]).json();
    assert_eq!(listed[0]["name"], "shop");
    assert_has(&helm.run(&["get", "manifest", "shop"]).ok(), &["kind: Shelf", "kind: Deployment"]);

    step("uninstall removes what it made, runs the last hook and leaves definitions alone");
    helm.run(&["uninstall", "shop", "--wait", "--timeout", "4m"]).ok();
    for kept in ["configmap/goodbye", "crd/shelves.shop.example.com"] {
        cluster.kubectl(&["get", kept]).ok();
    }
    for gone in ["deployment/web", "service/web", "configmap/seen", "shelf/shelf"] {
        cluster.kubectl(&["get", gone]).failed(1);
    }
    eventually("no release is left", || (helm.run(&["list", "-q"]).stdout.trim() == "").then_some(()));
    let secrets = cluster.get(&["secrets", "-l", "owner=helm"]);
    assert_eq!(secrets["items"].as_array().map(Vec::len), Some(0), "{secrets}");
}
