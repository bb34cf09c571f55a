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
