//! Volumes, environment, init containers, and a ServiceAccount's token that really is let in.

use std::fs;

use kedge_tests::{BUSYBOX, Cluster, assert_has, eventually, kubectl_program, run, step};

const OBJECTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, size: "7", "file.txt": "first\n"}
binaryData: {picture: /wAB}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: s3cret}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
"#;

#[test]
fn volumes_environment_and_tokens() {
    let cluster = Cluster::start();
    cluster.import_busybox();
    cluster.apply(OBJECTS);
    let host = cluster.dir().join("host");
    let tools = cluster.dir().join("tools");
    fs::create_dir_all(&host).unwrap();
    fs::create_dir_all(&tools).unwrap();
    fs::write(host.join("hello"), "from the host\n").unwrap();
    // kubectl inside a pod is the real client with the real in-cluster configuration.
    let found =
        run(std::process::Command::new("sh").args(["-c", "command -v \"$0\""]).arg(kubectl_program()), b"");
    fs::copy(found.ok().trim(), tools.join("kubectl")).unwrap();

    step("one pod with everything");
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: all
  labels: {{tier: back}}
  annotations: {{note: "a b"}}
spec:
  serviceAccountName: reader
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: first
    image: {BUSYBOX}
    command: [sh, -c, "echo one > /scratch/order"]
    volumeMounts: [{{name: work, mountPath: /scratch}}]
  - name: second
    image: {BUSYBOX}
    command: [sh, -c, "echo two >> /scratch/order"]
    volumeMounts: [{{name: work, mountPath: /scratch}}]
  containers:
  - name: c
    image: {BUSYBOX}
    command: [sh, -c, "trap 'exit 0' TERM; while true; do sleep 1; done"]
    resources:
      requests: {{cpu: 100m, memory: 16Mi}}
      limits: {{cpu: 500m, memory: 64Mi}}
    envFrom:
    - configMapRef: {{name: settings}}
    - prefix: S_
      secretRef: {{name: keys}}
    env:
    - {{name: PLAIN, value: "x"}}
    - {{name: COMPOSED, value: "$(PLAIN)-$(COLOR)-$$(PLAIN)"}}
    - {{name: COLOR, valueFrom: {{configMapKeyRef: {{name: settings, key: color}}}}}}
    - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: keys, key: password}}}}}}
    - {{name: NONE, valueFrom: {{configMapKeyRef: {{name: absent, key: x, optional: true}}}}}}
    - {{name: MY_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
    - {{name: MY_IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
    - {{name: MY_NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
    - {{name: MY_ACCOUNT, valueFrom: {{fieldRef: {{fieldPath: spec.serviceAccountName}}}}}}
    - {{name: MY_TIER, valueFrom: {{fieldRef: {{fieldPath: "metadata.labels['tier']"}}}}}}
    - {{name: MY_CPU, valueFrom: {{resourceFieldRef: {{resource: limits.cpu, divisor: 1m}}}}}}
    - {{name: MY_MEMORY, valueFrom: {{resourceFieldRef: {{resource: limits.memory}}}}}}
    volumeMounts:
    - {{name: work, mountPath: /scratch}}
    - {{name: memory, mountPath: /memory}}
    - {{name: config, mountPath: /config}}
    - {{name: config, mountPath: /one.txt, subPath: file.txt}}
    - {{name: secret, mountPath: /secret, readOnly: true}}
    - {{name: host, mountPath: /host, readOnly: true}}
    - {{name: tools, mountPath: /tools}}
    - {{name: projected, mountPath: /projected}}
  volumes:
  - {{name: work, emptyDir: {{}}}}
  - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 8Mi}}}}
  - {{name: config, configMap: {{name: settings, defaultMode: 0640}}}}
  - {{name: secret, secret: {{secretName: keys, items: [{{key: password, path: a/b, mode: 0400}}]}}}}
  - {{name: host, hostPath: {{path: {}, type: Directory}}}}
  - {{name: tools, hostPath: {{path: {}}}}}
  - name: projected
    projected:
      sources:
      - serviceAccountToken: {{path: token, audience: vault, expirationSeconds: 3600}}
      - configMap: {{name: settings, items: [{{key: color, path: color}}]}}
      - downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}, {{path: notes, fieldRef: {{fieldPath: metadata.annotations}}}}]}}
"#,
        host.display(),
        tools.display()
    ));
    cluster.wait("pod/all", "condition=Ready");

    step("init containers ran in order");
    assert_eq!(cluster.exec("all", "cat /scratch/order"), "one\ntwo\n");
    assert_eq!(
        cluster.field("pod/all", ".status.initContainerStatuses[*].state.terminated.reason"),
        "Completed Completed"
    );

    step("environment");
    let environment = cluster.exec("all", "env");
    let ip = cluster.field("pod/all", ".status.podIP");
    for line in [
        "color=blue",
        "size=7",
        "S_password=s3cret",
        "PLAIN=x",
        "COLOR=blue",
        "PASSWORD=s3cret",
        "MY_NAME=all",
        "MY_ACCOUNT=reader",
        "MY_TIER=back",
        "MY_CPU=500",
        "MY_MEMORY=67108864",
        "HOSTNAME=all",
        &format!("MY_IP={ip}"),
        &format!("MY_NODE={}", cluster.node),
    ] {
        assert!(environment.lines().any(|found| found == line), "{line} is not in\n{environment}");
    }
    // A variable may name only those before it.
    assert_has(&environment, &["COMPOSED=x-$(COLOR)-$(PLAIN)"]);
    assert!(!environment.contains("NONE="), "{environment}");
    assert!(!environment.contains("picture"), "what is binary is no variable: {environment}");

    step("files");
    assert_eq!(cluster.exec("all", "cat /config/color /config/file.txt /one.txt"), "bluefirst\nfirst\n");
    assert_eq!(cluster.exec("all", "od -An -tx1 /config/picture").trim(), "ff 00 01");
    assert_eq!(cluster.exec("all", "stat -L -c %a /config/color").trim(), "640");
    assert_eq!(cluster.exec("all", "cat /secret/a/b; ls /secret"), "s3creta\n");
    assert_eq!(cluster.exec("all", "stat -L -c %a /secret/a/b").trim(), "400");
    assert_eq!(cluster.exec("all", "cat /host/hello"), "from the host\n");
    assert_ne!(
        cluster.kubectl(&["exec", "all", "--", "touch", "/host/x"]).code,
        0,
        "a read-only mount was written"
    );
    assert_has(&cluster.exec("all", "grep ' /memory ' /proc/mounts"), &["tmpfs"]);
    assert_has(&cluster.exec("all", "grep ' /secret ' /proc/mounts"), &["tmpfs"]);
    assert_eq!(cluster.exec("all", "cat /projected/labels /projected/color"), "tier=\"back\"blue");
    assert_has(&cluster.exec("all", "cat /projected/notes"), &["note=\"a b\""]);
    assert_has(&cluster.exec("all", "cat /etc/hosts"), &[&ip, "all"]);
    let dns = cluster.flags().iter().skip_while(|flag| *flag != "--cluster-dns").nth(1).unwrap();
    assert_has(
        &cluster.exec("all", "cat /etc/resolv.conf"),
        &[
            &format!("nameserver {dns}"),
            "default.svc.cluster.local svc.cluster.local cluster.local",
            "ndots:5",
        ],
    );

    step("limits are in the cgroup");
    let limits = cluster.exec(
        "all",
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null | head -1",
    );
    assert_eq!(limits.trim(), "67108864");
    assert_eq!(cluster.field("pod/all", ".status.qosClass"), "Burstable");

    step("the token is let in, with the account's rights and no others");
    let inside = "HOME=/tmp /tools/kubectl";
    let who = cluster.exec("all", &format!("{inside} auth whoami"));
    assert_has(
        &who,
        &[
            "system:serviceaccount:default:reader",
            "system:serviceaccounts",
            "authentication.kubernetes.io/pod-name",
        ],
    );
    assert_has(&cluster.exec("all", &format!("{inside} get pods -o name")), &["pod/all"]);
    let refused = cluster.kubectl(&["exec", "all", "--", "sh", "-c", &format!("{inside} get secrets")]);
    assert_ne!(refused.code, 0);
    assert_has(
        &refused.stderr,
        &[
            "secrets is forbidden: User \"system:serviceaccount:default:reader\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"",
        ],
    );
    let other = cluster.kubectl(&[
        "exec",
        "all",
        "--",
        "sh",
        "-c",
        &format!("{inside} --token=$(cat /projected/token) get pods"),
    ]);
    assert_ne!(other.code, 0, "a token for another audience was let in: {other}");
    assert_has(&other.stderr, &["Unauthorized"]);

    step("an update of a ConfigMap arrives in the volume, not in a subPath and not in the environment");
    cluster
        .kubectl(&[
            "patch",
            "configmap",
            "settings",
            "-p",
            r#"{"data":{"color":"green","file.txt":"second\n"}}"#,
        ])
        .ok();
    eventually("the new content", || (cluster.exec("all", "cat /config/color") == "green").then_some(()));
    assert_eq!(cluster.exec("all", "cat /config/file.txt /one.txt; echo $COLOR"), "second\nfirst\nblue\n");

    step("what is missing is waited for");
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: late}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: {BUSYBOX}
    command: [sleep, "3600"]
    volumeMounts: [{{name: v, mountPath: /v}}]
  volumes: [{{name: v, configMap: {{name: later}}}}]
"#
    ));
    assert_has(
        &cluster.event("Pod/late", "FailedMount"),
        &["MountVolume.SetUp failed for volume \"v\"", "configmap \"later\" not found"],
    );
    assert_eq!(
        cluster.field("pod/late", ".status.containerStatuses[0].state.waiting.reason"),
        "ContainerCreating"
    );
    cluster.kubectl(&["create", "configmap", "later", "--from-literal=k=v"]).ok();
    cluster.wait("pod/late", "condition=Ready");

    step("a missing ConfigMap in the environment: CreateContainerConfigError");
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: lost}}
spec:
  containers:
  - name: c
    image: {BUSYBOX}
    command: [sleep, "3600"]
    env: [{{name: A, valueFrom: {{configMapKeyRef: {{name: nowhere, key: k}}}}}}]
"#
    ));
    cluster.wait(
        "pod/lost",
        "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CreateContainerConfigError",
    );
    assert_has(&cluster.event("Pod/lost", "Failed"), &["Error: configmap \"nowhere\" not found"]);
    cluster.kubectl(&["delete", "pod", "all", "late", "lost", "--timeout=300s"]).ok();
    assert!(host.join("hello").exists(), "the host's folder went with the pod");
}
