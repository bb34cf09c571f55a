//! Addons: the DNS server in a real pod, enabled, asked, changed and disabled.

use kedge_tests::{BUSYBOX, Cluster, assert_has, eventually, step};

#[test]
fn dns_is_enabled_asked_and_disabled() {
    let cluster = Cluster::start();
    cluster.import_busybox();

    step("wrong names and arguments are refused and change nothing");
    for (arguments, words) in [
        (["enable", "dnss"], "there is no addon \"dnss\" (did you mean dns?)"),
        (["enable", "dns:replcas=2"], "unknown argument \"replcas\""),
        (["enable", "dns:replicas=two"], "is not a whole number"),
        (["enable", "dns:replicas=0"], "is not a number from 1 to 100"),
        (["enable", "dns:1.2.3.4,foo"], "\"foo\" is not the address of a server"),
    ] {
        assert_has(&cluster.kedge(&arguments).failed(2), &[words]);
    }
    assert_has(&cluster.kedge(&["disable", "dns"]).failed(1), &["not enabled"]);

    step("enabled, twice");
    for _ in 0..2 {
        assert_has(&cluster.kedge(&["enable", "dns"]).ok(), &["dns is enabled"]);
    }
    let listed = cluster.kedge(&["addons", "list", "--format", "json"]).json();
    let dns = listed.as_array().unwrap().iter().find(|addon| addon["name"] == "dns").unwrap().clone();
    assert_eq!(dns["state"], "enabled", "{dns}");

    step("a Service has a name inside a pod, and a new one at once");
    cluster.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0"]).ok();
    cluster.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]).ok();
    cluster.rolled_out("deployment/web");
    let image = format!("--image={BUSYBOX}");
    cluster.kubectl(&["run", "box", &image, "--", "sleep", "3600"]).ok();
    cluster.wait("pod/box", "condition=Ready");
    let address = cluster.field("service/web", ".spec.clusterIP");
    // nslookup of busybox knows no search domains; wget asks the C library, which does.
    eventually("the Service's name", || {
        let name = "web.default.svc.cluster.local";
        let out = cluster.kubectl(&["exec", "box", "--", "nslookup", "-type=a", name]);
        out.stdout.contains(&address).then_some(())
    });
    assert_has(&cluster.exec("box", "wget -q -O - http://web/"), &["hello 1.0"]);

    step("arguments change what is there");
    cluster.kedge(&["enable", "dns:replicas=3"]).ok();
    let asked = "jsonpath={.metadata.annotations.kedge\\.dev/replicas-by-nodes} {.status.readyReplicas}";
    let replicas = cluster.kubectl(&["-n", "kube-system", "get", "deployment", "kube-dns", "-o", asked]);
    assert_eq!(replicas.ok(), "3 1", "one node, one server");

    step("disabled: exactly what it made is gone");
    cluster.kedge(&["disable", "dns"]).ok();
    eventually("everything to be gone", || {
        let left = cluster
            .kubectl(&[
                "-n",
                "kube-system",
                "get",
                "deployments,services,pods,serviceaccounts,configmaps",
                "-o",
                "name",
            ])
            .ok();
        (!left.contains("dns")).then_some(())
    });
    let listed = cluster.kedge(&["addons", "list"]).ok();
    assert!(listed.lines().any(|line| line.starts_with("dns") && line.contains("disabled")), "{listed}");
}

const MINE: &str = r"
apiVersion: v1
kind: ConfigMap
metadata: {name: NAME, namespace: default}
data: {greeting: '${greeting}'}
";

#[test]
fn repositories_upgrades_and_what_is_built_in() {
    let mut cluster = Cluster::start();

    step("parts of Kedge are on, say how they are set, and cannot be disabled");
    let listed = cluster.kedge(&["addons", "list"]).ok();
    for name in ["flannel", "rbac"] {
        let on = |line: &str| line.starts_with(name) && line.contains("enabled");
        assert!(listed.lines().any(on), "{listed}");
    }
    assert_has(&cluster.kedge(&["enable", "flannel"]).ok(), &["pod-cidr", "kube-flannel-cfg"]);
    assert_has(&cluster.kedge(&["enable", "rbac:x=1"]).failed(2), &["rbac"]);
    assert_has(&cluster.kedge(&["disable", "rbac"]).failed(1), &["cannot be disabled"]);
    assert_has(
        &cluster.kedge(&["addons", "info", "metrics"]).ok(),
        &["amd64, arm64", "resolution int from 5 to 600", "(default 15)"],
    );

    step("a folder of addons is added");
    let folder = cluster.dir().join("mine");
    let write = |definition: &str, map: &str| {
        std::fs::create_dir_all(folder.join("hello")).unwrap();
        std::fs::write(folder.join("hello/addon.yaml"), definition).unwrap();
        std::fs::write(folder.join("hello/map.yaml"), MINE.replace("NAME", map)).unwrap();
    };
    let definition =
        "name: hello\nversion: '1'\ndescription: d\narguments: [{name: greeting, default: hi}]\n";
    write(definition, "first");
    let source = folder.display().to_string();
    assert_has(&cluster.kedge(&["addons", "repo", "add", &source]).ok(), &["mine is added: hello"]);
    assert_has(&cluster.kedge(&["addons", "repo", "add", &source]).failed(1), &["already"]);
    assert_has(&cluster.kedge(&["addons", "repo", "list"]).ok(), &["mine", "hello"]);
    assert_has(
        &cluster.kedge(&["addons", "repo", "add", "no-such"]).failed(1),
        &["neither a folder nor a URL"],
    );
    cluster.kedge(&["enable", "hello:greeting=moin"]).ok();
    assert_eq!(cluster.field("configmap/first", ".data.greeting"), "moin");
    let status = cluster.kedge(&["status", "--format", "json"]).json();
    let hello =
        status["addons"].as_array().unwrap().iter().find(|addon| addon["name"] == "hello").unwrap().clone();
    assert_eq!(
        (&hello["state"], &hello["arguments"]["greeting"]),
        (&"enabled".into(), &"moin".into()),
        "{hello}"
    );

    step("a newer version is applied and what went away is removed, with the same arguments");
    write(&definition.replace("'1'", "'2'"), "second");
    assert_has(&cluster.kedge(&["addons", "repo", "update"]).ok(), &["hello is upgraded"]);
    assert_eq!(cluster.field("configmap/second", ".data.greeting"), "moin");
    assert_has(&cluster.kubectl(&["get", "configmap/first"]).failed(1), &["not found"]);

    step("what cannot run here applies nothing");
    write(&format!("{definition}architectures: [s390x]\n"), "third");
    let out = cluster.kedge(&["addons", "repo", "update", "mine"]).failed(1);
    assert_has(&out, &["runs on s390x only"]);
    assert_has(&cluster.kubectl(&["get", "configmap/third"]).failed(1), &["not found"]);

    step("a start upgrades what the copy on disk has newer");
    write(definition, "fourth");
    cluster.kill9();
    let copy = cluster.dir().join("data/addons/mine/content/hello");
    for file in ["addon.yaml", "map.yaml"] {
        std::fs::copy(folder.join("hello").join(file), copy.join(file)).unwrap();
    }
    cluster.run();
    cluster.wait_ready();
    eventually("the start's upgrade", || {
        let old = cluster.kubectl(&["get", "configmap/second"]);
        (old.stderr.contains("not found") && cluster.kubectl(&["get", "configmap/fourth"]).code == 0)
            .then_some(())
    });

    step("without its repository an addon stays, is listed, and can be disabled");
    assert_has(&cluster.kedge(&["addons", "repo", "remove", "mine"]).ok(), &["hello stays enabled"]);
    assert_has(&cluster.kedge(&["addons", "list"]).ok(), &["hello"]);
    cluster.kedge(&["disable", "hello"]).ok();
    assert_has(&cluster.kubectl(&["get", "configmap/fourth"]).failed(1), &["not found"]);
}

/// A repository of one folder with these addons: name, more of addon.yaml, manifests.
fn repository(cluster: &Cluster, addons: &[(&str, &str, &str)]) -> std::path::PathBuf {
    let folder = cluster.dir().join("mine");
    for (name, more, manifests) in addons {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let definition = format!("name: {name}\nversion: '1'\ndescription: d\n{more}");
        std::fs::write(folder.join("addon.yaml"), definition).unwrap();
        std::fs::write(folder.join("m.yaml"), manifests).unwrap();
    }
    folder
}

const WEB: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: webns, labels: {of: addon}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: shared, namespace: webns}
data: {addon: a, both: b}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: own, namespace: webns}
---
apiVersion: v1
kind: Namespace
metadata: {name: newns}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: own, namespace: newns}
";

#[test]
fn what_users_had_stays_when_an_addon_goes() {
    let mut cluster = Cluster::start();
    let class = "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: of-addon}\n\
                 provisioner: example.com/none\nreclaimPolicy: '${policy}'\n---\napiVersion: apps/v1\nkind: Deployment\n\
                 metadata: {name: idle, namespace: default}\nspec:\n  replicas: 0\n  selector: {matchLabels: {a: '${label}'}}\n  \
                 template:\n    metadata: {labels: {a: '${label}'}}\n    spec: {containers: [{name: c, image: 'kedge.dev/hello:1.0'}]}\n";
    let rollout = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: up, namespace: default}\nspec:\n  replicas: 1\n  \
                   strategy: {rollingUpdate: {maxUnavailable: 0}}\n  selector: {matchLabels: {a: up}}\n  template:\n    \
                   metadata: {labels: {a: up}}\n    spec: {containers: [{name: c, image: '${image}'}]}\n";
    let folder = repository(
        &cluster,
        &[
            ("web", "", WEB),
            (
                "needs",
                "requires: [class]\n",
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: n, namespace: default}\n",
            ),
            ("class", "arguments: [{name: policy, default: Delete}, {name: label, default: x}]\n", class),
            ("up", "arguments: [{name: image, default: 'kedge.dev/hello:1.0'}]\n", rollout),
        ],
    );
    cluster.kedge(&["addons", "repo", "add", &folder.display().to_string()]).ok();

    step("all is looked at before anything is applied");
    assert_has(&cluster.kedge(&["enable", "web", "needs"]).failed(1), &["needs class"]);
    assert_has(&cluster.kubectl(&["get", "namespace", "newns"]).failed(1), &["not found"]);

    step("what was there is given up, not deleted; a namespace with a user's things stays");
    cluster.kubectl(&["create", "namespace", "webns"]).ok();
    cluster
        .kubectl(&[
            "-n",
            "webns",
            "create",
            "configmap",
            "shared",
            "--from-literal=mine=m",
            "--from-literal=both=b",
        ])
        .ok();
    cluster.kubectl(&["-n", "webns", "create", "configmap", "users"]).ok();
    let shared =
        || cluster.kubectl(&["-n", "webns", "get", "configmap", "shared", "-o", "jsonpath={.data}"]).ok();
    for _ in 0..2 {
        cluster.kedge(&["enable", "web"]).ok();
    }
    assert_eq!(shared(), r#"{"addon":"a","both":"b","mine":"m"}"#);
    cluster.kubectl(&["-n", "newns", "create", "configmap", "users"]).ok();
    let said = cluster.kedge(&["disable", "web"]).ok();
    assert_has(
        &said,
        &[
            "Namespace webns stays: it was there before",
            "ConfigMap webns/shared stays",
            "Namespace newns stays: it holds ConfigMap users",
        ],
    );
    assert_eq!(shared(), r#"{"both":"b","mine":"m"}"#);
    let other = r#"{"data":{"both":"other"}}"#;
    cluster.kubectl(&["-n", "webns", "patch", "configmap", "shared", "--type=merge", "-p", other]).ok();
    let refused = cluster.kedge(&["enable", "web"]).failed(1);
    assert_has(&refused, &["ConfigMap webns/shared was there before", ".data.both", "nothing was changed"]);
    assert_eq!(shared(), r#"{"both":"other","mine":"m"}"#);
    cluster.kubectl(&["-n", "webns", "delete", "configmap", "shared"]).ok();
    assert_eq!(cluster.field("namespace/webns", ".metadata.labels.of"), "");
    for namespace in ["webns", "newns"] {
        cluster.kubectl(&["-n", namespace, "get", "configmap", "users"]).ok();
        assert_has(&cluster.kubectl(&["-n", namespace, "get", "configmap", "own"]).failed(1), &["not found"]);
    }
    cluster.kubectl(&["delete", "namespace", "newns"]).ok();
    cluster.kedge(&["enable", "web"]).ok();
    cluster.kedge(&["disable", "web"]).ok();
    assert_has(&cluster.kubectl(&["get", "namespace", "newns"]).failed(1), &["not found"]);
    cluster.kubectl(&["get", "namespace", "webns"]).ok();

    step("a class is replaced, what cannot be changed is refused, and the list says what is");
    cluster.kedge(&["enable", "class"]).ok();
    cluster.kedge(&["enable", "class:policy=Retain"]).ok();
    assert_eq!(cluster.field("storageclass/of-addon", ".reclaimPolicy"), "Retain");
    let refused = cluster.kedge(&["enable", "class:policy=Delete;label=y"]).failed(1);
    assert_has(&refused, &["nothing was changed", "field is immutable", "disable the addon first"]);
    assert!(!refused.contains("Status {"), "{refused}");
    assert_eq!(cluster.field("storageclass/of-addon", ".reclaimPolicy"), "Retain");
    let listed = cluster.kedge(&["addons", "list", "--format", "json"]).json();
    let class = listed.as_array().unwrap().iter().find(|addon| addon["name"] == "class").unwrap().clone();
    assert_eq!(
        (&class["state"], &class["arguments"]),
        (&"enabled".into(), &serde_json::json!({"policy": "Retain"}))
    );

    step("new pods that do not start are not healthy, whatever the old ones are");
    cluster.kedge(&["enable", "up"]).ok();
    let out = cluster.kedge(&["enable", "up:image=127.0.0.1:9/no-such:1", "--timeout", "20"]).failed(1);
    assert_has(&out, &["old pods wait for the new ones", "127.0.0.1:9/no-such:1", "kedge disable up"]);
    assert_has(&cluster.kedge(&["addons", "list"]).ok(), &["old pods wait for the new ones"]);

    step("without a node the remedy is told");
    cluster.kill9();
    let out = cluster.kedge(&["enable", "up"]).failed(1);
    assert_has(&out, &["the node does not run", "kedge start"]);
    for (words, error, remedy) in [
        (["enable", "up"], "the node does not run", "start it: kedge start"),
        (["addons", "list"], "the node does not run", "start it: kedge start"),
        (["remove-node", "nobody"], "kedge does not run on this node", "start it with kedge start"),
    ] {
        let out = cluster.kedge(&[&words[..], &["--output", "json"]].concat());
        let said: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
        assert_eq!((out.code, &said["remedy"]), (1, &remedy.into()), "{said}");
        assert!(said["error"].as_str().unwrap().ends_with(error), "{said}");
    }
    assert!(!out.contains("client error"), "{out}");
    cluster.run();
    cluster.wait_ready();
}

/// A Deployment of one hello behind two Services, of which the second means pods that nobody makes.
const SERVED: &str = r"
apiVersion: v1
kind: Service
metadata: {name: served, namespace: default}
spec: {selector: {a: served}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: optional, namespace: default}
spec: {selector: {a: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: unused, namespace: default}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: served, namespace: default}
spec:
  selector: {matchLabels: {a: served}}
  template:
    metadata: {labels: {a: served}}
    spec: {containers: [{name: c, image: 'kedge.dev/hello:1.0'}]}
";

#[test]
fn an_addon_is_healthy_when_all_of_it_is() {
    let cluster = Cluster::start();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: bare, namespace: default}\n\
               spec: {containers: [{name: c, image: '${image}'}]}\n";
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: once, namespace: default}\nspec:\n  backoffLimit: 0\n  \
               template: {spec: {restartPolicy: Never, containers: [{name: c, image: 'kedge.dev/kedge:${version}', \
               command: [/kedge, '${word}']}]}}\n";
    let folder = repository(
        &cluster,
        &[
            ("bare", "arguments: [{name: image, default: 'kedge.dev/hello:1.0'}]\n", pod),
            ("once", "arguments: [{name: word, default: version}]\n", job),
            (
                "served",
                "arguments: [{name: port, default: http}]\nhealth:\n\
                 - {service: served, namespace: default, port: '${port}', path: /}\n\
                 - {apiVersion: apps/v1, kind: Deployment, namespace: default, name: served, condition: Available}\n",
                SERVED,
            ),
        ],
    );
    cluster.kedge(&["addons", "repo", "add", &folder.display().to_string()]).ok();
    assert_has(
        &cluster.kedge(&["addons", "info", "served"]).ok(),
        &[
            "healthy when",
            "Service default/served",
            "condition Available of Deployment default/served",
            "port string",
        ],
    );
    let listed = |name: &str| {
        let list = cluster.kedge(&["addons", "list", "--format", "json"]).json();
        list.as_array().unwrap().iter().find(|addon| addon["name"] == name).unwrap().clone()
    };

    step("a pod without its image: the pod, the event and the remedy, now and later");
    let out = cluster.kedge(&["enable", "bare:image=127.0.0.1:9/no-such:1", "--timeout", "20"]).failed(1);
    assert_has(
        &out,
        &["Pod default/bare: is Pending", "127.0.0.1:9/no-such:1", "describe pod bare", "kedge disable bare"],
    );
    for words in [["addons", "list"].as_slice(), &["status"]] {
        assert_has(
            &cluster.kedge(words).stdout,
            &[
                "Pod default/bare: is Pending",
                "127.0.0.1:9/no-such:1",
                "remedy: see kedge kubectl -n default describe pod bare",
            ],
        );
    }
    let bare = listed("bare");
    assert_eq!(bare["state"], "unhealthy");
    assert_has(bare["remedy"].as_str().unwrap(), &["describe pod bare", "kedge enable bare"]);
    cluster.kedge(&["disable", "bare"]).ok();
    cluster.kedge(&["enable", "bare"]).ok();
    assert_eq!(listed("bare")["state"], "enabled");
    assert_eq!(listed("bare")["remedy"], serde_json::Value::Null);

    step("a Job that fails is not waited for, one that succeeds is");
    let out = cluster.kedge(&["enable", "once:word=no-such", "--timeout", "1000000"]).failed(1);
    assert_has(&out, &["Job default/once: has failed: BackoffLimitExceeded", "ended with code 2"]);
    cluster.kedge(&["disable", "once"]).ok();
    cluster.kedge(&["enable", "once"]).ok();
    assert_eq!(listed("once")["state"], "enabled");

    step("what addon.yaml asks for counts, what nobody makes does not; no time is time for a look");
    let out = cluster.kedge(&["enable", "served:port=no-such", "--timeout", "20"]).failed(1);
    assert_has(&out, &["/ of Service default/served, port no-such", "describe service served"]);
    cluster.kedge(&["enable", "served"]).ok();
    assert_eq!(listed("served")["state"], "enabled");
    cluster.kedge(&["enable", "served", "--timeout", "0"]).ok();
    cluster.kubectl(&["delete", "pod", "bare", "--wait=false"]).ok();
    assert_has(
        &cluster.kedge(&["disable", "served", "once", "nope"]).failed(2),
        &["there is no addon \"nope\""],
    );
    assert_has(&cluster.kedge(&["disable", "served", "served"]).failed(1), &["not enabled"]);
    assert_eq!(listed("served")["state"], "enabled");
    assert_eq!(listed("once")["state"], "enabled");

    step("what addon.yaml must not say is named");
    let broken =
        "name: served\nversion: '1'\ndescription: d\nhealth: [{service: served, namespace: default}]\n";
    std::fs::write(folder.join("served/addon.yaml"), broken).unwrap();
    let out = cluster.kedge(&["addons", "repo", "update"]).failed(1);
    assert_has(&out, &["an entry with service needs port"]);
}
