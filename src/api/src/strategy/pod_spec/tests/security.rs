//! Security contexts, operating systems, annotations that tell profiles.

use super::*;

#[track_caller]
fn refuses_at<const N: usize>(at: &str, cases: [(Value, &[&str]); N]) {
    for (spec, wanted) in cases {
        let wanted: Vec<String> = wanted.iter().map(|rest| format!("{at}{rest}")).collect();
        assert_eq!(check(&spec), wanted, "{spec}");
    }
}

#[test]
fn of_pods() {
    let of = |context: Value| spec(json!({ "securityContext": context }));
    let mut shared = of(json!({}));
    merge(&mut shared, json!({"shareProcessNamespace": true, "hostPID": true}));
    refuses_at(
        "spec.securityContext",
        [
            (
                of(json!({"runAsUser": -1})),
                &[".runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive"],
            ),
            (
                of(json!({"fsGroup": 2_147_483_648_i64, "runAsGroup": -2, "supplementalGroups": [1, -3]})),
                &[
                    ".fsGroup: Invalid value: 2147483648: must be between 0 and 2147483647, inclusive",
                    ".runAsGroup: Invalid value: -2: must be between 0 and 2147483647, inclusive",
                    ".supplementalGroups[1]: Invalid value: -3: must be between 0 and 2147483647, inclusive",
                ],
            ),
            (
                shared,
                &[
                    ".shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
                ],
            ),
            (
                of(
                    json!({"fsGroupChangePolicy": "x", "supplementalGroupsPolicy": "y", "seLinuxChangePolicy": "MountOption"}),
                ),
                &[
                    r#".fsGroupChangePolicy: Unsupported value: "x": supported values: "Always", "OnRootMismatch""#,
                    r#".supplementalGroupsPolicy: Unsupported value: "y": supported values: "Merge", "Strict""#,
                    r#".seLinuxChangePolicy: Unsupported value: "MountOption": supported values: "Recursive""#,
                ],
            ),
            (
                of(json!({"seccompProfile": {}})),
                &[".seccompProfile.type: Required value: type is required when seccompProfile is set"],
            ),
            (
                of(json!({"seccompProfile": {"type": "Localhost"}})),
                &[
                    ".seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
                ],
            ),
            (
                of(json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "/x"}})),
                &[r#".seccompProfile.localhostProfile: Invalid value: "/x": must be a relative path"#],
            ),
            (
                of(json!({"appArmorProfile": {"type": "Foo"}})),
                &[
                    r#".appArmorProfile.type: Unsupported value: "Foo": supported values: "Localhost", "RuntimeDefault", "Unconfined""#,
                ],
            ),
            (
                of(json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": " x"}})),
                &[
                    r#".appArmorProfile.localhostProfile: Invalid value: " x": must not be padded with whitespace"#,
                ],
            ),
            (
                of(json!({"appArmorProfile": {"type": "RuntimeDefault", "localhostProfile": "x"}})),
                &[
                    r#".appArmorProfile.localhostProfile: Invalid value: "x": can only be set when AppArmor type is Localhost"#,
                ],
            ),
        ],
    );
    accepts([
        of(
            json!({"runAsUser": 0, "fsGroup": 2_147_483_647, "seLinuxChangePolicy": "Recursive", "supplementalGroupsPolicy": "Strict",
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"},
            "appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}}),
        ),
        of(json!({"seccompProfile": {"type": "Unconfined"}, "appArmorProfile": {"type": "Unconfined"}})),
    ]);
}

#[test]
fn kernel_parameters() {
    let of = |fields: Value, names: &[&str]| {
        let list: Vec<Value> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        let mut spec = spec(json!({"securityContext": { "sysctls": list }}));
        merge(&mut spec, fields);
        spec
    };
    const FORM: &str = r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    refuses_at(
        "spec.securityContext.sysctls",
        [
            (
                of(json!({}), &["foo-", "kernel.shmmax", "", "bar..", "kernel.shmmax"]),
                &[
                    &format!(r#"[0].name: Invalid value: "foo-": {FORM}"#),
                    "[2].name: Required value",
                    &format!(r#"[3].name: Invalid value: "bar..": {FORM}"#),
                    r#"[4].name: Duplicate value: "kernel.shmmax""#,
                ],
            ),
            (
                of(json!({"hostNetwork": true}), &["net.ipv4.a", "net/ipv4/eth0.1/b"]),
                &[
                    r#"[0].name: Invalid value: "net.ipv4.a": may not be specified when 'hostNetwork' is true"#,
                    r#"[1].name: Invalid value: "net/ipv4/eth0.1/b": may not be specified when 'hostNetwork' is true"#,
                ],
            ),
            (
                of(json!({"hostIPC": true}), &["kernel.shmmax", "net.ipv4.a", "fs.mqueue.x"]),
                &[
                    r#"[0].name: Invalid value: "kernel.shmmax": may not be specified when 'hostIPC' is true"#,
                    r#"[2].name: Invalid value: "fs.mqueue.x": may not be specified when 'hostIPC' is true"#,
                ],
            ),
        ],
    );
    accepts([of(json!({}), &["kernel.shmmax", "safe-and-unsafe", "net/ipv4/a_b"])]);
}

#[test]
fn of_containers() {
    let of = |context: Value| container(json!({ "securityContext": context }));
    let mut own_users = of(json!({"procMount": "Unmasked"}));
    own_users["hostUsers"] = json!(false);
    refuses_at(
        "spec.containers[0].securityContext",
        [
            (
                of(json!({"runAsUser": -1})),
                &[".runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive"],
            ),
            (
                of(json!({"privileged": true, "allowPrivilegeEscalation": false})),
                &[
                    r#": Invalid value: {"allowPrivilegeEscalation":false,"privileged":true}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true"#,
                ],
            ),
            (
                of(json!({"capabilities": {"add": ["CAP_SYS_ADMIN"]}, "allowPrivilegeEscalation": false})),
                &[
                    r#": Invalid value: {"allowPrivilegeEscalation":false,"capabilities":{"add":["CAP_SYS_ADMIN"]}}: cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"#,
                ],
            ),
            (
                of(json!({"procMount": "x"})),
                &[r#".procMount: Unsupported value: "x": supported values: "Default", "Unmasked""#],
            ),
            (
                of(json!({"procMount": "Unmasked"})),
                &[r#".procMount: Invalid value: "Unmasked": `hostUsers` must be false to use `Unmasked`"#],
            ),
            (
                of(json!({"seccompProfile": {"type": "x"}})),
                &[
                    r#".seccompProfile.type: Unsupported value: "x": supported values: "Localhost", "RuntimeDefault", "Unconfined""#,
                ],
            ),
        ],
    );
    accepts([
        own_users,
        of(json!({"privileged": true, "allowPrivilegeEscalation": true})),
        of(
            json!({"privileged": false, "allowPrivilegeEscalation": false, "capabilities": {"add": ["SYS_ADMIN"], "drop": ["ALL"]}}),
        ),
    ]);
}

#[test]
fn users_of_their_own() {
    let mut devices = container(json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}));
    merge(
        &mut devices,
        json!({"hostUsers": false, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
    );
    refuses([
        (
            spec(json!({"hostUsers": false, "hostNetwork": true, "hostPID": true, "hostIPC": true})),
            &[
                "spec.hostNetwork: Forbidden: when `hostUsers` is false",
                "spec.HostPID: Forbidden: when `hostUsers` is false",
                "spec.HostIPC: Forbidden: when `hostUsers` is false",
            ],
        ),
        (devices, &["spec.containers[0].volumeDevices: Forbidden: when `hostUsers` is false"]),
    ]);
    accepts([
        spec(json!({"hostUsers": true, "hostNetwork": true, "hostPID": true})),
        spec(json!({"hostUsers": false})),
    ]);
}

#[test]
fn systems() {
    refuses([
        (
            spec(json!({"os": {"name": "beos"}})),
            &[r#"spec.os: Unsupported value: "beos": supported values: "linux", "windows""#],
        ),
        (spec(json!({"os": {}})), &["spec.os.name: Required value"]),
        (
            spec(json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {}},
                "containers": [{"name": "a", "image": "i", "securityContext": {"windowsOptions": {}}}]})),
            &[
                "spec.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
                "spec.containers[0].securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
            ],
        ),
        (
            spec(json!({"os": {"name": "windows"}, "hostPID": true, "hostUsers": true, "resources": {},
                "securityContext": {"runAsUser": 1, "sysctls": [{"name": "a"}]},
                "containers": [{"name": "a", "image": "i", "securityContext": {"privileged": false, "capabilities": {}}}]})),
            &[
                "spec.resources: Forbidden: may not be set for a windows pod",
                "spec.hostUsers: Forbidden: cannot be set for a windows pod",
                "spec.hostPID: Forbidden: cannot be set for a windows pod",
                "spec.securityContext.sysctls: Forbidden: cannot be set for a windows pod",
                "spec.securityContext.runAsUser: Forbidden: cannot be set for a windows pod",
                "spec.containers[0].securityContext.capabilities: Forbidden: cannot be set for a windows pod",
                "spec.containers[0].securityContext.privileged: Forbidden: cannot be set for a windows pod",
            ],
        ),
        (
            spec(json!({"securityContext": {"windowsOptions": {"hostProcess": true}}})),
            &[
                "spec.hostNetwork: Invalid value: false: hostNetwork must be true if pod contains any hostProcess containers",
            ],
        ),
    ]);
    let user = |name: &str| spec(json!({"securityContext": {"windowsOptions": {"runAsUserName": name}}}));
    for (name, why) in [
        ("", "runAsUserName cannot be an empty string"),
        ("a\\b\\c", "runAsUserName cannot contain more than one backslash"),
        ("a\tb", "runAsUserName cannot contain control characters"),
        ("dom:ain\\u", "runAsUserName's Domain doesn't match the NetBios nor the DNS format"),
        ("dom\\", "runAsUserName's User cannot be empty"),
        (". .", "runAsUserName's User cannot contain only periods or spaces"),
        ("a@b", "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]"),
    ] {
        let found = check(&user(name));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with(why), "{found:?}");
    }
    accepts([
        user("ContainerAdministrator"),
        user("domain.example.com\\user name"),
        user("NT AUTHORITY\\SYSTEM"),
        spec(json!({"os": {"name": "linux"}})),
    ]);
}

#[test]
fn annotations() {
    let with = |key: &str, value: &str, fields: Value| {
        let pod = json!({"metadata": {"name": "p", "annotations": { key: value }}, "spec": spec(fields)});
        let mut c = Checks::default();
        validate_pod(&mut c, &pod);
        validate_new_pod(&mut c, &pod);
        texts(&c.errors)
    };
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    const ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/a";
    const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
    let none = || json!({});
    let confined = |kind: &str| json!({"securityContext": {"seccompProfile": {"type": kind}, "appArmorProfile": {"type": kind}}});
    let cases = [
        (
            with(COST, "1x", none()),
            vec![
                r#"metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: "1x": must be a 32bit integer"#,
            ],
        ),
        (
            with(COST, "+1", none()),
            vec![
                r#"metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: "+1": must be a 32bit integer"#,
            ],
        ),
        (with(COST, "-10", none()), vec![]),
        (
            with("kubernetes.io/config.mirror", "x", none()),
            vec![
                r#"metadata.annotations[kubernetes.io/config.mirror]: Invalid value: "x": must set spec.nodeName if mirror pod annotation is set"#,
            ],
        ),
        (with("kubernetes.io/config.mirror", "x", json!({"nodeName": "n"})), vec![]),
        (
            with(SECCOMP, "x", none()),
            vec![
                r#"metadata.annotations.seccomp.security.alpha.kubernetes.io/pod: Invalid value: "x": must be a valid seccomp profile"#,
            ],
        ),
        (
            with(SECCOMP, "unconfined", confined("RuntimeDefault")),
            vec![
                "spec.securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match",
            ],
        ),
        (with(SECCOMP, "docker/default", confined("RuntimeDefault")), vec![]),
        (
            with(ARMOR, "x", none()),
            vec![
                r#"metadata.annotations[container.apparmor.security.beta.kubernetes.io/a]: Invalid value: "x": invalid AppArmor profile name: "x""#,
            ],
        ),
        (
            with("container.apparmor.security.beta.kubernetes.io/z", "unconfined", none()),
            vec![
                r#"metadata.annotations[container.apparmor.security.beta.kubernetes.io/z]: Invalid value: "z": container not found"#,
            ],
        ),
        (
            with(ARMOR, "unconfined", confined("RuntimeDefault")),
            vec![
                "spec.containers[0].securityContext.appArmorProfile.type: Forbidden: apparmor type in annotation and field must match",
            ],
        ),
        (with(ARMOR, "localhost/p", none()), vec![]),
    ];
    for (found, wanted) in cases {
        assert_eq!(found, wanted);
    }
}
