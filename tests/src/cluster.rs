//! One node for one test: its life.

mod kubectl;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::image;
use crate::leftovers;
use crate::network::{Network, command_in};
use crate::run::{Out, kedge_binary, run};

/// What the installed binary's path is; `uninstall` of a test's node must leave it alone.
const INSTALLED: &str = "/usr/local/bin/kedge";

/// A node with its own folders, ports, networks and names.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    binary: PathBuf,
    flags: Vec<String>,
    child: Option<Child>,
    /// The network namespace that it runs in, when it is not this process's own.
    namespace: Option<String>,
    /// What kubectl connects to.
    server: String,
    /// The Node object's name.
    pub node: String,
    /// The API's port.
    pub port: u16,
    bridge: String,
    table: String,
}

impl Cluster {
    /// A node that is Ready.
    ///
    /// # Panics
    /// When it does not become Ready.
    #[must_use]
    pub fn start() -> Self {
        let mut cluster = Self::prepare();
        cluster.run();
        cluster.wait_ready();
        cluster
    }

    /// Folders, ports and names, but no process yet.
    ///
    /// # Panics
    /// When this is not root or no ports are free.
    #[must_use]
    pub fn prepare() -> Self {
        let pid = std::process::id();
        let ports = free_ports();
        // Networks that no other node of the machine has by default, and other ones for each process.
        let network = pid % 16;
        let name = format!("kedge-test-{pid}");
        leftovers::note_pod_network_of_others(&format!("kt{pid}"));
        let settings = vec![
            ("--port", ports[0].to_string()),
            ("--cluster-port", ports[1].to_string()),
            ("--kubelet-port", ports[2].to_string()),
            ("--pod-cidr", format!("10.{}.0.0/16", 200 + network)),
            ("--service-cidr", format!("10.{}.0.0/16", 220 + network)),
            ("--cluster-dns", format!("10.{}.0.10", 220 + network)),
            ("--table-name", name.clone()),
            ("--bridge-name", format!("kt{pid}")),
        ];
        Self::made(name.clone(), None, "127.0.0.1".to_owned(), ports[0], &name, &format!("kt{pid}"), settings)
    }

    /// A host of `network` (from 1), with the ports and networks that users have.
    ///
    /// # Panics
    /// When this is not root.
    #[must_use]
    pub fn prepare_on(network: &Network, host: usize) -> Self {
        Self::prepare_named(network, host, &format!("kedge-test-{}-{host}", std::process::id()))
    }

    /// The same without a fixed address: the node finds its own.
    ///
    /// # Panics
    /// When this is not root.
    #[must_use]
    pub fn prepare_roaming(network: &Network, host: usize) -> Self {
        let name = format!("kedge-test-{}-{host}", std::process::id());
        let namespace = Some(network.namespace(host));
        Self::made(name, namespace, network.address(host), 6443, "kedge", "kedge0", Vec::new())
    }

    /// The node has another address now; the kubeconfig is written for that.
    ///
    /// # Panics
    /// When the kubeconfig cannot be written.
    pub fn moved(&mut self, address: &str) {
        self.server = format!("https://{address}:{}", self.port);
        self.write_kubeconfig();
    }

    /// The same with a name for the Node object.
    ///
    /// # Panics
    /// When this is not root.
    #[must_use]
    pub fn prepare_named(network: &Network, host: usize, name: &str) -> Self {
        Self::prepare_with(network, host, name, vec![("--node-ip", network.address(host))])
    }

    /// The same with these settings only: the node finds its addresses by itself.
    ///
    /// # Panics
    /// When this is not root.
    #[must_use]
    pub fn prepare_with(
        network: &Network,
        host: usize,
        name: &str,
        settings: Vec<(&'static str, String)>,
    ) -> Self {
        let address = network.address(host);
        Self::made(
            name.to_owned(),
            Some(network.namespace(host)),
            if address.contains(':') { format!("[{address}]") } else { address },
            6443,
            "kedge",
            "kedge0",
            settings,
        )
    }

    fn made(
        node: String,
        namespace: Option<String>,
        address: String,
        port: u16,
        table: &str,
        bridge: &str,
        mut settings: Vec<(&str, String)>,
    ) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "root is needed: these tests start containers");
        let base =
            std::env::var_os("KEDGE_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = tempfile::Builder::new()
            .prefix("kedge-test-")
            .tempdir_in(&base)
            .unwrap_or_else(|error| panic!("make a folder in {}: {error}", base.display()))
            .keep();
        for folder in ["data", "run", "log"] {
            fs::create_dir(dir.join(folder)).expect("make the node's folders");
        }
        let path = |name: &str| dir.join(name).display().to_string();
        for (flag, name) in
            [("--data-dir", "data"), ("--run-dir", "run"), ("--log-dir", "log"), ("--config", "config.yaml")]
        {
            settings.push((flag, path(name)));
        }
        settings.push(("--node-name", node.clone()));
        // A machine that builds and tests is nearly full: that is no test's business unless it says so.
        for (flag, value) in [
            ("--eviction-hard", "memory.available<50Mi,nodefs.available<1Gi"),
            ("--image-gc-high-threshold", "100"),
        ] {
            if !settings.iter().any(|(given, _)| *given == flag) {
                settings.push((flag, value.to_owned()));
            }
        }
        let flags = settings.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        // A file that is named must exist.
        std::fs::write(path("config.yaml"), "").expect("write the configuration file");
        let cluster = Self {
            binary: kedge_binary(),
            flags,
            child: None,
            namespace,
            server: format!("https://{address}:{port}"),
            node,
            port,
            bridge: bridge.to_owned(),
            table: table.to_owned(),
            dir,
        };
        cluster.note_record();
        cluster
    }

    /// Gives the node another setting, before it is run.
    pub fn set(&mut self, flag: &str, value: &str) {
        match self.flags.iter().position(|known| known == flag) {
            Some(at) => value.clone_into(&mut self.flags[at + 1]),
            None => self.flags.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    /// The folder that holds everything of this node.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The API server's address: `https://HOST:PORT`.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The node's flags, as every command takes them.
    #[must_use]
    pub fn flags(&self) -> &[String] {
        &self.flags
    }

    /// Starts `kedge run`. Its log goes to a file.
    ///
    /// # Panics
    /// When it cannot be started or runs already.
    pub fn run(&mut self) {
        assert!(self.child.is_none(), "the node runs already");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("open the node's log");
        let errors = log.try_clone().expect("open the node's log twice");
        let child = command_in(self.namespace.as_deref(), &self.binary)
            .arg("run")
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", self.binary.display()));
        self.child = Some(child);
    }

    /// Waits until the node is Ready and writes the kubeconfig.
    ///
    /// # Panics
    /// When it ended, or is not Ready within five minutes.
    pub fn wait_ready(&mut self) {
        // In pieces: a node that has ended is noticed before the whole time is over.
        let status = crate::eventually("the node to be Ready", || {
            let status = self.kedge(&["status", "--wait-ready", "--timeout", "15", "--format", "json"]);
            if let Some(ended) = self.ended() {
                panic!("kedge run ended with {ended}:\n{}", self.log_tail(60));
            }
            if status.code != 0 {
                eprintln!("not Ready yet: {}", status.stderr.trim());
            }
            (status.code == 0).then_some(status)
        });
        assert_eq!(status.json()["state"], "ready");
        self.write_kubeconfig();
    }

    /// Writes the kubeconfig that kubectl uses here.
    ///
    /// # Panics
    /// When there is no cluster yet.
    pub fn write_kubeconfig(&self) {
        let kubeconfig = self.kedge(&["config", "--server", &self.server]).ok();
        fs::write(self.kubeconfig(), kubeconfig).expect("write the kubeconfig");
    }

    /// How `kedge run` ended, when it did.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        Some(status.code().unwrap_or(-1))
    }

    /// Waits until `kedge run` ends by itself and gives its exit code.
    ///
    /// # Panics
    /// When it still runs after five minutes.
    pub fn wait_ended(&mut self) -> i32 {
        crate::eventually("kedge run to end", || self.ended())
    }

    /// The id of the `kedge run` process.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or_else(|| self.background_pid(), Child::id)
    }

    /// `kedge join` and `kedge start` leave it in the background.
    fn background_pid(&self) -> u32 {
        let file = fs::read_to_string(self.dir.join("run/kedge.pid")).expect("the node runs");
        file.lines().next().and_then(|line| line.parse().ok()).expect("a process id")
    }

    /// Ends `kedge run` as SIGKILL does: nothing is saved, nothing is told.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill9(&mut self) {
        if let Some(mut child) =
            self.child.take_if(|child| child.try_wait().is_ok_and(|ended| ended.is_none()))
        {
            child.kill().expect("send SIGKILL");
            child.wait().expect("wait for the node");
            return;
        }
        self.child = None;
        let pid = i32::try_from(self.background_pid()).expect("a process id");
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("send SIGKILL");
        // Closer than `eventually` looks: tests measure from here.
        let deadline = Instant::now() + crate::LIMIT;
        while nix::sys::signal::kill(pid, None).is_ok() {
            assert!(Instant::now() < deadline, "the killed node does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends `kedge run` as a service manager does, and gives the exit code.
    ///
    /// # Panics
    /// When it does not run or does not end.
    pub fn stop(&mut self) -> i32 {
        let pid = i32::try_from(self.pid()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
            .expect("send SIGTERM");
        self.wait_ended()
    }

    /// Runs a `kedge` command with the node's flags.
    #[track_caller]
    #[must_use]
    pub fn kedge(&self, arguments: &[&str]) -> Out {
        run(command_in(self.namespace.as_deref(), &self.binary).args(arguments).args(&self.flags), b"")
    }

    /// Runs a shell line on the node's host, with `KEDGE` as the binary.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn shell(&self, line: &str) -> String {
        let mut command = command_in(self.namespace.as_deref(), "sh");
        run(command.env("KEDGE", &self.binary).args(["-c", line]), b"").ok()
    }

    /// Begins a `kedge` command with the node's flags; its output can be read when it ends.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        command_in(self.namespace.as_deref(), &self.binary)
            .args(arguments)
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", self.binary.display()))
    }

    /// Makes an image of Debian's static busybox and imports it ([`image::BUSYBOX`]).
    ///
    /// # Panics
    /// When it cannot be made or imported.
    pub fn import_busybox(&self) {
        let archive = self.dir.join("busybox.tar");
        image::oci_archive(image::BUSYBOX, &archive);
        let out = self.kedge(&["images", "import", &archive.display().to_string()]).ok();
        assert!(out.contains(image::BUSYBOX), "{out}");
    }

    /// The kubeconfig that kubectl uses here.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The whole log of all `kedge run` processes of this node.
    #[must_use]
    pub fn log(&self) -> String {
        // `kedge start` and `kedge join` leave the node in the background, with a log of its own.
        let background = self.dir.join("log/kedge-data.log");
        let read = |path: PathBuf| fs::read(path).unwrap_or_default();
        let bytes = [read(self.log_file()), read(background)].concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("kedge-run.log")
    }

    /// Uninstalls the node and asserts that nothing is left. Called by drop; call it to see more.
    ///
    /// # Panics
    /// When something is left.
    pub fn remove(&mut self) {
        let kept = Kept::take();
        // Whatever cluster the test has left it in.
        let out = self.kedge(&["uninstall", "--force"]);
        // The test's own child: the system keeps a zombie until somebody asks.
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let left = leftovers::find(&self.dir, self.namespace.as_deref(), &self.bridge, &self.table);
        let binary_lost = kept.put_back();
        assert!(out.code == 0, "{out}");
        assert!(left.is_empty(), "uninstall left:\n{}", left.join("\n"));
        assert!(!binary_lost, "uninstall of a node run from another binary removed {INSTALLED}");
        self.forget_record();
        fs::remove_dir_all(&self.dir).expect("remove the test's folder");
    }

    fn record(&self, ending: &str) -> Option<PathBuf> {
        let folder = PathBuf::from(std::env::var_os("KEDGE_TEST_RECORDS")?);
        // Two nodes may have one name where a test wants that; folders are unique.
        let name = self.dir.file_name()?.to_string_lossy();
        Some(folder.join(format!("{name}.{ending}")))
    }

    fn note_record(&self) {
        if let (Some(flags), Some(dir)) = (self.record("flags"), self.record("dir")) {
            let _ = fs::write(flags, self.flags.join("\n") + "\n");
            let _ = fs::write(dir, self.dir.display().to_string());
        }
    }

    fn forget_record(&self) {
        for file in ["flags", "dir"].into_iter().filter_map(|ending| self.record(ending)) {
            let _ = fs::remove_file(file);
        }
    }

    /// What helps to understand a failure.
    fn report(&self) {
        eprintln!("=== state of the node at the failure");
        if self.kubeconfig().exists() {
            for call in [
                ["get", "nodes,pods,deployments,services", "-A", "-o", "wide", "--request-timeout=20s"]
                    .as_slice(),
                &["get", "events", "-A", "--sort-by=.metadata.creationTimestamp", "--request-timeout=20s"],
            ] {
                eprintln!("{}", self.kubectl(call));
            }
        }
        eprintln!("=== the end of the node's log\n{}", self.log_tail(200));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.dir.exists() {
            return;
        }
        if !std::thread::panicking() {
            self.remove();
            return;
        }
        // A second panic would end the process before it has cleaned up: only try.
        self.report();
        let kept = Kept::take();
        let _ = command_in(self.namespace.as_deref(), &self.binary)
            .args(["uninstall", "--force"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        leftovers::force(&self.dir, self.namespace.as_deref(), &self.bridge, &self.table);
        kept.put_back();
        self.forget_record();
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir_all(&self.dir).is_err() && self.dir.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The installed binary of the machine, if there is one, safe from a wrong uninstall.
struct Kept(Option<PathBuf>);

impl Kept {
    fn take() -> Self {
        let copy = PathBuf::from(format!("{INSTALLED}.kept-{}", std::process::id()));
        Self(fs::hard_link(INSTALLED, &copy).ok().map(|()| copy))
    }

    /// True when it had to be put back.
    fn put_back(self) -> bool {
        let Some(copy) = self.0 else { return false };
        if Path::new(INSTALLED).exists() {
            let _ = fs::remove_file(copy);
            return false;
        }
        let _ = fs::rename(copy, INSTALLED);
        true
    }
}

/// Three ports in a row that nobody listens on, below the range that the kernel hands out.
fn free_ports() -> [u16; 3] {
    let start = u16::try_from(std::process::id() % 2000).unwrap_or_default();
    for offset in 0..2000 {
        let first = 20000 + (start + offset) % 2000 * 3;
        let ports = [first, first + 1, first + 2];
        let listeners: Vec<TcpListener> =
            ports.iter().filter_map(|port| TcpListener::bind(("0.0.0.0", *port)).ok()).collect();
        if listeners.len() == ports.len() {
            return ports;
        }
    }
    panic!("no free ports between 20000 and 26000");
}
