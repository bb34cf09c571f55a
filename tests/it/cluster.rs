//! Several nodes, each in a network namespace of its own: joining, high availability, workers, leaving.

use kedge_tests::{BUSYBOX, Cluster, Network, assert_has, eventually, step, web};
use serde_json::Value;

use kedge_tests::trio::{Trio, datastore, invitation, leader_of};

#[test]
fn three_control_planes_and_a_worker() {
    let network = Network::new(4);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();

    step("a worker joins");
    let worker = Cluster::prepare_on(&network, 4);
    let join = invitation(&first, &[]);
    worker.kedge(&["join", &join, "--worker", "--timeout", "90"]).ok();
    first.wait(&format!("node/{}", worker.node), "condition=Ready");

    step("a used token is refused and nothing changes");
    let second = Cluster::prepare_on(&network, 2);
    let refused = second.kedge(&["join", &join]).failed(1);
    assert_has(&refused, &["this token was already used", &worker.node, "kedge add-node"]);

    step("two more control-plane nodes join: high availability by itself");
    second.kedge(&["join", &invitation(&first, &[]), "--timeout", "90"]).ok();
    let before = datastore(&first).expect("the node answers");
    assert_eq!(before["highAvailability"], false, "{before}");
    let mut third = Cluster::prepare_on(&network, 3);
    third.kedge(&["join", &invitation(&second, &[]), "--timeout", "90"]).ok();
    eventually("three voters", || {
        let now = datastore(&first)?;
        let voters = now["members"].as_array()?.iter().filter(|member| member["role"] == "voter").count();
        (voters == 3 && now["highAvailability"] == true).then_some(())
    });
    assert_has(&first.kedge(&["status"]).stdout, &["high-availability: yes", "datastore voters:", "leader:"]);

    step("pods on every node reach each other, and every node's port answers");
    first.apply(&web(4, "type: NodePort"));
    first.rolled_out("deployment/web");
    let port = first.field("service/web", ".spec.ports[0].nodePort");
    for host in 1..=4 {
        first.http(&format!("{}:{port}", network.address(host)), "/");
    }
    let nodes = first.field("pods", ".items[*].spec.nodeName");
    assert_eq!(nodes.split(' ').collect::<std::collections::BTreeSet<_>>().len(), 4, "{nodes}");

    step("the leader dies: another one leads, nothing is lost, the worker goes on");
    first.kubectl(&["create", "configmap", "kept", "--from-literal=k=v"]).ok();
    first.kill9();
    second.write_kubeconfig();
    eventually("a write by another node", || {
        (second.kubectl(&["create", "configmap", "after", "--from-literal=k=v"]).code == 0).then_some(())
    });
    assert_eq!(second.field("configmap/kept", ".data.k"), "v");
    let name =
        second.field("pods", &format!(".items[?(@.spec.nodeName==\"{}\")].metadata.name", worker.node));
    eventually("logs from the worker", || second.kubectl(&["logs", &name]).code.eq(&0).then_some(()));
    first.run();
    first.wait_ready();

    step("a worker leaves: its Node is gone, it is a single node again");
    worker.kedge(&["leave"]).ok();
    first.wait(&format!("node/{}", worker.node), "delete");
    assert_eq!(worker.kedge(&["status", "--format", "json"]).json()["state"], "ready");
    assert_eq!(
        worker.kedge(&["status", "--format", "json"]).json()["datastore"]["members"][0]["name"],
        worker.node.as_str()
    );

    assert_has(&worker.kedge(&["status"]).ok(), &["addons:", "dns"]);

    step("a dead node is removed by name");
    third.kill9();
    // It may have been the leader, and is named until it is missed.
    eventually("another leader", || (leader_of(&first)? != third.node).then_some(()));
    first.kedge(&["remove-node", &third.node, "--force"]).ok();
    eventually("two members", || {
        let now = datastore(&first)?;
        let names: Vec<&str> = now["members"].as_array()?.iter().filter_map(|m| m["name"].as_str()).collect();
        (!names.contains(&third.node.as_str()) && now["highAvailability"] == false).then_some(())
    });
}

/// Its power, or its cable: with a process that is killed the server in its pod lives on.
#[test]
fn names_outlive_the_machine_that_answers() {
    let trio = Trio::start();
    let first = &trio.nodes[0];
    first.kedge(&["enable", "dns"]).ok();
    let servers = eventually("servers on two machines", || {
        let pods = first.try_get(&["pods", "-n", "kube-system", "-l", "k8s-app=kube-dns"])?;
        let ready = |pod: &&Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        let hosts: std::collections::BTreeSet<String> = pods["items"]
            .as_array()?
            .iter()
            .filter(ready)
            .filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned))
            .collect();
        (hosts.len() == 2).then_some(hosts)
    });
    first.import_busybox();
    first.apply(&format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"box"}},"spec":{{"nodeName":"{}","containers":[
        {{"name":"box","image":"{BUSYBOX}","command":["sleep","100000"]}}]}}}}"#,
        first.node
    ));
    first.wait("pod/box", "condition=Ready");
    let found = || {
        let name = "kubernetes.default.svc.cluster.local";
        first.kubectl(&["exec", "box", "--", "nslookup", "-type=a", name]).stdout.contains("10.96.0.1")
    };
    eventually("names", || found().then_some(()));

    step("the machine of one of them is cut off: names are found, each time as soon as it is NotReady");
    let lost =
        (1..3).find(|node| servers.contains(&trio.nodes[*node].node)).expect("one that is not the first");
    trio.network.connect(lost + 1, false);
    eventually("names, ten times in a row", || (0..10).all(|_| found()).then_some(()));
    trio.network.connect(lost + 1, true);
}
