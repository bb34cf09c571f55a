//! Faults of one machine: its clock jumps, its disk is slow, then full, its address changes. The node goes
//! on or says what is wrong, comes back by itself, and restarts no container.

use std::time::{Duration, Instant};

use kedge_tests::{
    Amount, Clock, Cluster, Disk, Load, Network, Server, assert_has, eventually, skipped, step,
};

use kedge_tests::trio::containers;

const DAY: i64 = 24 * 3600;

#[test]
fn clock_disk_and_address() {
    let network = Network::new(1);
    let mut node = Cluster::prepare_roaming(&network, 1);
    // The log alone takes up to 48 MB.
    let disk = Disk::mount(&node.dir().join("data/store"), 160);
    node.run();
    node.wait_ready();
    node.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0"]).ok();
    node.rolled_out("deployment/web");
    let before = containers(&node);
    let amount = Amount { keys: 3, clients: 4, watchers: 2 };
    let load = Load::start("machine", vec![Server::of(&node)], amount);

    clock_jumps(&node, &load);
    if let Some(mut disk) = disk {
        slow_disk(&mut node, &mut disk, &load);
        full_disk(&mut node, &disk, &load);
        load.finish();
        assert_eq!(containers(&node), before);
        address_changes(&network, &mut node, &before);
        node.stop();
        disk.unmount();
    } else {
        skipped("slow and full disk", Disk::NONE);
        load.finish();
        assert_eq!(containers(&node), before);
        address_changes(&network, &mut node, &before);
    }
}

fn clock_jumps(node: &Cluster, load: &Load) {
    let Some(clock) = Clock::of(node.pid()) else {
        skipped("clock jump", Clock::FIXED);
        return;
    };
    let renewed = || {
        let lease = format!("lease/{}", node.node);
        node.kubectl(&["-n", "kube-node-lease", "get", &lease, "-o", "jsonpath={.spec.renewTime}"]).ok()
    };
    for (what, seconds) in [("a day ahead", DAY), ("a day back", -DAY), ("right again", 0)] {
        step(&format!("the clock jumps: {what}"));
        let old = renewed();
        clock.shift(seconds);
        let began = Instant::now();
        eprintln!("FIGURE clock {what}: next acknowledged write after {:?}", load.acknowledged_after(began));
        if seconds == 0 {
            break;
        }
        let new = eventually("the Lease to be renewed by the new clock", || {
            Some(renewed()).filter(|new| new[..10] != old[..10])
        });
        eprintln!("the Lease was renewed at {new}, before at {old}");
        node.wait(&format!("node/{}", node.node), "condition=Ready");
        let name = format!("after-{}", seconds + DAY);
        node.kubectl(&["run", &name, "--image=kedge.dev/hello:1.0"]).ok();
        node.wait(&format!("pod/{name}"), "condition=Ready");
        node.kubectl(&["delete", "pod", &name, "--now"]).ok();
    }
}

fn slow_disk(node: &mut Cluster, disk: &mut Disk, load: &Load) {
    for (writes, time) in [(30, 4), (3, 8)] {
        step(&format!("the disk takes {writes} writes a second"));
        if !disk.slow(node.pid(), Some(writes)) {
            skipped("slow disk", Disk::NOT_SLOW);
            return;
        }
        let began = Instant::now();
        load.go_on(Duration::from_secs(time));
        let server = Server::of(node);
        let asked = Instant::now();
        let path = "/api/v1/namespaces/default/configmaps";
        let (status, _) = server.call("GET", path, "", Duration::from_secs(30)).expect("a fresh read");
        assert_eq!(status, 200);
        let read = asked.elapsed();
        let (count, slowest) = load.writes_since(began);
        eprintln!(
            "FIGURE slow disk, {writes} writes a second: {count} API writes in {time} s, the slowest took \
             {slowest:?}, a fresh list {read:?}"
        );
        assert_eq!(node.ended(), None, "a slow disk must not end the node");
    }
    let status = node.kedge(&["status"]);
    assert_has(&status.stdout, &["disk slow"]);
    disk.slow(node.pid(), None);
    let began = Instant::now();
    eprintln!("FIGURE disk fast again: next acknowledged write after {:?}", load.acknowledged_after(began));
}

fn full_disk(node: &mut Cluster, disk: &Disk, load: &Load) {
    step("the disk is full: read-only, in words");
    disk.fill();
    let server = Server::of(node);
    let maps = "/api/v1/namespaces/default/configmaps";
    let minute = Duration::from_secs(60);
    let mut written = 0;
    let mut refused = String::new();
    // What is left of the space that the log has reserved is filled with ever smaller ones.
    for size in [900_000, 90_000, 9_000, 900, 1] {
        let text = "x".repeat(size);
        refused = loop {
            let body = format!(
                r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"large-{written}"}},"data":{{"k":"{text}"}}}}"#
            );
            let (status, answer) = server.call("POST", maps, &body, minute).expect("an answer");
            let answer = String::from_utf8_lossy(&answer).into_owned();
            match status {
                201 => written += 1,
                503 => break answer,
                _ => panic!("{status} {answer}"),
            }
        };
    }
    eprintln!("FIGURE full disk: {written} writes fitted into the space that was reserved; then: {refused}");
    assert_has(&refused, &["disk is full"]);
    let (status, _) = server.call("GET", maps, "", minute).expect("an answer");
    assert_eq!(status, 200, "fresh reads go on");
    eventually("status to say so", || node.kedge(&["status"]).stdout.contains("disk full").then_some(()));
    assert_eq!(node.ended(), None, "a full disk must not end the node");

    step("there is space again: it goes on by itself");
    disk.free();
    let began = Instant::now();
    eprintln!("FIGURE space again: next acknowledged write after {:?}", load.acknowledged_after(began));
    for number in 0..written {
        let path = format!("{maps}/large-{number}");
        server.call("DELETE", &path, "", minute).expect("an answer");
    }
    node.wait(&format!("node/{}", node.node), "condition=Ready");
}

fn address_changes(network: &Network, node: &mut Cluster, before: &[String]) {
    let old = network.address(1);
    let other = |last: u32| format!("{}.{last}", old.rsplit_once('.').expect("an address").0);
    let server = Server::of(node);
    let came_back = |node: &mut Cluster, new: &str| {
        let began = Instant::now();
        let server = server.at(new, node.port);
        // The certificate is for the new address, or the call fails.
        eventually("the API at the new address", || {
            server
                .call("GET", "/readyz", "", Duration::from_secs(5))
                .ok()
                .filter(|(status, _)| *status == 200)
        });
        let served = began.elapsed();
        node.moved(new);
        eventually("the node's new address", || (node.node_address() == new).then_some(()));
        node.wait(&format!("node/{}", node.node), "condition=Ready");
        eventually("the Service's endpoint to be the new address", || {
            let path = "jsonpath={.subsets[0].addresses[0].ip}";
            let found = node.kubectl(&["get", "endpoints", "kubernetes", "-o", path]).ok();
            (found == new).then_some(())
        });
        node.rolled_out("deployment/web");
        assert_eq!(containers(node), before, "a container was restarted");
        (served, began.elapsed())
    };

    step("the address changes while it runs");
    let new = other(101);
    network.readdress(1, &old, &new);
    let (served, all) = came_back(node, &new);
    eprintln!(
        "FIGURE address changed while it runs: served there after {served:?}, all is as before after {all:?}"
    );

    step("the address changes while it is off");
    node.kill9();
    let newer = other(102);
    network.readdress(1, &new, &newer);
    node.run();
    let (served, all) = came_back(node, &newer);
    eprintln!(
        "FIGURE address changed while it is off: served there after {served:?}, all is as before after {all:?}"
    );
}

#[test]
fn the_store_has_a_quota() {
    let mut node = Cluster::prepare();
    std::fs::write(node.dir().join("config.yaml"), "store-quota: 8Mi\n").expect("write the configuration");
    node.run();
    node.wait_ready();
    node.kubectl(&["create", "namespace", "goes"]).ok();
    for name in ["stays", "goes"] {
        node.kubectl(&["run", name, "--image=kedge.dev/hello:1.0"]).ok();
        node.wait(&format!("pod/{name}"), "condition=Ready");
    }
    assert_has(&node.kedge(&["status"]).ok(), &["objects: ", " of 8.0 MiB"]);

    step("filled: what would add to it is refused in etcd's words");
    let server = Server::of(&node);
    let maps = "/api/v1/namespaces/default/configmaps";
    let minute = Duration::from_secs(60);
    let mut written = 0;
    let map = |name: usize, size: usize| {
        let text = "x".repeat(size);
        format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"large-{name}"}},"data":{{"k":"{text}"}}}}"#
        )
    };
    let call = |method: &str, path: &str, body: &str| {
        let (status, answer) = server.call(method, path, body, minute).expect("an answer");
        (status, String::from_utf8_lossy(&answer).into_owned())
    };
    let began = Instant::now();
    for size in [900_000, 90_000, 9_000, 900, 1] {
        loop {
            match call("POST", maps, &map(written, size)) {
                (201, _) => written += 1,
                (500, answer) => {
                    assert_has(&answer, &["etcdserver: mvcc: database space exceeded", "store-quota"]);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let status = node.kedge(&["status", "--format", "json"]).json();
    eprintln!(
        "FIGURE quota: {} of {} bytes are used after {written} objects in {:?}",
        status["datastore"]["bytes"],
        status["datastore"]["quotaBytes"],
        began.elapsed()
    );
    assert_has(&node.kedge(&["status"]).ok(), &["store full", "database space exceeded", "store-quota"]);
    // More than what the smallest of the others left free.
    let text = format!("--from-literal=k={}", "x".repeat(4000));
    let refused = node.kubectl(&["create", "configmap", "more", &text]).failed(1);
    assert_has(&refused, &["mvcc: database space exceeded", "delete what is not needed"]);
    assert_eq!(call("PUT", &format!("{maps}/large-0"), &map(0, 990_000)).0, 500, "an update that adds");

    step("what is there goes on: reads, marks, heartbeats, deleting");
    assert_eq!(call("GET", maps, "").0, 200);
    node.kubectl(&["label", "pod", "stays", "seen=yes"]).ok();
    let lease = format!("lease/{}", node.node);
    let renewed =
        || node.kubectl(&["-n", "kube-node-lease", "get", &lease, "-o", "jsonpath={.spec.renewTime}"]).ok();
    let old = renewed();
    eventually("the Lease to be renewed", || (renewed() != old).then_some(()));
    node.kubectl(&["delete", "pod", "goes", "--timeout=250s"]).ok();
    node.kubectl(&["delete", "namespace", "goes", "--timeout=250s"]).ok();
    node.wait(&format!("node/{}", node.node), "condition=Ready");

    step("deleted: there is room again");
    for number in 0..written {
        assert_eq!(call("DELETE", &format!("{maps}/large-{number}"), "").0, 200);
    }
    node.kubectl(&["create", "configmap", "more", &text]).ok();
    let status = node.kedge(&["status"]).ok();
    assert!(!status.contains("store full") && !status.contains("store filling"), "{status}");
    node.wait("pod/stays", "condition=Ready");
}
