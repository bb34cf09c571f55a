//! Volumes, mounts and devices.

use super::*;

fn volume(source: Value) -> Value {
    let mut volume = json!({"name": "v"});
    merge(&mut volume, source);
    spec(json!({ "volumes": [volume] }))
}

fn mounts(mounts: Value) -> Value {
    let mut spec = container(json!({ "volumeMounts": mounts }));
    spec["volumes"] = json!([{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]);
    spec
}

fn devices(devices: Value, mounts: Value) -> Value {
    let mut spec = container(json!({ "volumeDevices": devices, "volumeMounts": mounts }));
    spec["volumes"] =
        json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "w", "emptyDir": {}}]);
    spec
}

#[test]
fn sources() {
    refuses([
        (volume(json!({})), &["spec.volumes[0]: Required value: must specify a volume type"]),
        (
            volume(json!({"emptyDir": {}, "hostPath": {"path": "/x"}})),
            &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
        ),
        (
            volume(json!({"emptyDir": {"sizeLimit": "-1"}})),
            &[
                "spec.volumes[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
            ],
        ),
        (volume(json!({"configMap": {}})), &["spec.volumes[0].configMap.name: Required value"]),
        (volume(json!({"secret": {}})), &["spec.volumes[0].secret.secretName: Required value"]),
        (
            volume(json!({"secret": {"secretName": "s", "defaultMode": 9999}})),
            &[
                "spec.volumes[0].secret.defaultMode: Invalid value: 9999: must be a number between 0 and 0777 (octal), both inclusive",
            ],
        ),
        (
            volume(
                json!({"configMap": {"name": "c", "items": [{"key": "k", "path": "/etc"}, {"path": "a/../b"},
                {"key": "k", "path": "..x", "mode": -1}, {"key": "k"}]}}),
            ),
            &[
                r#"spec.volumes[0].configMap.items[0].path: Invalid value: "/etc": must be a relative path"#,
                "spec.volumes[0].configMap.items[1].key: Required value",
                r#"spec.volumes[0].configMap.items[1].path: Invalid value: "a/../b": must not contain '..'"#,
                r#"spec.volumes[0].configMap.items[2].path: Invalid value: "..x": must not start with '..'"#,
                "spec.volumes[0].configMap.items[2].mode: Invalid value: -1: must be a number between 0 and 0777 (octal), both inclusive",
                "spec.volumes[0].configMap.items[3].path: Required value",
            ],
        ),
        (
            volume(json!({"hostPath": {"path": "/a/../b", "type": "x"}})),
            &[
                r#"spec.volumes[0].hostPath.path: Invalid value: "/a/../b": must not contain '..'"#,
                r#"spec.volumes[0].hostPath.type: Unsupported value: "x": supported values: "", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket""#,
            ],
        ),
        (volume(json!({"hostPath": {}})), &["spec.volumes[0].hostPath.path: Required value"]),
        (
            volume(json!({"persistentVolumeClaim": {}})),
            &["spec.volumes[0].persistentVolumeClaim.claimName: Required value"],
        ),
        (
            volume(json!({"nfs": {"server": "s", "path": "x"}})),
            &[r#"spec.volumes[0].nfs.path: Invalid value: "x": must be an absolute path"#],
        ),
        (
            volume(json!({"csi": {"driver": "a_b"}})),
            &[
                r#"spec.volumes[0].csi.driver: Invalid value: "a_b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#,
            ],
        ),
        (
            volume(
                json!({"iscsi": {"targetPortal": "1.2.3.4", "iqn": "qn", "lun": 300, "chapAuthSession": true}}),
            ),
            &[
                r#"spec.volumes[0].iscsi.iqn: Invalid value: "qn": must be valid format starting with iqn, eui, or naa"#,
                "spec.volumes[0].iscsi.lun: Invalid value: 300: must be between 0 and 255, inclusive",
                "spec.volumes[0].iscsi.secretRef: Required value",
            ],
        ),
        (
            volume(
                json!({"downwardAPI": {"items": [{"path": "a"}, {"path": "b", "fieldRef": {"fieldPath": "spec.bogus"}},
                {"path": "c", "resourceFieldRef": {"resource": "limits.cpu"}},
                {"path": "d", "fieldRef": {"fieldPath": "status.podIP"}}]}}),
            ),
            &[
                "spec.volumes[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
                r#"spec.volumes[0].downwardAPI.fieldRef.fieldPath: Invalid value: "spec.bogus": error converting fieldPath: field label not supported: spec.bogus"#,
                "spec.volumes[0].downwardAPI.resourceFieldRef.containerName: Required value",
                r#"spec.volumes[0].downwardAPI.fieldRef.fieldPath: Unsupported value: "status.podIP": supported values: "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid""#,
            ],
        ),
        (
            volume(json!({"ephemeral": {}})),
            &["spec.volumes[0].ephemeral.volumeClaimTemplate: Required value"],
        ),
        (
            volume(json!({"ephemeral": {"volumeClaimTemplate": {"metadata": {"name": "x"}, "spec": {
                "accessModes": ["Foo"], "volumeMode": "x"}}}})),
            &[
                "spec.volumes[0].ephemeral.volumeClaimTemplate.metadata.name: Forbidden: cannot be set",
                r#"spec.volumes[0].ephemeral.volumeClaimTemplate.spec.accessModes: Unsupported value: "Foo": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod""#,
                "spec.volumes[0].ephemeral.volumeClaimTemplate.spec.resources[storage]: Required value",
                r#"spec.volumes[0].ephemeral.volumeClaimTemplate.spec.volumeMode: Unsupported value: "x": supported values: "Block", "Filesystem""#,
            ],
        ),
        (
            // The rules of claims, all of them.
            volume(json!({"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": 1}}, "volumeMode": "", "dataSource": {"kind": "A", "name": "a"},
                "volumeAttributesClassName": "A"}}}})),
            &[
                r#"spec.volumes[0].ephemeral.volumeClaimTemplate.spec.volumeMode: Unsupported value: "": supported values: "Block", "Filesystem""#,
                r#"spec.volumes[0].ephemeral.volumeClaimTemplate.spec.dataSource: Invalid value: "A": must be 'PersistentVolumeClaim' when referencing the default apiGroup"#,
                r#"spec.volumes[0].ephemeral.volumeClaimTemplate.spec.volumeAttributesClassName: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#,
            ],
        ),
        (volume(json!({"image": {}})), &["spec.volumes[0].image.reference: Required value"]),
    ]);
}

#[test]
fn names_of_volumes() {
    let dir = |name: &str| json!({"name": name, "emptyDir": {}});
    refuses([
        (spec(json!({"volumes": [{"emptyDir": {}}]})), &["spec.volumes[0].name: Required value"]),
        (spec(json!({"volumes": [dir("a"), dir("a")]})), &[r#"spec.volumes[1].name: Duplicate value: "a""#]),
        (
            spec(json!({"volumes": [
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}}}}}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "p-e"}}]})),
            &[
                r#"spec.volumes[1].persistentVolumeClaim.claimName: Invalid value: "p-e": must not reference a PVC that gets created for an ephemeral volume"#,
            ],
        ),
    ]);
}

#[test]
fn projections() {
    let projected = |sources: Value| volume(json!({"projected": { "sources": sources }}));
    let token = |token: Value| projected(json!([{ "serviceAccountToken": token }]));
    refuses([
        (token(json!({})), &["spec.volumes[0].projected.path: Required value"]),
        (
            token(json!({"path": "t", "expirationSeconds": 599})),
            &[
                "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
            ],
        ),
        (
            token(json!({"path": "t", "expirationSeconds": 4_294_967_297_i64})),
            &[
                "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 seconds",
            ],
        ),
        (
            token(json!({"path": "../t"})),
            &[r#"spec.volumes[0].projected.path: Invalid value: "../t": must not contain '..'"#],
        ),
        (
            projected(json!([{"secret": {"name": "s"}, "configMap": {"name": "c"}}])),
            &[
                "spec.volumes[0].projected.sources[0]: Forbidden: may not specify more than 1 volume type per source",
            ],
        ),
        (
            projected(json!([{"secret": {"name": "s", "items": [{"key": "k", "path": "x"}]}},
                {"configMap": {"name": "c", "items": [{"key": "k", "path": "x"}]}}, {"configMap": {}}])),
            &[
                r#"spec.volumes[0].projected: Invalid value: "c": conflicting duplicate paths"#,
                "spec.volumes[0].projected.sources[2].configMap.name: Required value",
            ],
        ),
    ]);
    let mut without_account = token(json!({"path": "t"}));
    without_account["serviceAccountName"] = json!("");
    refuses([(
        without_account,
        &[
            "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set",
        ],
    )]);
    accepts([token(json!({"path": "dir/t", "expirationSeconds": 600})), projected(json!([]))]);
}

#[test]
fn mounted() {
    let mount = |fields: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/x"});
        merge(&mut mount, fields);
        mounts(json!([mount]))
    };
    const AT: &str = "spec.containers[0].volumeMounts";
    let at = |rest: &str| format!("{AT}{rest}");
    let cases = [
        (mount(json!({"name": ""})), vec![at("[0].name: Required value"), at(r#"[0].name: Not found: """#)]),
        (mount(json!({"name": "z"})), vec![at(r#"[0].name: Not found: "z""#)]),
        (mount(json!({"mountPath": ""})), vec![at("[0].mountPath: Required value")]),
        (
            mounts(json!([{"name": "v", "mountPath": "/x"}, {"name": "w", "mountPath": "/x"}])),
            vec![at(r#"[1].mountPath: Invalid value: "/x": must be unique"#)],
        ),
        (
            mount(json!({"subPath": "/a"})),
            vec![at(r#".subPath: Invalid value: "/a": must be a relative path"#)],
        ),
        (
            mount(json!({"subPath": "a/.."})),
            vec![at(r#".subPath: Invalid value: "a/..": must not contain '..'"#)],
        ),
        (
            mount(json!({"subPath": "a", "subPathExpr": "/$(B)/.."})),
            vec![
                at(
                    r#"[0].subPathExpr: Invalid value: "/$(B)/..": subPathExpr and subPath are mutually exclusive"#,
                ),
                at(r#".subPathExpr: Invalid value: "/$(B)/..": must be a relative path"#),
                at(r#".subPathExpr: Invalid value: "/$(B)/..": must not contain '..'"#),
            ],
        ),
        (
            mount(json!({"mountPropagation": "Bidirectional"})),
            vec![at(
                ".mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
            )],
        ),
        (
            // A pointer to nothing is no default.
            mount(json!({"mountPropagation": ""})),
            vec![at(
                r#".mountPropagation: Unsupported value: "": supported values: "Bidirectional", "HostToContainer", "None""#,
            )],
        ),
        (
            mount(json!({"mountPropagation": "Foo"})),
            vec![at(
                r#".mountPropagation: Unsupported value: "Foo": supported values: "Bidirectional", "HostToContainer", "None""#,
            )],
        ),
        (
            mount(json!({"recursiveReadOnly": "Enabled", "mountPropagation": "HostToContainer"})),
            vec![
                at(".recursiveReadOnly: Forbidden: may only be specified when readOnly is true"),
                at(
                    ".recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not specified",
                ),
            ],
        ),
    ];
    for (spec, wanted) in cases {
        assert_eq!(check(&spec), wanted, "{spec}");
    }
    // Upstream's API takes colons; it is the documentation that advises against them.
    accepts([
        mount(
            json!({"mountPath": "/a:b", "subPath": "a/..b/c", "readOnly": true, "recursiveReadOnly": "Enabled"}),
        ),
        mount(json!({"mountPropagation": "HostToContainer", "subPathExpr": "$(POD)/logs"})),
        mount(json!({"mountPath": "relative"})),
    ]);
}

#[test]
fn raw_devices() {
    const AT: &str = "spec.containers[0].volumeDevices[0]";
    let one = |name: &str, path: &str| devices(json!([{"name": name, "devicePath": path}]), json!([]));
    let cases = [
        (
            one("w", "/dev/x"),
            format!(
                r#"{AT}.name: Invalid value: "w": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"#
            ),
        ),
        (one("z", "/dev/x"), format!(r#"{AT}.name: Not found: "z""#)),
        (one("v", ""), format!("{AT}.devicePath: Required value")),
        (
            one("v", "/dev/../x"),
            format!(r#"{AT}.devicePath: Invalid value: "/dev/../x": can not contain backsteps ('..')"#),
        ),
    ];
    for (spec, wanted) in cases {
        assert_eq!(check(&spec), [wanted], "{spec}");
    }
    let both = devices(
        json!([{"name": "v", "devicePath": "/dev/x"}]),
        json!([{"name": "v", "mountPath": "/dev/x"}]),
    );
    refuses([(
        both,
        &[
            r#"spec.containers[0].volumeMounts[0].name: Invalid value: "v": must not already exist in volumeDevices"#,
            r#"spec.containers[0].volumeMounts[0].mountPath: Invalid value: "/dev/x": must not already exist as a path in volumeDevices"#,
            r#"spec.containers[0].volumeDevices[0].name: Invalid value: "v": must not already exist in volumeMounts"#,
            r#"spec.containers[0].volumeDevices[0].devicePath: Invalid value: "/dev/x": must not already exist as a path in volumeMounts"#,
        ],
    )]);
    accepts([one("v", "/dev/x")]);
}

#[test]
fn what_is_fine() {
    accepts([
        volume(json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}})),
        volume(json!({"hostPath": {"path": "/a/..b", "type": "DirectoryOrCreate"}})),
        volume(json!({"gitRepo": {"repository": "r", "directory": "a/b"}})),
        volume(
            json!({"iscsi": {"targetPortal": "127.0.0.1", "iqn": "iqn.2015-02.example.com:test", "lun": 1, "fsType": "ext4"}}),
        ),
        volume(json!({"iscsi": {"targetPortal": "127.0.0.1", "iqn": "eui.0123456789ABCDEF", "lun": 0}})),
        volume(json!({"rbd": {"monitors": ["m"], "image": "i"}})),
        volume(json!({"fc": {"targetWWNs": ["w"], "lun": 1}})),
        volume(json!({"fc": {"wwids": ["w"]}})),
        volume(
            json!({"flexVolume": {"driver": "d", "options": {"example.org/a": "b", "kubernetes.iox/a": "b"}}}),
        ),
        volume(json!({"cephfs": {"monitors": ["m"]}})),
        volume(json!({"quobyte": {"registry": "a:1,b:2", "volume": "v"}})),
        volume(
            json!({"azureDisk": {"diskName": "d", "diskURI": "https://a.blob.core.windows.net/v/d.vhd", "kind": "Shared", "cachingMode": "ReadWrite"}}),
        ),
        volume(json!({"storageos": {"volumeName": "v"}})),
        volume(
            json!({"scaleIO": {"gateway": "g", "system": "s", "volumeName": "v", "secretRef": {"name": "x"}}}),
        ),
        volume(json!({"csi": {"driver": "Inline.csi.example.com", "nodePublishSecretRef": {"name": "s"}}})),
        volume(json!({"image": {"reference": "r", "pullPolicy": "Always"}})),
        volume(
            json!({"configMap": {"name": "c", "optional": true, "items": [{"key": "k", "path": "a/b..c", "mode": 0o777}]}}),
        ),
        volume(json!({"downwardAPI": {"items": [
            {"path": "l", "fieldRef": {"fieldPath": "metadata.labels['example.com/a']"}},
            {"path": "n", "fieldRef": {"fieldPath": "metadata.annotations['Example.com/A']"}},
            {"path": "r", "mode": 256, "resourceFieldRef": {"containerName": "a", "resource": "requests.memory", "divisor": "1Mi"}}]}})),
    ]);
}
