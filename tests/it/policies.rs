//! NetworkPolicies between real pods, on one node (over its bridge) and from node to node.

use std::process::Command;

use kedge_tests::{BUSYBOX, Cluster, Network, assert_has, eventually, run, step};

/// Pods: `web` and `near` on the first node, `far` and `api` on the second.
fn pods(first: &str, second: &str) -> String {
    let pod = |name: &str, node: &str, image: &str, command: &str| {
        format!(
            r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: {image}
{command}    ports: [{{name: http, containerPort: 8080}}]
"#
        )
    };
    let sleep = "    command: [sleep, '3600']\n";
    let (hello, busybox) = ("kedge.dev/hello:1.0", BUSYBOX);
    let all = [
        pod("web", first, hello, ""),
        pod("near", first, busybox, sleep),
        pod("api", second, hello, ""),
        pod("far", second, busybox, sleep),
    ];
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{port: 80, targetPort: 8080}]\n";
    all.concat() + service
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

struct World {
    node: Cluster,
}

impl World {
    fn reaches(&self, from: &str, url: &str) -> bool {
        self.node.kubectl(&["exec", from, "--", "busybox", "timeout", "2", "wget", "-q", "-O", "-", url]).code
            == 0
    }

    /// Each `(pod, URL)` answers or not, as it is said, at some time from now on.
    fn becomes(&self, expected: &[(&str, &str, bool)]) {
        for (from, url, open) in expected {
            eventually(&format!("{from} {} {url}", if *open { "reaches" } else { "does not reach" }), || {
                (self.reaches(from, url) == *open).then_some(())
            });
        }
    }
}

#[test]
fn pods_are_isolated_as_policies_say() {
    let network = Network::new(2);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    let worker = Cluster::prepare_on(&network, 2);
    let invitation = first.kedge(&["add-node", "--format", "json"]).json();
    let join = invitation["join"][0].as_str().expect("a join string").to_owned();
    worker.kedge(&["join", &join, "--worker", "--timeout", "90"]).ok();
    first.import_busybox();
    worker.import_busybox();
    first.apply(&pods(&first.node, &worker.node));
    for pod in ["web", "near", "api", "far"] {
        first.wait(&format!("pod/{pod}"), "condition=Ready");
    }
    let url = |node: &Cluster, pod: &str| {
        format!("http://{}:8080/", node.field(&format!("pod/{pod}"), ".status.podIP"))
    };
    let (web, api) = (url(&first, "web"), url(&first, "api"));
    let service = format!("http://{}/", first.field("service/web", ".spec.clusterIP"));
    let mut world = World { node: first };
    let rules = || {
        let mut command = Command::new("ip");
        run(command.args(["netns", "exec", &network.namespace(1), "nft", "list", "ruleset"]), b"").ok()
    };

    step("without policies everything is open");
    world.becomes(&[
        ("near", &web, true),
        ("far", &web, true),
        ("far", &service, true),
        ("near", &api, true),
    ]);

    step("an isolated pod takes nothing, on its node or from another");
    world.node.apply(&policy("closed", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}"));
    world.becomes(&[
        ("near", &web, false),
        ("far", &web, false),
        ("far", &service, false),
        ("near", &api, true),
    ]);

    step("another policy lets one pod in, at a port by its name, by the Service too");
    world.node.apply(&policy(
        "far",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: far}}}], ports: [{port: http}]}]}",
    ));
    world.becomes(&[("far", &web, true), ("far", &service, true), ("near", &web, false)]);

    step("a label makes the difference");
    world.node.kubectl(&["label", "--overwrite", "pod", "near", "app=far"]).ok();
    world.becomes(&[("near", &web, true)]);
    world.node.kubectl(&["label", "--overwrite", "pod", "far", "app=other"]).ok();
    world.becomes(&[("far", &web, false), ("far", &service, false)]);

    step("what leaves a pod of the worker");
    world.node.apply(&policy("out", "{podSelector: {matchLabels: {app: other}}, policyTypes: [Egress]}"));
    world.becomes(&[("far", &api, false), ("near", &api, true)]);

    step("policies hold while Kedge is away, and when it is back");
    world.node.kill9();
    assert_has(&rules(), &["ingress of default/closed"]);
    world.node.run();
    world.node.wait_ready();
    world.becomes(&[("far", &web, false), ("near", &web, true)]);

    step("without policies everything is open again, and no table is left");
    world.node.kubectl(&["delete", "networkpolicy", "--all"]).ok();
    world.becomes(&[("far", &web, true), ("far", &api, true)]);
    eventually("no table", || (!rules().contains("table inet kedge-policies")).then_some(()));
}
