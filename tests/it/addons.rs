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
    cluster.kedge(&["enable", "dns:replicas=2"]).ok();
    let replicas = cluster.kubectl(&[
        "-n",
        "kube-system",
        "get",
        "deployment",
        "kube-dns",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ]);
    assert_eq!(replicas.ok(), "2");

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
        &["amd64, arm64", "resolution", "(default 15)"],
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
