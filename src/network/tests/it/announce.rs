//! Addresses that move between machines: real interfaces, real ARP and neighbour discovery.

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use kedge_base::Tasks;
use kedge_network::{Announcer, Purpose, cleanup, start_announcer};

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
        let (give, take) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let own = own.parse().unwrap();
        let thread = machine.run(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let tasks = Tasks::new("test");
            let announcer = runtime.block_on(async { start_announcer(vec![own], &tasks) });
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
        eventually(name, move || {
            let answer = ask_within(&address, Duration::from_secs(1)).map_err(|error| error.to_string())?;
            if answer.ends_with(name) { Ok(()) } else { Err(answer) }
        })
        .await;
    }
}

#[test]
fn addresses_move_with_the_neighbours_following() {
    if is_enabled() {
        in_own_namespace(scenario);
    }
}

async fn scenario() {
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
