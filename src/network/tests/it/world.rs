//! Network namespaces and what runs in them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

/// Far longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Nothing may be left in the machine's list of namespaces, whatever happens.
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kedge-{name}-{}-{count}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self(name)
    }

    /// Run `work` in a thread inside the namespace.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Run `work` in the namespace and wait for it.
    pub(crate) fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.run(work).join().unwrap()
    }

    /// Run a program in the namespace; its standard output.
    pub(crate) fn exec(&self, program: &'static str, arguments: &str) -> String {
        let arguments = arguments.to_owned();
        self.within(move || run(program, &arguments))
    }

    /// `ip` in the namespace.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        run("ip", &format!("-n {} {arguments}", self.0))
    }

    /// A cable from here, as `device`, to `other`'s eth0 with `address`.
    pub(crate) fn cable(&self, device: &str, other: &Self, address: &str) {
        self.ip(&format!("link add {device} type veth peer name eth0 netns {}", other.0));
        self.ip(&format!("link set {device} up"));
        other.ip(&format!("address add {address} dev eth0"));
        other.ip("link set eth0 up");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(arguments: &str) {
    run("ip", arguments);
}

/// These tests change the kernel of the machine they run on, in namespaces of their own.
#[expect(clippy::print_stderr, reason = "a test that does nothing has to say so")]
pub(crate) fn is_enabled() -> bool {
    let enabled = nix::unistd::geteuid().is_root() && std::env::var("KEDGE_ROOT_TESTS").as_deref() == Ok("1");
    if !enabled {
        eprintln!("skipped: needs root and KEDGE_ROOT_TESTS=1");
    }
    enabled
}

/// Run a scenario in a namespace of its own, the runtime's threads included.
pub(crate) fn in_own_namespace<F: Future<Output = ()>>(scenario: impl FnOnce() -> F + Send + 'static) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(scenario());
    })
    .join()
    .unwrap();
}

/// What a server answers: the client's address as it sees it, and its own name.
pub(crate) fn ask(address: &str) -> std::io::Result<String> {
    ask_within(address, Duration::from_secs(10))
}

/// The same when no answer is likely.
pub(crate) fn ask_within(address: &str, limit: Duration) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The same over UDP, from a socket that may be used again.
pub(crate) fn ask_udp(socket: &UdpSocket, address: &str) -> std::io::Result<String> {
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"?", address)?;
    let mut answer = [0; 200];
    let (length, _) = socket.recv_from(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Answers every connection with the client's address, a space, `name` and `padding` more spaces.
pub(crate) fn serve(listener: &TcpListener, name: &str, padding: usize) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let peer = stream.peer_addr().unwrap().ip().to_canonical();
        let _ = stream.write_all(format!("{peer} {name}").as_bytes());
        let _ = stream.write_all(&vec![b' '; padding]);
    }
}

/// The same for datagrams.
pub(crate) fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 100];
    while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(format!("{} {name}", peer.ip().to_canonical()).as_bytes(), peer);
    }
}

/// Again and again until it is right; the last answer is the message when time runs out.
pub(crate) async fn eventually(what: &str, try_it: impl Fn() -> Result<(), String> + Clone + Send + 'static) {
    let start = Instant::now();
    loop {
        let attempt = try_it.clone();
        match tokio::task::spawn_blocking(attempt).await.unwrap() {
            Ok(()) => return,
            Err(last) => assert!(start.elapsed() < PATIENCE, "{what}: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
