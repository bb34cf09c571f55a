//! Joining that is cut off, raced or refused: one member record, and words that say what to do.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use kedge_tests::{Cluster, Network, assert_has, eventually, run, step};

use kedge_tests::trio::{datastore, invitation, leader_of};

fn founder(network: &Network) -> Cluster {
    let mut first = Cluster::prepare_on(network, 1);
    first.run();
    first.wait_ready();
    first
}

fn members(node: &Cluster) -> Vec<String> {
    let status = datastore(node).expect("the node answers");
    let all = status["members"].as_array().expect("members").iter();
    all.filter_map(|member| member["name"].as_str().map(str::to_owned)).collect()
}

fn nodes(node: &Cluster) -> Vec<String> {
    node.field("nodes", ".items[*].metadata.name").split(' ').map(str::to_owned).collect()
}

/// Waits until a command comes to the point that `reached` sees, or has ended. Closer than `eventually` looks: what
/// comes between two points takes some milliseconds.
fn comes_to(point: &str, child: &mut Child, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + kedge_tests::LIMIT;
    while !reached() && child.try_wait().expect("ask for its state").is_none() {
        assert!(Instant::now() < deadline, "it never came to the point {point}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills a command at the point that `reached` sees. On a busy machine it may have come further, also to its end.
fn killed_at(point: &str, mut child: Child, reached: impl Fn() -> bool) -> Output {
    comes_to(point, &mut child, reached);
    let _ = child.kill();
    let out = child.wait_with_output().expect("wait for the command");
    eprintln!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    out
}

/// A file where joining keeps a folder, which `kedge leave` cannot clear away: there it ends, without the node's data
/// and keys, and the new node is not started.
fn obstacle(data: &Path) -> PathBuf {
    let file = data.join("pki.before-join");
    std::fs::write(&file, "").expect("write a file");
    file
}

#[test]
fn cut_off_and_repeated() {
    let network = Network::new(2);
    let first = founder(&network);
    let second = Cluster::prepare_on(&network, 2);
    let join = invitation(&first, &[]);
    let data = second.dir().join("data");

    // Each is killed as soon as it got to that point; the next repeats it with the same one-time token.
    let mut joined = false;
    for (point, file) in [
        ("before it asked", "pki"),
        ("while it asks", "join"),
        ("with the answer", "join/admitted.json"),
        ("with the keys in place", "pki/ca.crt"),
        ("while it starts", "../run/kedge.pid"),
    ] {
        step(&format!("killed {point}"));
        let child = second.spawn(&["join", &join, "--timeout", "90"]);
        let out = killed_at(point, child, || data.join(file).exists());
        eprintln!("members now: {:?}", members(&first));
        joined = out.status.success();
        if joined {
            break;
        }
        assert_eq!(out.status.signal(), Some(9), "it ended by itself");
    }

    step("repeated to its end: one member, one node");
    if !joined {
        second.kedge(&["join", &join, "--timeout", "90"]).ok();
    }
    first.wait(&format!("node/{}", second.node), "condition=Ready");
    assert_eq!(nodes(&first), [first.node.clone(), second.node.clone()]);
    eventually("two members", || {
        let mut names = members(&first);
        names.sort();
        (names == [first.node.clone(), second.node.clone()]).then_some(())
    });
}

#[test]
fn leaving_cut_off_and_repeated() {
    let network = Network::new(2);
    let first = founder(&network);
    let second = Cluster::prepare_on(&network, 2);
    second.kedge(&["join", &invitation(&first, &[]), "--timeout", "90"]).ok();
    first.wait(&format!("node/{}", second.node), "condition=Ready");
    eventually("two members", || (members(&first).len() == 2).then_some(()));
    let data = second.dir().join("data");
    let there = |file: &str| data.join(file).exists();
    // None of these gets to its end, however late it is killed.
    let obstacle = obstacle(&data);
    // Each is killed as soon as it got to that point; the next goes on with what is left.
    let points: [(&str, &dyn Fn() -> bool); 3] = [
        ("when the cluster was told", &|| there("leaving")),
        ("with the process ended", &|| !there("../run/kedge.sock") || !there("../run/kedge.pid")),
        ("without its data", &|| !there("store")),
    ];
    for (point, reached) in points {
        step(&format!("killed {point}"));
        let leave = second.spawn(&["leave", "--timeout", "90", "--without", "dns"]);
        assert!(!killed_at(point, leave, reached).status.success(), "the file did not stop it");
        assert!(reached(), "it ended before that");
        eventually("one member", || (members(&first) == [first.node.as_str()]).then_some(()));
        first.kubectl(&["create", "configmap", &point.replace(' ', "-"), "--from-literal=k=v"]).ok();
    }

    step("stopped without its keys, and still leaving");
    let said = second.kedge(&["leave", "--timeout", "90", "--without", "dns"]).failed(1);
    assert_has(&said, &["tidy up"]);
    assert!(!there("pki/ca.crt") && there("leaving"));

    step("repeated to its end: a single node again, and the cluster is without it");
    std::fs::remove_file(obstacle).expect("remove the file");
    second.kedge(&["leave", "--timeout", "90", "--without", "dns"]).ok();
    let status = second.kedge(&["status", "--format", "json"]).json();
    assert_eq!(status["state"], "ready");
    assert_eq!(members(&second), [second.node.as_str()]);
    assert!(!there("leaving"));
    first.wait(&format!("node/{}", second.node), "delete");
    assert_eq!(nodes(&first), [first.node.as_str()]);
}

/// What a removal would cost is refused, whatever is insisted on; who was removed is told so.
#[test]
fn who_may_not_go_and_who_is_gone() {
    let network = Network::new(3);
    let mut first = founder(&network);
    let mut others = [Cluster::prepare_on(&network, 2), Cluster::prepare_on(&network, 3)];
    for node in &others {
        node.kedge(&["join", &invitation(&first, &[]), "--timeout", "90"]).ok();
    }
    eventually("three voters that answer", || {
        let now = datastore(&first)?;
        let voters =
            now["members"].as_array()?.iter().filter(|m| m["role"] == "voter" && m["healthy"] == true);
        (voters.count() == 3).then_some(())
    });
    let (second, third) = (others[0].node.clone(), others[1].node.clone());

    step("one of three is dead: no other one goes");
    others[1].kill9();
    let counted_on =
        ["in a cluster with", &first.node, "kedge leave", &format!("kedge remove-node {third} --force")];
    assert_has(&others[1].kedge(&["uninstall"]).failed(1), &counted_on);
    eventually("its silence to be noticed, and a leader", || {
        let noticed = first.kedge(&["status"]).stdout.contains("(does not answer)");
        (noticed && leader_of(&first)? != third).then_some(())
    });
    let (silent, remedy) = (format!("{third} does not answer"), format!("kedge remove-node {third} --force"));
    let why = [silent.as_str(), "2 are needed", remedy.as_str()];
    for arguments in [vec!["remove-node", &second], vec!["remove-node", &second, "--force"]] {
        assert_has(&first.kedge(&arguments).failed(1), &why);
    }
    for arguments in [vec!["leave"], vec!["leave", "--force"]] {
        assert_has(&others[0].kedge(&arguments).failed(1), &why);
    }
    assert_has(&others[0].kedge(&["uninstall"]).failed(1), &["in a cluster with", "kedge leave", "--force"]);
    assert_has(&first.kedge(&["status"]).stdout, &[&format!("yes (degraded: {silent})")]);
    assert_eq!(first.field(&format!("node/{second}"), ".spec.unschedulable"), "", "nothing was moved for it");
    first.kubectl(&["create", "configmap", "refused", "--from-literal=k=v"]).ok();
    first.kedge(&["remove-node", &third, "--force"]).ok();
    first.kubectl(&["create", "configmap", "removed", "--from-literal=k=v"]).ok();

    step("two are left, and one of them is dead: the last living copy stays");
    // While the other one is a voter too, the majority would be lost for good with it.
    let keeper = eventually("a single voter, which leads", || {
        let now = datastore(&first)?;
        let voters: Vec<_> =
            now["members"].as_array()?.iter().filter(|member| member["role"] == "voter").collect();
        (voters.len() == 1 && voters[0]["leader"] == true).then(|| voters[0]["name"].clone())
    });
    let [standby, _] = &mut others;
    let (keeper, standby) =
        if keeper == first.node.as_str() { (&mut first, standby) } else { (standby, &mut first) };
    keeper.write_kubeconfig();
    standby.kill9();
    eventually("its silence to be noticed", || {
        keeper.kedge(&["status"]).stdout.contains("(does not answer)").then_some(())
    });
    for arguments in [vec!["leave"], vec!["leave", "--force"]] {
        assert_has(
            &keeper.kedge(&arguments).failed(1),
            &["only living copy", &standby.node, "does not answer"],
        );
    }
    keeper.kedge(&["remove-node", &standby.node, "--force"]).ok();
    assert_has(
        &keeper.kedge(&["leave", "--force"]).failed(1),
        &["the only control-plane node", "kedge reset"],
    );
    keeper.kubectl(&["get", "configmap", "removed"]).ok();
}

#[test]
fn a_worker_that_was_removed_is_told_so() {
    let network = Network::new(2);
    let first = founder(&network);
    let mut worker = Cluster::prepare_on(&network, 2);
    let name = worker.node.clone();
    let join = |worker: &Cluster| {
        worker.kedge(&["join", &invitation(&first, &[]), "--worker", "--force", "--timeout", "90"]).ok();
        first.wait(&format!("node/{name}"), "condition=Ready");
    };
    let told = ["this node was removed from the cluster", "kedge leave"];
    let left = |worker: &Cluster| {
        worker.kedge(&["leave", "--without", "dns"]).ok();
        assert_eq!(worker.kedge(&["status", "--format", "json"]).json()["state"], "ready");
        assert_eq!(nodes(&first), [first.node.as_str()]);
    };
    join(&worker);
    // What only a control-plane node has is not looked for here.
    for words in [["config"].as_slice(), &["addons", "list"], &["enable", "dns"]] {
        let out = worker.kedge(words).failed(1);
        assert_has(&out, &["this node is a worker", "control-plane node"]);
    }
    let out = worker.kedge(&["enable", "dns", "-o", "json"]).stdout;
    assert_has(&out, &[r#""remedy": "run the command on a control-plane node""#]);
    first.apply(&format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"there"}},"spec":{{"nodeName":"{name}","containers":[
        {{"name":"hello","image":"kedge.dev/hello:1.0"}}]}}}}"#
    ));
    first.wait("pod/there", "condition=Ready");

    step("it dies, and is removed before anybody noticed: its pods go with it");
    worker.kill9();
    let removed = first.kedge(&["remove-node", &name]);
    assert_has(&removed.ok(), &["was removed from the cluster", "its pods were deleted with it"]);
    first.wait("pod/there", "delete");

    step("started again it hears of it, and leaves");
    // It waits for the cluster's word for some seconds only.
    let out = worker.kedge(&["start"]);
    if out.code != 0 {
        assert_has(&out.failed(1), &told);
    }
    eventually("the status to say it", || {
        let said = worker.kedge(&["status"]).stdout;
        told.iter().all(|part| said.contains(part)).then_some(())
    });
    left(&worker);

    step("removed while it runs");
    join(&worker);
    first.kedge(&["remove-node", &name]).ok();
    eventually("the status to say it", || {
        let said = worker.kedge(&["status"]).stdout;
        told.iter().all(|part| said.contains(part)).then_some(())
    });
    assert_has(&worker.kedge(&["join", &invitation(&first, &[]), "--worker"]).failed(1), &told);
    left(&worker);
}

#[test]
fn a_node_that_others_count_on_is_not_uninstalled_and_a_removed_one_does_nothing_else() {
    let network = Network::new(2);
    let mut first = founder(&network);
    let mut second = Cluster::prepare_on(&network, 2);
    second.kedge(&["join", &invitation(&first, &[]), "--timeout", "90"]).ok();
    first.wait(&format!("node/{}", second.node), "condition=Ready");
    let refused = |node: &Cluster, other: &Cluster| {
        let out = node.kedge(&["uninstall"]).failed(1);
        let elsewhere = format!("kedge remove-node {} --force", node.node);
        assert_has(&out, &["in a cluster with", &other.node, "kedge leave", "--force", &elsewhere]);
    };
    let told = ["this node was removed from the cluster", "kedge leave"];

    step("neither goes while it runs, and the data stays");
    refused(&first, &second);
    refused(&second, &first);
    first.kubectl(&["create", "configmap", "there", "--from-literal=k=v"]).ok();

    step("nor when it is stopped: the founder knows from its own copy who came later");
    first.kill9();
    refused(&first, &second);
    first.run();
    first.wait_ready();
    second.kill9();
    refused(&second, &first);

    step("it has just begun to start: leaving waits for that, and it is a single node");
    let _ = second.kedge(&["start", "--timeout", "0"]);
    second.kedge(&["leave", "--without", "dns"]).ok();
    assert_eq!(members(&first), [first.node.as_str()]);

    step("removed while it runs: leaving is the one thing to do");
    second.kedge(&["join", &invitation(&first, &[]), "--force", "--timeout", "90"]).ok();
    first.wait(&format!("node/{}", second.node), "condition=Ready");
    first.kedge(&["remove-node", &second.node]).ok();
    let says_it = |node: &Cluster| {
        eventually("the status to say it", || {
            let said = node.kedge(&["status"]).stdout;
            told.iter().all(|part| said.contains(part)).then_some(said)
        })
    };
    let status = says_it(&second);
    assert!(!status.contains("kedge recover"), "{status}");
    assert_has(&second.kedge(&["join", &invitation(&first, &[])]).failed(1), &told);
    assert_has(&second.kedge(&["recover", "--yes"]).failed(1), &told);
    second.kedge(&["stop"]).ok();
    assert_has(&second.kedge(&["recover", "--yes"]).failed(1), &told);

    step("nobody counts on it any more");
    let _ = second.kedge(&["start"]);
    says_it(&second);
    second.kedge(&["uninstall"]).ok();
    first.kubectl(&["get", "configmap", "there"]).ok();
}

#[test]
fn a_node_that_dies_is_not_waited_for() {
    let network = Network::new(2);
    let first = founder(&network);
    let mut second = Cluster::prepare_on(&network, 2);
    let join = invitation(&first, &[]);
    // Nobody waits so long: only that it notices ends this.
    let forever = ["--timeout", "1000000"];
    let mut child = second.spawn(&[&["join", &join], forever.as_slice()].concat());
    let pid = second.dir().join("run/kedge.pid");
    comes_to("it is started", &mut child, || pid.exists());
    // It goes on from having started it to waiting for it; long before the node is Ready, which imports images first.
    std::thread::sleep(Duration::from_millis(50));
    let began = Instant::now();
    second.kill9();
    let out = child.wait_with_output().expect("wait for kedge join");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    eprintln!("FIGURE node killed while kedge join waits for it: said after {:?}:\n{said}", began.elapsed());
    assert_eq!(out.status.code(), Some(1));
    assert_has(&said, &["last words", "was admitted", "kedge start", "kedge leave"]);

    step("the same of kedge start, and then it goes on with what it was admitted to");
    let old = std::fs::read(&pid).expect("the killed one's file");
    let mut child = second.spawn(&[&["start"], forever.as_slice()].concat());
    comes_to("it is started", &mut child, || std::fs::read(&pid).is_ok_and(|now| now != old));
    second.kill9();
    let out = child.wait_with_output().expect("wait for kedge start");
    // It may have answered before it was killed.
    if !out.status.success() {
        assert_has(&String::from_utf8_lossy(&out.stderr), &["kedge ended", "last words"]);
    }
    second.kedge(&["start"]).ok();
    eventually("its Node object", || (first.kubectl(&["get", "node", &second.node]).code == 0).then_some(()));
    first.wait(&format!("node/{}", second.node), "condition=Ready");
}

/// Its file goes on to name the cluster, with a token that is still good, and the cluster's address.
#[test]
fn a_node_made_from_a_file_leaves_for_good() {
    let network = Network::new(2);
    let first = founder(&network);
    let mut second = Cluster::prepare_on(&network, 2);
    let join = invitation(&first, &["--reusable"]);
    let settings = format!("join: {join}\nrole: worker\nvirtual-address: 192.0.2.200\n");
    std::fs::write(second.dir().join("config.yaml"), settings).expect("write the settings");
    second.run();
    eventually("the node to join by itself", || (nodes(&first).len() == 2).then_some(()));
    first.wait(&format!("node/{}", second.node), "condition=Ready");

    let said = second.kedge(&["leave", "--timeout", "120"]);
    assert_has(&said.stderr, &["join and virtual-address", "passed over until it is changed"]);
    said.ok();
    // From here on it runs in the background.
    assert_eq!(second.wait_ended(), 0);
    let is_on_its_own = |second: &mut Cluster| {
        second.wait_ready();
        assert_eq!(nodes(second), [second.node.as_str()], "a cluster of its own");
        first.wait(&format!("node/{}", second.node), "delete");
        assert_eq!(nodes(&first), [first.node.as_str()]);
        assert!(!second.shell("ip -o address").contains("192.0.2.200"), "the cluster's address");
    };
    is_on_its_own(&mut second);
    second.kedge(&["stop"]).ok();
    second.kedge(&["start"]).ok();
    is_on_its_own(&mut second);

    step("the power goes while it leaves once more: it comes back as a node of its own");
    second.kedge(&["join", &join, "--worker", "--timeout", "90"]).ok();
    first.wait(&format!("node/{}", second.node), "condition=Ready");
    let data = second.dir().join("data");
    let obstacle = obstacle(&data);
    let said = second.kedge(&["leave", "--timeout", "120", "--without", "dns"]).failed(1);
    assert_has(&said, &["tidy up"]);
    assert!(!data.join("pki/ca.crt").exists() && data.join("leaving").exists());
    std::fs::remove_file(obstacle).expect("remove the file");
    second.kedge(&["start"]).ok();
    is_on_its_own(&mut second);
}

#[test]
fn one_token_for_two() {
    let network = Network::new(3);
    let first = founder(&network);
    let rivals = [Cluster::prepare_on(&network, 2), Cluster::prepare_on(&network, 3)];
    let join = invitation(&first, &[]);
    let children: Vec<Child> =
        rivals.iter().map(|rival| rival.spawn(&["join", &join, "--worker", "--timeout", "90"])).collect();
    let mut winners = Vec::new();
    for (rival, child) in rivals.iter().zip(children) {
        let out = child.wait_with_output().expect("wait for kedge join");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() {
            winners.push(rival.node.clone());
        } else {
            assert_has(&said, &["this token was already used", "kedge add-node"]);
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    first.wait(&format!("node/{}", winners[0]), "condition=Ready");
    assert_eq!(nodes(&first), [first.node.clone(), winners[0].clone()]);
}

#[test]
fn refused_in_words() {
    let network = Network::new(3);
    let mut first = founder(&network);
    let second = Cluster::prepare_on(&network, 2);
    let before = members(&first);
    let join = invitation(&first, &[]);
    let unchanged = |node: &Cluster| {
        assert!(!node.dir().join("run/kedge.pid").exists(), "it was started");
        assert!(!node.dir().join("data/store").exists(), "it has data");
    };

    step("not a join string");
    assert_has(
        &second.kedge(&["join", "nonsense"]).failed(2),
        &["join string is not valid", "kedge add-node"],
    );

    step("another authority's hash");
    let (start, hash) = join.rsplit_once('/').expect("a join string");
    let digit = if hash.starts_with('0') { '1' } else { '0' };
    let wrong = format!("{start}/{digit}{}", &hash[1..]);
    let said = second.kedge(&["join", &wrong]).failed(1);
    assert_has(&said, &["does not belong to the cluster of the join string", "nothing was sent"]);
    unchanged(&second);

    step("a token whose time is over");
    let short = invitation(&first, &["--ttl", "1s"]);
    std::thread::sleep(Duration::from_secs(2));
    assert_has(&second.kedge(&["join", &short]).failed(1), &["expired", "kedge add-node"]);
    unchanged(&second);

    step("a name that another node has");
    let namesake = Cluster::prepare_named(&network, 3, &first.node);
    let said = namesake.kedge(&["join", &join]).failed(1);
    assert_has(&said, &["already has a node named", &first.node, "remove-node"]);
    unchanged(&namesake);

    step("nobody there");
    let gone = join.replacen(&network.address(1), &network.address(3), 1);
    assert_has(&second.kedge(&["join", &gone]).failed(1), &["cannot reach", &network.address(3)]);
    unchanged(&second);
    assert_eq!(members(&first), before);
    assert_eq!(nodes(&first), [first.node.as_str()]);

    step("what would be lost, though nothing of it runs");
    let mut other = second;
    other.run();
    other.wait_ready();
    let objects = || -> Vec<String> {
        let answer = run(
            Command::new("curl")
                .args(["--silent", "--unix-socket"])
                .arg(other.dir().join("run/kedge.sock"))
                .arg("http://kedge/objects-of-users"),
            b"",
        );
        serde_json::from_str(&answer.ok()).expect("a list")
    };
    assert!(objects().is_empty(), "of a fresh node: {:?}", objects());
    other.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0", "--replicas=0"]).ok();
    other.kubectl(&["create", "configmap", "plan"]).ok();
    other.kubectl(&["create", "namespace", "shop"]).ok();
    other.kubectl(&["create", "secret", "generic", "key", "--namespace=shop"]).ok();
    let said = other.kedge(&["join", &join]).failed(1);
    let told =
        ["ConfigMap default/plan", "Deployment default/web", "Secret shop/key", "Namespace shop", "--force"];
    assert_has(&said, &told);
    assert_has(&said, &["Nothing was changed"]);
    assert_eq!(objects().len(), 4, "{:?}", objects());
    other.kubectl(&["get", "configmap", "plan"]).ok();
    assert_eq!(members(&first), before);

    step("pods of a node that is stopped");
    other.kubectl(&["scale", "deployment", "web", "--replicas=1"]).ok();
    other.rolled_out("deployment/web");
    assert_eq!(other.stop(), 0);
    let said = other.kedge(&["join", &join]).failed(1);
    assert_has(&said, &[": Pod default/web-", "of the stopped node; save"]);

    step("by force; and a node of a cluster joins no other");
    other.kedge(&["join", &join, "--worker", "--force", "--timeout", "90"]).ok();
    first.wait(&format!("node/{}", other.node), "condition=Ready");
    let said = first.kedge(&["join", &join]).failed(1);
    assert_has(&said, &["already in a cluster", "kedge leave", "Nothing was changed"]);
    let said = other.kedge(&["join", &join, "--force"]).failed(1);
    assert_has(&said, &["already in a cluster", "kedge leave"]);
    assert_eq!(first.ended(), None);
}
