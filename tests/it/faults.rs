//! Faults of a group of three control-plane nodes: killed, cut off, without a majority, without data. What
//! was acknowledged is never lost, and what cannot be done is refused in words. Each test prints its figures.

use std::time::{Duration, Instant};

use kedge_tests::trio::{ALL, Trio, containers, datastore, invitation};
use kedge_tests::{
    Amount, Clock, Cluster, Disk, Load, Network, Proxy, assert_has, eventually, skipped, step,
};

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

fn acknowledged(proxy: &Proxy, name: String, all: &mut Vec<String>) {
    assert_eq!(write(proxy, &name), 201, "{name}");
    all.push(name);
}

fn rounds() -> usize {
    std::env::var("KEDGE_FAULT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

#[test]
fn killed_and_cut_off() {
    let mut trio = Trio::start_with(|first| Disk::mount(&first.dir().join("data/store"), 512));
    leaders_and_followers_killed(&mut trio);
    nodes_cut_off(&trio);
    heard_one_way(&trio);
    slow_disk_of_one(&mut trio);
}

/// Power comes back, and one machine is up long before the others.
#[test]
fn one_starts_long_before_the_others() {
    let mut trio = Trio::start();
    step("all are killed, one is started alone");
    for node in ALL {
        trio.nodes[node].kill9();
    }
    trio.nodes[0].run();
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        assert_eq!(trio.nodes[0].ended(), None, "it ended:\n{}", trio.nodes[0].log());
        std::thread::sleep(Duration::from_millis(250));
    }
    let said = eventually("it to say what it waits for", || {
        let out = trio.nodes[0].kedge(&["status"]);
        out.stdout.contains("the API server does not answer").then_some(out.stdout)
    });
    assert_has(&said, &["remedy: ", "a majority of the control-plane nodes", "trying again"]);

    step("the others come: all are Ready, and the first write is acknowledged");
    trio.nodes[1].run();
    trio.nodes[2].run();
    for node in ALL {
        trio.nodes[node].wait_ready();
    }
    trio.nodes[0].kubectl(&["create", "configmap", "first"]).ok();
    for node in &trio.nodes {
        trio.nodes[0].wait(&format!("node/{}", node.node), "condition=Ready");
    }
}

fn leaders_and_followers_killed(trio: &mut Trio) {
    let load = trio.load("killed");
    step(&format!("the leader killed, {} rounds", rounds()));
    let took = trio.leader_killed(&load, rounds());
    eprintln!(
        "FIGURE leader killed: next acknowledged write after {:?} at best, {:?} in the median, {:?} at worst ({} \
         rounds)",
        took[0],
        took[took.len() / 2],
        took[took.len() - 1],
        took.len()
    );
    // `finish` proves that the history is linearizable and lost nothing.
    let counts = load.finish();
    assert_eq!(took.len(), rounds(), "each kill ends with an acknowledged write");
    assert!(counts.acknowledged >= rounds(), "{counts}");

    step("a follower killed: writes go on");
    let leader = trio.leader(&ALL);
    let follower = (leader + 1) % 3;
    let others: Vec<usize> = ALL.into_iter().filter(|node| *node != follower).collect();
    let load = Load::start("follower", trio.servers(&others), Amount::default());
    load.go_on(Duration::from_secs(1));
    let began = Instant::now();
    trio.nodes[follower].kill9();
    load.go_on(Duration::from_secs(3));
    let (count, slowest) = load.writes_since(began);
    trio.nodes[follower].run();
    trio.answers(follower);
    let counts = load.finish();
    eprintln!("FIGURE follower killed: {count} writes meanwhile, the slowest took {slowest:?}");
    assert_eq!((counts.unknown, counts.refused), (0, 0), "the others had to go on");
}

fn nodes_cut_off(trio: &Trio) {
    step("the leader cut off: it acknowledges nothing, another one leads");
    let load = trio.load("cut-off");
    load.go_on(Duration::from_secs(1));
    let old = trio.leader(&ALL);
    let others = [(old + 1) % 3, (old + 2) % 3];
    let began = Instant::now();
    trio.network.connect(old + 1, false);
    let took = load.acknowledged_after(began);
    let new = trio.leader(&others);
    assert_ne!(new, old);
    let minority = ["create", "configmap", "minority", "--request-timeout=60s"];
    let refused = trio.nodes[old].kubectl_inside(&minority);
    assert!(refused.code != 0, "a write without a majority was acknowledged: {refused}");
    // The first may have been on its way when it still led; from now on it knows better.
    let refused = trio.nodes[old].kubectl_inside(&minority);
    assert!(refused.code != 0, "{refused}");
    eprintln!("the one that is cut off says: {}", refused.stderr.trim());
    assert_has(&refused.stderr, &["datastore", "majority"]);
    let slowest = load.slowest_answer_since(began);
    eprintln!(
        "FIGURE leader cut off: next acknowledged write after {took:?}, the slowest answer took {slowest:?}"
    );

    step("healed: it follows, and nothing is lost");
    trio.network.connect(old + 1, true);
    let began = Instant::now();
    trio.answers(old);
    eprintln!("FIGURE healed: it answers fresh reads after {:?}", began.elapsed());
    assert!(trio.nodes[old].kubectl(&["get", "configmap", "minority"]).code != 0);

    step("a follower cut off: the others do not notice");
    let leader = trio.leader(&ALL);
    let follower = (leader + 1) % 3;
    trio.network.connect(follower + 1, false);
    let began = Instant::now();
    // Longer than an election: one that comes back must not depose the leader.
    load.go_on(Duration::from_secs(3));
    let (count, slowest) = load.writes_since(began);
    trio.network.connect(follower + 1, true);
    trio.answers(follower);
    assert_eq!(trio.leader(&ALL), leader, "the one that was cut off deposed the leader");
    eprintln!("FIGURE follower cut off: {count} writes meanwhile, the slowest took {slowest:?}");
    load.finish();
}

/// Packets get lost in one direction only; clients reach all nodes all the time.
fn heard_one_way(trio: &Trio) {
    let load = trio.load("one-way");
    for (what, deaf) in [("the leader hears nobody", true), ("nobody hears the leader", false)] {
        step(what);
        let leader = trio.leader(&ALL);
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let began = Instant::now();
        let hears =
            |deaf_one: usize, sender: usize, hears| trio.network.hears(deaf_one + 1, sender + 1, hears);
        for other in others {
            if deaf { hears(leader, other, false) } else { hears(other, leader, false) }
        }
        let took = load.acknowledged_after(began);
        let new = trio.leader(&others);
        assert_ne!(new, leader);
        let (count, _) = load.writes_since(began);
        let slowest = load.slowest_answer_since(began);
        for other in others {
            if deaf { hears(leader, other, true) } else { hears(other, leader, true) }
        }
        trio.answers(leader);
        eprintln!(
            "FIGURE {what}: next acknowledged write after {took:?}, {count} until another one led, the slowest \
             answer took {slowest:?}"
        );
    }
    load.finish();
}

/// The others are fast enough for all, and heartbeats do not wait for a disk: nobody is deposed.
fn slow_disk_of_one(trio: &mut Trio) {
    let Some(mut disk) = trio.disk.take() else {
        skipped("slow disk of one node", Disk::NONE);
        return;
    };
    for leads in [false, true] {
        step(&format!("the first node is to {}", if leads { "lead" } else { "follow" }));
        trio.first_leads(leads);
        let load = trio.load(if leads { "slow-leader" } else { "slow-follower" });
        if !slow_down(trio, &mut disk, &load, leads) {
            skipped("slow disk of one node", Disk::NOT_SLOW);
            load.finish();
            break;
        }
        disk.slow(trio.nodes[0].pid(), None);
        load.finish();
    }
    trio.nodes[0].stop();
    disk.unmount();
}

fn slow_down(trio: &mut Trio, disk: &mut Disk, load: &Load, leads: bool) -> bool {
    let leader = trio.leader(&ALL);
    let elections = trio.elections();
    for (writes, time) in [(30, 4), (3, 8)] {
        step(&format!("the first node's disk takes {writes} writes a second"));
        if !disk.slow(trio.nodes[0].pid(), Some(writes)) {
            return false;
        }
        let began = Instant::now();
        load.go_on(Duration::from_secs(time));
        let (count, slowest) = load.writes_since(began);
        eprintln!(
            "FIGURE slow disk of one of three, {writes} writes a second, it {}: {count} API writes in {time} s, the \
             slowest took {slowest:?}",
            if leads { "leads" } else { "follows" }
        );
        assert!(count > 0, "no write was acknowledged");
        assert_eq!(trio.leader(&ALL), leader, "a slow disk deposed the leader");
        assert_eq!(trio.elections(), elections, "a slow disk made the others elect");
        assert_eq!(trio.nodes[0].ended(), None, "a slow disk must not end the node");
    }
    eventually("the status to say that the disk is slow", || {
        trio.nodes[0].kedge(&["status"]).stdout.contains("disk slow").then_some(())
    });
    true
}

#[test]
fn majority_lost_and_data_lost() {
    let mut trio = Trio::start();
    majority_lost_and_all_killed(&mut trio);
    one_node_loses_its_data(&mut trio);
}

fn majority_lost_and_all_killed(trio: &mut Trio) {
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

    let said = eventually("status to say so", || {
        let out = trio.nodes[0].kedge(&["status"]);
        out.stdout.contains("there is no leader").then_some(out)
    });
    assert_eq!(said.code, 1, "{said}");
    assert_has(&said.stdout, &["degraded"]);
    assert_has(&proxy.get("/readyz").body, &["[-]datastore failed: there is no leader"]);
    assert_eq!((proxy.get("/readyz").status, proxy.get("/livez").status), (500, 200));

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
    let load = trio.load("all-killed");
    let mut took = Vec::new();
    for _ in 0..3 {
        load.go_on(Duration::from_secs(1));
        for node in &mut trio.nodes {
            node.kill9();
        }
        let began = Instant::now();
        for node in &mut trio.nodes {
            node.run();
        }
        took.push(load.acknowledged_after(began));
    }
    eprintln!("FIGURE all killed, three times: next acknowledged write {took:?} after their start");
    load.finish();
    for node in 0..3 {
        trio.nodes[node].wait_ready();
        trio.holds(node, &names);
    }
    trio.nodes[0].rolled_out("deployment/web");
    assert_eq!(containers(&trio.nodes[0]), before);
}

fn one_node_loses_its_data(trio: &mut Trio) {
    let load = Load::start("data-lost", trio.servers(&[0, 1]), Amount::default());

    step("the store's folder is gone: the node must not pretend that it has voted for nothing");
    trio.nodes[2].kill9();
    std::fs::remove_dir_all(trio.nodes[2].dir().join("data/store")).expect("remove the store");
    trio.nodes[2].run();
    assert_eq!(trio.nodes[2].wait_ended(), 1);
    let log = trio.nodes[2].log();
    let said = log.lines().find(|line| line.starts_with("error: ")).expect("an error");
    eprintln!("it ended and said: {said}");
    assert_has(said, &["datastore's folder", "kedge remove-node", "kedge leave --force", "kedge join"]);

    step("more is written than the log keeps: whoever joins now gets a snapshot; killed while one is made");
    let began = Instant::now();
    let maker = trio.leader(&[0, 1]);
    let proxy = trio.nodes[(maker + 1) % 2].proxy();
    let marker = trio.nodes[maker].dir().join("data/store/snapshots/next.tmp");
    let filling = std::thread::spawn(move || {
        let text = "x".repeat(900_000);
        for count in 0..48 {
            let name = format!("large-{}", count % 8);
            let body = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"k":"{text}","n":"{count}"}}}}"#);
            let path = "/api/v1/namespaces/default/configmaps";
            let json = "application/json";
            if proxy.send("POST", path, json, &body).status != 201 {
                proxy.send("PUT", &format!("{path}/{name}"), json, &body);
            }
        }
    });
    let mut killed = false;
    while !filling.is_finished() {
        if !killed && marker.exists() {
            trio.nodes[maker].kill9();
            killed = true;
            trio.nodes[maker].run();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    filling.join().expect("large objects were written");
    trio.answers(maker);
    assert!(killed, "no snapshot was made while 43 MB were written");
    eprintln!("FIGURE killed while a snapshot is made; 43 MB written in {:?}", began.elapsed());

    step("the remedy: removed by name, left by force, joined again");
    let name = trio.nodes[2].node.clone();
    trio.nodes[0].kedge(&["remove-node", &name, "--force"]).ok();
    trio.nodes[2].kedge(&["leave", "--force", "--without", "dns"]).ok();
    let join = invitation(&trio.nodes[0], &[]);
    let began = Instant::now();
    let mut child = trio.nodes[2].spawn(&["join", &join, "--timeout", "90"]);
    let snapshots = trio.nodes[2].dir().join("data/store/snapshots");
    let receives = || std::fs::read_dir(&snapshots).is_ok_and(|mut files| files.next().is_some());
    while !receives() && child.try_wait().expect("ask for its state").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }

    step("killed while it receives the snapshot");
    assert!(receives(), "kedge join ended before it received a snapshot");
    // kedge join first: it is the node's parent, so the node would stay as a zombie until it ends.
    let _ = child.kill();
    child.wait().expect("wait for kedge join");
    trio.nodes[2].kill9();
    trio.nodes[2].run();

    step("killed when it is to be promoted");
    let promoted = |trio: &Trio| {
        let now = datastore(&trio.nodes[0])?;
        let member =
            now["members"].as_array()?.iter().find(|member| member["name"] == name.as_str())?.clone();
        Some(member["role"].clone())
    };
    eventually("a member of any role", || promoted(trio));
    // It answers, so it is promoted in this moment.
    eventually("the snapshot to have arrived", || datastore(&trio.nodes[2]));
    let role = promoted(trio);
    let roles = ["joining", "standby", "voter"];
    assert!(role.as_ref().is_some_and(|role| roles.iter().any(|known| role == known)), "{role:?}");
    eprintln!("FIGURE killed when it is to be promoted: as {role:?}");
    trio.nodes[2].kill9();
    trio.nodes[2].run();
    trio.nodes[2].wait_ready();
    trio.three_voters(0);
    trio.answers(2);
    eprintln!(
        "FIGURE data lost: a voter again {:?} after kedge join began, killed twice meanwhile",
        began.elapsed()
    );
    load.finish();
    // What it holds is what all hold.
    let load = trio.load("together");
    load.go_on(Duration::from_secs(1));
    load.finish();
}

const HOUR: i64 = 3600;

/// One of three nodes has another time: what counts is each one's own clock that only runs forward.
#[test]
fn the_clock_of_one_jumps() {
    let mut trio = Trio::start();
    let first = &trio.nodes[0];
    first.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0", "--replicas=3"]).ok();
    first.rolled_out("deployment/web");
    let before = containers(first);
    let token = first.kubectl(&["create", "token", "default", "--duration=48h"]).ok();
    first.kedge(&["add-node", "--ttl", "48h"]).ok();
    for leads in [true, false] {
        let leader = trio.leader(&ALL);
        let jumper = if leads { leader } else { (leader + 1) % 3 };
        let other = (0..3).find(|node| *node != jumper && *node != leader).expect("a third node");
        let Some(clock) = Clock::of(trio.nodes[jumper].pid()) else {
            skipped("clock jump of one of three", Clock::FIXED);
            return;
        };
        let role = if leads { "leader" } else { "follower" };
        let load = trio.load(&format!("clock-{role}"));
        for (what, seconds) in [("6 h ahead", 6 * HOUR), ("6 h back", -6 * HOUR), ("right again", 0)] {
            step(&format!("the {role}'s clock jumps: {what}"));
            let old = renewed(&trio, jumper);
            let elections = trio.elections();
            let began = Instant::now();
            clock.shift(seconds);
            let took = load.acknowledged_after(began);
            let new = eventually("the Lease to be renewed by the new clock", || {
                Some(renewed(&trio, jumper)).filter(|new| new[..13] != old[..13])
            });
            eprintln!(
                "FIGURE {role}'s clock {what}: next acknowledged write after {took:?}, its Lease renewed after {:?} \
                 (at {new}, before at {old})",
                began.elapsed()
            );
            assert_eq!(trio.elections(), elections, "a clock deposed the leader");
            assert!(
                trio.nodes[jumper].kedge(&["token", "list"]).ok().contains("usable"),
                "the join token is spent"
            );
            accepted(&trio.nodes[jumper], &token);
            if leads {
                continue;
            }
            step("new connections too: another follower is killed and comes back");
            trio.nodes[other].kill9();
            trio.nodes[other].run();
            trio.answers(other);
            trio.answers(jumper);
        }
        load.finish();
        for node in &trio.nodes {
            trio.nodes[jumper].wait(&format!("node/{}", node.node), "condition=Ready");
        }
        assert_eq!(containers(&trio.nodes[jumper]), before, "a container was restarted or moved");
    }
}

/// When the node's Lease was renewed, by its own clock.
fn renewed(trio: &Trio, node: usize) -> String {
    let lease = format!("lease/{}", trio.nodes[node].node);
    trio.nodes[node]
        .kubectl(&["-n", "kube-node-lease", "get", &lease, "-o", "jsonpath={.spec.renewTime}"])
        .ok()
}

/// This node takes the ServiceAccount's token.
fn accepted(node: &Cluster, token: &str) {
    let review = format!(
        r#"{{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{{"token":"{}"}}}}"#,
        token.trim()
    );
    let answer = node.kubectl_with(&["create", "-f", "-", "-o", "json"], &review).json();
    assert_eq!(answer["status"]["authenticated"], true, "{answer}");
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
    worker.kedge(&["leave", "--without", "dns"]).ok();
    first.wait(&format!("node/{name}"), "delete");
}
