//! The hostpath-storage addon: data that outlives its pod, and is reclaimed with its claim.

use kedge_tests::{BUSYBOX, Cluster, assert_has, eventually, step};

const SET: &str = r"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {runAsUser: 1000, runAsGroup: 1000}
      containers:
      - name: c
        image: IMAGE
        command: [sh, -c, 'sleep 3600']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 1Gi}}
";

const OTHERS: &str = r"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: kept}
provisioner: kedge.dev/hostpath
reclaimPolicy: Retain
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {storageClassName: kept, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: block}
spec: {volumeMode: Block, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: kept}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: IMAGE
    command: [sh, -c, 'echo kept > /data/file; sleep 3600']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: kept}}]
";

#[test]
fn data_outlives_its_pod() {
    let cluster = Cluster::start();
    cluster.import_busybox();

    step("a claim waits for the addon; a wrong path is refused");
    assert_has(&cluster.kedge(&["enable", "hostpath-storage:path=/a/../b"]).failed(2), &["without . and .."]);
    cluster.apply(&SET.replace("IMAGE", BUSYBOX));
    cluster.kedge(&["enable", "hostpath-storage"]).ok();
    let class = cluster.kubectl(&["get", "storageclass"]).ok();
    assert_has(&class, &["kedge-hostpath (default)", "kedge.dev/hostpath", "WaitForFirstConsumer"]);

    step("the StatefulSet gets its volume, on the node where it runs");
    cluster.wait("pod/db-0", "condition=Ready");
    assert_eq!(cluster.field("pvc/data-db-0", ".status.phase"), "Bound");
    assert_eq!(cluster.field("pvc/data-db-0", ".status.capacity.storage"), "1Gi");
    let volume = cluster.field("pvc/data-db-0", ".spec.volumeName");
    let volume = format!("pv/{volume}");
    let node = ".spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].values[0]";
    assert_eq!(cluster.field(&volume, node), cluster.node);
    let folder = std::path::PathBuf::from(cluster.field(&volume, ".spec.hostPath.path"));
    assert!(folder.starts_with(cluster.dir().join("data/storage")), "{}", folder.display());
    let root = folder.parent().unwrap().metadata().unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&root.permissions()) & 0o777, 0o700);
    cluster.exec("db-0", "mkdir -m 700 /data/sub && echo one > /data/sub/file");

    step("the next pod finds the data");
    let uid = cluster.field("pod/db-0", ".metadata.uid");
    cluster.kubectl(&["delete", "pod", "db-0"]).ok();
    eventually("another pod", || {
        let out = cluster.kubectl(&["get", "pod", "db-0", "-o", "jsonpath={.metadata.uid}"]);
        (out.code == 0 && out.stdout != uid).then_some(())
    });
    cluster.wait("pod/db-0", "condition=Ready");
    assert_eq!(cluster.exec("db-0", "cat /data/sub/file"), "one\n");

    step("a Retain class, and what a folder cannot be");
    cluster.apply(&OTHERS.replace("IMAGE", BUSYBOX));
    cluster.wait("pod/kept", "condition=Ready");
    let kept = format!("pv/{}", cluster.field("pvc/kept", ".spec.volumeName"));
    let kept_folder = std::path::PathBuf::from(cluster.field(&kept, ".spec.hostPath.path"));

    step("deleted with the claims: the data of one goes, that of the other stays");
    cluster.kubectl(&["delete", "statefulset/db", "pod/kept", "pvc/data-db-0", "pvc/kept", "pvc/block"]).ok();
    eventually("the folder and the volume to be gone", || {
        let out = cluster.kubectl(&["get", &volume]);
        (!folder.exists() && out.stderr.contains("not found")).then_some(())
    });
    eventually("the other to be released", || {
        (cluster.field(&kept, ".status.phase") == "Released").then_some(())
    });
    cluster.kubectl(&["delete", &kept]).ok();
    assert_eq!(std::fs::read_to_string(kept_folder.join("file")).unwrap(), "kept\n");

    step("disabled: the class is gone");
    cluster.kedge(&["disable", "hostpath-storage"]).ok();
    let class = cluster.kubectl(&["get", "storageclass", "-o", "name"]).ok();
    assert!(!class.contains("kedge-hostpath"), "{class}");
}
