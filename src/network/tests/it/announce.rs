//! Addresses that move between machines: real interfaces, real ARP and neighbour discovery.

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_client::load_balancer::{ADDRESSES, PORTS, PORTS_ANSWER};
use kedge_network::{Announcer, Purpose, cleanup, follow_node, start_announcer};
use serde_json::json;

use crate::api::Api;
use crate::world::{Namespace, PATIENCE, ask_within, eventually, in_own_namespace, ip, is_enabled, serve};

const V4: &str = "192.0.2.200";
const V6: &str = "2001:db8::200";

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|text| text.parse().unwrap()).collect()
}

/// A machine's announcer with a runtime of its own, inside its namespace.
struct Holder {
    announcer: Announcer,
    end: mpsc::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Holder {
    fn start(machine: &Namespace, own: &str) -> Self {
        Self::begin(machine, own, None)
    }

    /// One that does what the Node object says.
    fn begin(machine: &Namespace, own: &str, api: Option<Api>) -> Self {
        let (give, take) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let own = own.parse().unwrap();
        let thread = machine.run(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let tasks = Tasks::new("test");
            let announcer = runtime.block_on(async {
                let announcer = start_announcer(vec![own], &tasks);
                if let Some(api) = api {
                    let informers = Informers::new(api.client(), &tasks);
                    follow_node(&announcer, "a", [6443].into(), api.client(), &informers, &tasks);
                }
                announcer
            });
            give.send(announcer).unwrap();
            // True: as a service manager stops it; false: killed.
            if ends.recv().unwrap_or(false) {
                assert!(runtime.block_on(tasks.shutdown(PATIENCE)).is_empty());
            }
            runtime.shutdown_background();
        });
        Self { announcer: take.recv().unwrap(), end, thread }
    }

    fn end(self, gracefully: bool) {
        self.end.send(gracefully).unwrap();
        self.thread.join().unwrap();
    }
}

fn has(machine: &Namespace, address: &str) -> bool {
    machine.ip("-o addr").contains(&format!(" {address}/"))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Who answers, by the client's own table of neighbours.
async fn answered_by(name: &'static str) {
    for address in [format!("{V4}:80"), format!("[{V6}]:80")] {
        answered_by_at(name, &address).await;
    }
}

async fn answered_by_at(name: &'static str, address: &str) {
    let address = address.to_owned();
    eventually(name, move || {
        let answer = ask_within(&address, Duration::from_secs(1)).map_err(|error| error.to_string())?;
        if answer.ends_with(name) { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[test]
fn addresses_move_with_the_neighbours_following() {
    if is_enabled() {
        in_own_namespace(scenario);
    }
}

/// Two machines and the test on one bridge, each with a server that says its name.
fn segment() -> [Namespace; 2] {
    ip("link set lo up");
    ip("link add br0 type bridge");
    ip("address add 192.0.2.254/24 dev br0");
    ip("address add 2001:db8::254/64 dev br0 nodad");
    ip("link set br0 up");
    let machines = [Namespace::new("a"), Namespace::new("b")];
    for (number, (machine, name)) in machines.iter().zip(["A", "B"]).enumerate() {
        let number = number + 1;
        ip(&format!("link add port{number} type veth peer name eth0 netns {}", machine.0));
        ip(&format!("link set port{number} master br0 up"));
        machine.ip(&format!("address add 192.0.2.{number}/24 dev eth0"));
        machine.ip(&format!("address add 2001:db8::{number}/64 dev eth0 nodad"));
        machine.ip("link set eth0 up");
        machine.run(move || {
            let listener = TcpListener::bind("[::]:80").unwrap();
            serve(&listener, name, 0);
        });
    }
    machines
}

async fn scenario() {
    let machines = segment();
    let [a, b] = &machines;

    let first = Holder::start(a, "192.0.2.1");
    let second = Holder::start(b, "192.0.2.2");
    first.announcer.hold(Purpose::Services, set(&[V4, V6]));
    second.announcer.hold(Purpose::Services, set(&[]));
    answered_by("A").await;
    // It may not be what new connections begin from.
    assert!(
        a.ip("-o addr").lines().filter(|line| line.contains("::200")).all(|line| line.contains("deprecated"))
    );

    // The one before was killed: its kernel still has them. Who holds them now is heard all the same.
    first.end(false);
    assert!(has(a, V4) && has(a, V6));
    second.announcer.hold(Purpose::Services, set(&[V4, V6]));
    answered_by("B").await;

    // Its next process learns first what it is to hold; then what it was left with goes.
    let first = Holder::start(a, "192.0.2.1");
    assert!(has(a, V4) && has(a, V6));
    first.announcer.hold(Purpose::Services, set(&[]));
    until("strays to go", || !has(a, V4) && !has(a, V6)).await;
    answered_by("B").await;

    // Somebody takes it off: it is put on again, and what others put there stays theirs.
    b.ip(&format!("address del {V4}/32 dev eth0"));
    until("the address to be back", || has(b, V4)).await;
    a.ip("address add 192.0.2.201/24 dev eth0");
    first.announcer.hold(Purpose::Services, set(&["192.0.2.201", "192.0.2.202"]));
    until("the free one", || has(a, "192.0.2.202")).await;
    first.announcer.hold(Purpose::Services, set(&[]));
    until("the free one to go", || !has(a, "192.0.2.202")).await;
    assert!(a.ip("-o addr").contains(" 192.0.2.201/24"));

    // A graceful end: the API server's address goes at once, Services' are answered on.
    second.announcer.hold(Purpose::Services, set(&[V6]));
    second.announcer.hold(Purpose::ApiServer, set(&[V4]));
    until("both", || has(b, V4) && has(b, V6)).await;
    second.end(true);
    assert!(!has(b, V4) && has(b, V6));

    // Uninstalling takes everything.
    b.within(|| {
        let none = tempfile::tempdir().unwrap();
        cleanup("kedge", "kedge0", none.path()).unwrap();
    });
    assert!(!has(b, V6));

    // Nobody renews the API server's: the kernel takes it off within seconds.
    first.announcer.hold(Purpose::ApiServer, set(&[V4]));
    until("the address", || has(a, V4)).await;
    first.end(false);
    until("the kernel to take it off", || !has(a, V4)).await;
}

#[test]
fn a_node_does_what_its_object_says_and_gives_way_when_it_is_behind() {
    if is_enabled() {
        in_own_namespace(following);
    }
}

async fn following() {
    let machines = segment();
    let [a, b] = &machines;
    let node = |annotations: serde_json::Value| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": "a", "uid": "u1", "annotations": annotations },
        })
    };
    let api = Api::new([("nodes", vec![node(json!({ ADDRESSES: format!("{V4},{V6}") }))])]);
    let first = Holder::begin(a, "192.0.2.1", Some(api.clone()));
    let second = Holder::start(b, "192.0.2.2");
    second.announcer.hold(Purpose::Services, set(&[]));
    answered_by("A").await;

    // Its own server has port 80, Kedge needs 6443.
    let both = json!({ ADDRESSES: format!("{V4},{V6}"), PORTS: "TCP/80,TCP/81,TCP/6443" });
    api.set("nodes", &node(both.clone()));
    let answer = || api.get("nodes", "a").map(|node| node["metadata"]["annotations"][PORTS_ANSWER].clone());
    until("the answer", || answer() == Some(json!("TCP/81,!TCP/80,!TCP/6443"))).await;
    api.set("nodes", &node(json!({ ADDRESSES: format!("{V4},{V6}"), PORTS_ANSWER: "TCP/81" })));
    until("the answer to go", || answer() == Some(json!(null))).await;

    // Its object is gone, and it does not hear of it: another machine's claim makes it ask.
    api.forget("nodes", "a");
    second.announcer.hold(Purpose::Services, set(&[V4]));
    until("the claimed one to go", || !has(a, V4)).await;
    answered_by_at("B", &format!("{V4}:80")).await;

    // What the API server says counts, once it says something again.
    second.announcer.hold(Purpose::Services, set(&[]));
    until("the other to give it back", || !has(b, V4)).await;
    api.set("nodes", &node(json!({ ADDRESSES: format!("{V4},{V6}") })));
    until("both to be back", || has(a, V4) && has(a, V6)).await;
    answered_by("A").await;

    api.delete("nodes", "a");
    until("everything to go", || !has(a, V4) && !has(a, V6)).await;
    first.end(true);
    second.end(true);
}
