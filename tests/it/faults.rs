//! Faults of a group of three control-plane nodes: killed, cut off, without a majority, without data. What
//! was acknowledged is never lost, and what cannot be done is refused in words. Each test prints its figures.

use std::time::{Duration, Instant};

use kedge_tests::{Cluster, Network, Proxy, assert_has, eventually, step};
use serde_json::Value;

const ALL: [usize; 3] = [0, 1, 2];

/// Three control-plane nodes that vote. The nodes go before their network.
struct Trio {
    nodes: Vec<Cluster>,
    network: Network,
}

impl Trio {
    fn start() -> Self {
        step("a group of three");
        let network = Network::new(3);
        let mut nodes: Vec<Cluster> = (1..=3).map(|host| Cluster::prepare_on(&network, host)).collect();
        nodes[0].run();
        nodes[0].wait_ready();
        for node in &nodes[1..] {
            node.kedge(&["join", &invitation(&nodes[0], &[]), "--timeout", "90"]).ok();
            node.write_kubeconfig();
        }
        let trio = Self { nodes, network };
        trio.three_voters(0);
        trio
    }

    fn three_voters(&self, asked: usize) {
        eventually("three voters", || {
            let now = datastore(&self.nodes[asked])?;
            let voters = now["members"].as_array()?.iter().filter(|member| member["role"] == "voter").count();
            (voters == 3 && now["highAvailability"] == true).then_some(())
        });
    }

    /// Who leads, when all of `asked` say the same.
    fn leader(&self, asked: &[usize]) -> usize {
        eventually("a leader that all know", || {
            let mut said = asked.iter().map(|node| {
                let now = datastore(&self.nodes[*node])?;
                let leader =
                    now["members"].as_array()?.iter().find(|member| member["leader"] == true)?.clone();
                self.nodes.iter().position(|node| leader["name"] == node.node.as_str())
            });
            let first = said.next()??;
            said.all(|other| other == Some(first)).then_some(first)
        })
    }

    /// Started again, Ready, and with everything that `names` lists in its own copy.
    fn back(&mut self, node: usize, names: &[String]) {
        self.nodes[node].run();
        self.nodes[node].wait_ready();
        self.holds(node, names);
    }

    fn holds(&self, node: usize, names: &[String]) {
        let proxy = self.nodes[node].proxy();
        eventually(&format!("node {} to have caught up", node + 1), || {
            // Version 0: from this node's own copy, without asking the leader.
            let answer = proxy.get("/api/v1/namespaces/default/configmaps?resourceVersion=0");
            if answer.status != 200 {
                return None;
            }
            let list = answer.json();
            let found: Vec<&str> = list["items"]
                .as_array()?
                .iter()
                .filter_map(|item| item["metadata"]["name"].as_str())
                .collect();
            names.iter().all(|name| found.contains(&name.as_str())).then_some(())
        });
    }
}

/// What `kedge join` takes, from `kedge add-node`.
pub(crate) fn invitation(node: &Cluster, arguments: &[&str]) -> String {
    let all = [&["add-node", "--format", "json"], arguments].concat();
    let invitation = node.kedge(&all).json();
    invitation["join"][0].as_str().expect("a join string").to_owned()
}

/// What the node's status says of the datastore, when the node answers.
pub(crate) fn datastore(node: &Cluster) -> Option<Value> {
    let out = node.kedge(&["status", "--format", "json"]);
    let status: Value = serde_json::from_str(&out.stdout).ok()?;
    status.get("datastore").cloned()
}

/// One write, without retrying; the status code of the answer. `kubectl proxy` stands in between, which
/// costs a few milliseconds.
fn write(proxy: &Proxy, name: &str) -> u16 {
    let body = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"k":"v"}}}}"#);
    proxy.send("POST", "/api/v1/namespaces/default/configmaps", "application/json", &body).status
}

/// Writes until it is acknowledged and gives the time since `began`. 409: an attempt without an answer had
/// been done.
fn written(began: Instant, proxy: &Proxy, name: &str) -> Duration {
    let deadline = Instant::now() + kedge_tests::LIMIT;
    loop {
        let code = write(proxy, name);
        if matches!(code, 201 | 409) {
            return began.elapsed();
        }
        assert!(code >= 500, "{name}: {code}");
        assert!(Instant::now() < deadline, "gave up writing {name}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The same for many clients, a new write every 50 ms whether the former have their answer or not; what was
/// acknowledged is added to `all`. One that was on its way to a leader that is cut off waits until the
/// connection is given up, which says nothing of the others.
fn written_by_many(began: Instant, proxy: &Proxy, prefix: &str, all: &mut Vec<String>) -> Duration {
    let (sender, answers) = std::sync::mpsc::channel();
    let deadline = Instant::now() + kedge_tests::LIMIT;
    std::thread::scope(|scope| {
        let mut first = None;
        for count in 0.. {
            let (name, sender) = (format!("{prefix}-{count}"), sender.clone());
            scope.spawn(move || {
                let code = write(proxy, &name);
                let _ = sender.send((name, code, began.elapsed()));
            });
            if let Ok(answer) = answers.recv_timeout(Duration::from_millis(50)) {
                first = (answer.1 == 201).then_some(answer.2);
                assert!(answer.1 == 201 || answer.1 >= 500, "{answer:?}");
                all.extend(first.map(|_| answer.0));
            }
            if first.is_some() {
                break;
            }
            assert!(Instant::now() < deadline, "gave up writing {prefix}");
        }
        drop(sender);
        // The others have their answers too by the end.
        for (name, code, _) in &answers {
            all.extend((code == 201).then_some(name));
        }
        first.expect("one was acknowledged")
    })
}

fn acknowledged(proxy: &Proxy, name: String, all: &mut Vec<String>) {
    assert_eq!(write(proxy, &name), 201, "{name}");
    all.push(name);
}

fn rounds() -> usize {
    std::env::var("KEDGE_FAULT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// Pod names with their container ids, in order.
fn containers(node: &Cluster) -> Vec<String> {
    let path =
        "jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[0].containerID}{\"\\n\"}{end}";
    let mut lines: Vec<String> =
        node.kubectl(&["get", "pods", "-o", path]).ok().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn leaders_and_followers_killed() {
    let mut trio = Trio::start();
    let proxies: Vec<Proxy> = trio.nodes.iter().map(Cluster::proxy).collect();
    let mut names = Vec::new();
    let mut took = Vec::new();
    for round in 0..rounds() {
        step(&format!("the leader killed, round {}", round + 1));
        let leader = trio.leader(&ALL);
        let other = (leader + 1 + round % 2) % 3;
        for count in 0..5 {
            acknowledged(&proxies[leader], format!("before-{round}-{count}"), &mut names);
            acknowledged(&proxies[other], format!("before-other-{round}-{count}"), &mut names);
        }
        let began = Instant::now();
        trio.nodes[leader].kill9();
        let name = format!("after-{round}");
        took.push(written(began, &proxies[other], &name));
        names.push(name);
        trio.holds(other, &names);
        trio.back(leader, &names);
    }
    took.sort();
    eprintln!(
        "FIGURE leader killed: next acknowledged write after {:?} at best, {:?} in the middle, {:?} at worst ({} \
         rounds)",
        took[0],
        took[took.len() / 2],
        took[took.len() - 1],
        took.len()
    );

    step("a follower killed: writes go on");
    let leader = trio.leader(&ALL);
    let follower = (leader + 1) % 3;
    trio.nodes[follower].kill9();
    let mut slowest = Duration::ZERO;
    for count in 0..100 {
        let began = Instant::now();
        acknowledged(&proxies[leader], format!("meanwhile-{count}"), &mut names);
        slowest = slowest.max(began.elapsed());
    }
    eprintln!("FIGURE follower killed: 100 writes, none refused, the slowest took {slowest:?}");
    trio.back(follower, &names);
    for node in 0..3 {
        trio.holds(node, &names);
    }
}

#[test]
fn nodes_cut_off() {
    let trio = Trio::start();
    let mut names = Vec::new();

    step("the leader cut off: it acknowledges nothing, another one leads");
    let old = trio.leader(&ALL);
    let other = (old + 1) % 3;
    let proxy = trio.nodes[other].proxy();
    acknowledged(&proxy, "before".into(), &mut names);
    let began = Instant::now();
    trio.network.connect(old + 1, false);
    let took = written_by_many(began, &proxy, "majority", &mut names);
    let all = began.elapsed();
    eprintln!(
        "FIGURE leader cut off: next acknowledged write after {took:?}, all have an answer after {all:?}"
    );
    let new = trio.leader(&[other, (old + 2) % 3]);
    assert_ne!(new, old);
    let refused =
        trio.nodes[old].kubectl_inside(&["create", "configmap", "minority", "--request-timeout=60s"]);
    assert!(refused.code != 0, "a write without a majority was acknowledged: {refused}");
    // The first may have been on its way when it still led; from now on it knows better.
    let refused =
        trio.nodes[old].kubectl_inside(&["create", "configmap", "minority", "--request-timeout=60s"]);
    assert!(refused.code != 0, "{refused}");
    eprintln!("the one that is cut off says: {}", refused.stderr.trim());
    assert_has(&refused.stderr, &["datastore", "majority"]);

    step("healed: it follows, and nothing is lost");
    for count in 0..20 {
        acknowledged(&proxy, format!("while-apart-{count}"), &mut names);
    }
    trio.network.connect(old + 1, true);
    let began = Instant::now();
    trio.holds(old, &names);
    eprintln!("FIGURE healed: caught up after {:?}", began.elapsed());
    assert!(trio.nodes[old].kubectl(&["get", "configmap", "minority"]).code != 0);
    trio.nodes[old].kubectl(&["create", "configmap", "healed"]).ok();

    step("a follower cut off: the others do not notice");
    let leader = trio.leader(&ALL);
    let follower = (leader + 1) % 3;
    let proxy = trio.nodes[leader].proxy();
    trio.network.connect(follower + 1, false);
    for count in 0..20 {
        acknowledged(&proxy, format!("without-one-{count}"), &mut names);
    }
    // Longer than an election: one that comes back must not depose the leader.
    std::thread::sleep(Duration::from_secs(3));
    trio.network.connect(follower + 1, true);
    trio.holds(follower, &names);
    assert_eq!(trio.leader(&ALL), leader, "the one that was cut off deposed the leader");
}

#[test]
fn majority_lost_and_all_killed() {
    let mut trio = Trio::start();
    let mut names = Vec::new();
    acknowledged(&trio.nodes[0].proxy(), "before".into(), &mut names);
    trio.nodes[0]
        .kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0", "--replicas=3"])
        .ok();
    trio.nodes[0].rolled_out("deployment/web");
    let before = containers(&trio.nodes[0]);

    step("two of three killed: reads answer, writes are refused in words");
    trio.nodes[1].kill9();
    trio.nodes[2].kill9();
    let proxy = trio.nodes[0].proxy();
    let maps = "/api/v1/namespaces/default/configmaps";
    let refused = eventually("a refused write", || {
        let answer = proxy.send("POST", maps, "application/json", r#"{"metadata":{"name":"lost"}}"#);
        assert_ne!(answer.status, 201, "a write without a majority was acknowledged");
        (answer.status == 503).then_some(answer.body)
    });
    assert_has(&refused, &["ServiceUnavailable", "majority", "control plane nodes"]);
    // What asks for the newest state, as kubectl does, cannot have it; an older one is there for the asking.
    let fresh = trio.nodes[0].kubectl(&["get", "configmap", "before", "--request-timeout=60s"]).failed(1);
    assert_has(&fresh, &["ServiceUnavailable", "reads without a guarantee of freshness go on"]);
    for path in [format!("{maps}/before?resourceVersion=0"), format!("{maps}?resourceVersion=0")] {
        assert_has(&trio.nodes[0].kubectl(&["get", "--raw", &path]).ok(), &["before"]);
    }

    step("one more is back: writes go on");
    let began = Instant::now();
    trio.nodes[1].run();
    written(began, &proxy, "again");
    names.push("again".into());
    eprintln!(
        "FIGURE majority again: next acknowledged write {:?} after the second node's start",
        began.elapsed()
    );
    trio.nodes[1].wait_ready();
    trio.back(2, &names);

    step("all three killed at once and started again: everything is there, no container restarted");
    for count in 0..20 {
        acknowledged(&proxy, format!("last-{count}"), &mut names);
    }
    for node in &mut trio.nodes {
        node.kill9();
    }
    let began = Instant::now();
    for node in &mut trio.nodes {
        node.run();
    }
    let proxy = trio.nodes[2].proxy();
    written(began, &proxy, "first-after");
    eprintln!("FIGURE all killed: next acknowledged write {:?} after their start", began.elapsed());
    names.push("first-after".into());
    for node in 0..3 {
        trio.nodes[node].wait_ready();
        trio.holds(node, &names);
    }
    trio.nodes[0].rolled_out("deployment/web");
    assert_eq!(containers(&trio.nodes[0]), before);
}

#[test]
fn one_node_loses_its_data() {
    let mut trio = Trio::start();
    let mut names = Vec::new();
    acknowledged(&trio.nodes[0].proxy(), "before".into(), &mut names);

    step("the store's folder is gone: the node must not pretend that it has voted for nothing");
    trio.nodes[2].kill9();
    std::fs::remove_dir_all(trio.nodes[2].dir().join("data/store")).expect("remove the store");
    trio.nodes[2].run();
    assert_eq!(trio.nodes[2].wait_ended(), 1);
    let log = trio.nodes[2].log();
    let said = log.lines().find(|line| line.starts_with("error: ")).expect("an error");
    eprintln!("it ended and said: {said}");
    assert_has(said, &["datastore's folder", "kedge remove-node", "kedge leave --force", "kedge join"]);
    acknowledged(&trio.nodes[0].proxy(), "meanwhile".into(), &mut names);

    step("the remedy: removed by name, left by force, joined again");
    let name = trio.nodes[2].node.clone();
    trio.nodes[0].kedge(&["remove-node", &name, "--force"]).ok();
    trio.nodes[2].kedge(&["leave", "--force"]).ok();
    let join = invitation(&trio.nodes[0], &[]);
    trio.nodes[2].kedge(&["join", &join, "--timeout", "90"]).ok();
    trio.nodes[2].write_kubeconfig();
    trio.three_voters(0);
    trio.holds(2, &names);
}

#[test]
fn a_worker_whose_only_server_was_killed() {
    let network = Network::new(2);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    let worker = Cluster::prepare_on(&network, 2);
    worker.kedge(&["join", &invitation(&first, &[]), "--worker", "--timeout", "90"]).ok();
    let name = &worker.node;
    first.apply(&format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"there"}},"spec":{{"nodeName":"{name}","containers":[
        {{"name":"hello","image":"kedge.dev/hello:1.0"}}]}}}}"#
    ));
    first.wait("pod/there", "condition=Ready");

    step(
        "the server killed and started again: its history of changes is shorter than what the worker has seen",
    );
    first.kill9();
    first.run();
    first.wait_ready();
    let began = Instant::now();
    first.kubectl(&["delete", "pod", "there", "--timeout=280s"]).ok();
    eprintln!("FIGURE worker after its server was killed: a deleted pod is gone after {:?}", began.elapsed());
    worker.kedge(&["leave"]).ok();
    first.wait(&format!("node/{name}"), "delete");
}
