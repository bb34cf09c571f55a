use super::*;
use serde_json::json;

fn check(level: Level, version: Minor, spec: Value) -> String {
    let metadata = spec.get("annotations").map_or(json!({}), |a| json!({ "annotations": a }));
    details(&evaluate(LevelVersion { level, version }, &metadata, &spec))
}

#[test]
fn baseline() {
    for (spec, expected) in [
        (json!({"containers": [{"name": "c"}]}), ""),
        (json!({"hostNetwork": true, "hostIPC": true}), "host namespaces (hostNetwork=true, hostIPC=true)"),
        (
            json!({"volumes": [{"name": "a", "hostPath": {"path": "/"}}, {"name": "b", "emptyDir": {}}]}),
            "hostPath volumes (volume \"a\")",
        ),
        (
            json!({"initContainers": [{"name": "i", "securityContext": {"privileged": true}}],
                "containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
            "privileged (containers \"i\", \"c\" must not set securityContext.privileged=true)",
        ),
        (
            json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}, {"hostPort": 443}, {"hostPort": 0}]}]}),
            "hostPorts (container \"c\" uses hostPorts 443, 80)",
        ),
        (
            json!({"containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["SYS_ADMIN", "CHOWN"]}}}]}),
            "non-default capabilities (container \"c\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
        ),
        (
            json!({"securityContext": {"seLinuxOptions": {"type": "spc_t", "user": "u"}}, "containers": [{"name": "c"}]}),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}},
                "containers": [{"name": "c", "securityContext": {"seccompProfile": {"type": "Unconfined"}}}]}),
            "seccompProfile (pod and container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            json!({"containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}),
            "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            json!({"hostUsers": false, "containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}),
            "",
        ),
        (
            json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "8.8.8.8"}}}]}),
            "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"8.8.8.8\")",
        ),
        (
            json!({"annotations": {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}}),
            "forbidden AppArmor profile (container.apparmor.security.beta.kubernetes.io/c=\"unconfined\")",
        ),
    ] {
        assert_eq!(check(Level::Baseline, None, spec.clone()), expected, "{spec}");
        assert_eq!(check(Level::Privileged, None, spec), "");
    }
}

#[test]
fn restricted() {
    let good = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"}});
    assert_eq!(
        check(Level::Restricted, None, json!({"containers": [{"name": "c", "securityContext": good}]})),
        ""
    );
    assert_eq!(
        check(Level::Restricted, None, json!({"containers": [{"name": "c"}]})),
        "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    // The stricter check takes the place of baseline's.
    let volumes =
        json!({"volumes": [{"name": "a", "hostPath": {}}, {"name": "b", "nfs": {}}, {"name": "c"}]});
    assert_eq!(
        check(Level::Restricted, None, volumes),
        "restricted volume types (volumes \"a\", \"b\" use restricted volume types \"hostPath\", \"nfs\")"
    );
    let mut root = good;
    root["runAsUser"] = json!(0);
    root["runAsNonRoot"] = json!(false);
    let spec = json!({"containers": [{"name": "c", "securityContext": root}]});
    assert_eq!(
        check(Level::Restricted, None, spec.clone()),
        "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false), \
         runAsUser=0 (container \"c\" must not set runAsUser=0)"
    );
    assert!(!check(Level::Restricted, Some(22), spec).contains("runAsUser"));
    let windows = json!({"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c"}]});
    assert_eq!(check(Level::Restricted, None, windows.clone()), "");
    assert_ne!(check(Level::Restricted, Some(24), windows), "");
}

#[test]
fn policies_of_namespaces() {
    let policy = |labels: Value| {
        let (policy, errors) = Policy::of_namespace(&json!({"metadata": {"labels": labels}}));
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        (policy.enforce.to_string(), policy.audit.to_string(), policy.warn.to_string(), errors)
    };
    let none: Vec<String> = Vec::new();
    let latest = "privileged:latest".to_owned();
    assert_eq!(policy(json!({})), (latest.clone(), latest.clone(), latest.clone(), none.clone()));
    assert_eq!(
        policy(json!({ENFORCE: "restricted"})),
        ("restricted:latest".into(), latest.clone(), "restricted:latest".into(), none.clone())
    );
    assert_eq!(
        policy(
            json!({ENFORCE: "baseline", "pod-security.kubernetes.io/enforce-version": "v1.20", WARN: "privileged"})
        ),
        ("baseline:v1.20".into(), latest.clone(), latest, none)
    );
    let (enforce, _, _, errors) =
        policy(json!({ENFORCE: "strict", "pod-security.kubernetes.io/warn-version": "1.2"}));
    assert_eq!(enforce, "restricted:latest");
    assert_eq!(
        errors,
        [
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
            "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"1.2\": must be \"latest\" or \"v1.x\"",
        ]
    );
}

#[test]
fn templates_and_updates() {
    let job = json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}}});
    assert!(pod_template("batch", "cronjobs", &job).is_some());
    assert!(pod_template("apps", "deployments", &json!({"spec": {}})).is_none());
    assert!(pod_template("", "services", &json!({"spec": {}})).is_none());
    let old = json!({"spec": {"containers": [{"name": "c", "image": "a"}]}});
    let mut new = old.clone();
    new["metadata"] = json!({"labels": {"a": "b"}});
    assert!(!is_significant_update(&new, &old));
    new["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "x"}]);
    assert!(is_significant_update(&new, &old));
}
