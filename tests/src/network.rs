//! Several hosts on one machine: network namespaces, each with one card on a common bridge.

use std::process::Command;

use crate::run::run;

/// Hosts of one test; taken away again when it is dropped.
#[derive(Debug)]
pub struct Network {
    id: u32,
    hosts: usize,
}

impl Network {
    /// Makes the bridge (which this process's own namespace is on too) and `hosts` namespaces.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn new(hosts: usize) -> Self {
        let network = Self { id: std::process::id(), hosts };
        let bridge = network.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["addr", "add", &format!("{}/24", network.address(0)), "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        for host in 1..=hosts {
            let (namespace, card) = (network.namespace(host), network.card(host));
            ip(&["netns", "add", &namespace]);
            ip(&["link", "add", &card, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
            ip(&["link", "set", &card, "master", &bridge, "up"]);
            let inside = |arguments: &[&str]| ip(&[&["-n", &namespace], arguments].concat());
            inside(&["link", "set", "lo", "up"]);
            inside(&["addr", "add", &format!("{}/24", network.address(host)), "dev", "eth0"]);
            inside(&["link", "set", "eth0", "up"]);
            inside(&["route", "add", "default", "via", &network.address(0)]);
        }
        network
    }

    /// The namespace of a host (from 1).
    #[must_use]
    pub fn namespace(&self, host: usize) -> String {
        format!("kt{}-{host}", self.id)
    }

    /// The address of a host; 0 is this process's own namespace.
    #[must_use]
    pub fn address(&self, host: usize) -> String {
        let (second, third) = (100 + self.id % 50, self.id / 50 % 250);
        format!("10.{second}.{third}.{}", if host == 0 { 254 } else { host })
    }

    /// Takes a host's card off the net, as a pulled cable does, or puts it back.
    pub fn connect(&self, host: usize, connected: bool) {
        ip(&["link", "set", &self.card(host), if connected { "up" } else { "down" }]);
    }

    /// Gives a host another address, as a new DHCP lease does: the old one is gone.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn readdress(&self, host: usize, old: &str, new: &str) {
        let namespace = self.namespace(host);
        let inside = |arguments: &[&str]| ip(&[&["-n", &namespace], arguments].concat());
        inside(&["addr", "del", &format!("{old}/24"), "dev", "eth0"]);
        inside(&["addr", "add", &format!("{new}/24"), "dev", "eth0"]);
        // With the last address the route went too.
        inside(&["route", "replace", "default", "via", &self.address(0)]);
    }

    /// Whether `host` receives what `sender` sends; the other direction is left alone.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn hears(&self, host: usize, sender: usize, hears: bool) {
        let table = format!("kt_deaf_{sender}");
        let source = self.address(sender);
        let rules = if hears {
            format!("delete table ip {table}\n")
        } else {
            let hook = "type filter hook prerouting priority -500;";
            format!("table ip {table} {{\nchain in {{\n{hook}\nip saddr {source} drop\n}}\n}}\n")
        };
        let namespace = self.namespace(host);
        run(command_in(Some(&namespace), "nft").args(["-f", "-"]), rules.as_bytes()).ok();
    }

    fn bridge(&self) -> String {
        format!("ktn{}", self.id)
    }

    fn card(&self, host: usize) -> String {
        format!("kt{}-{host}", self.id)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Only what was made here; a namespace takes its end of the veth pair with it.
        for host in 1..=self.hosts {
            let _ = run(Command::new("ip").args(["netns", "delete", &self.namespace(host)]), b"");
            let _ = run(Command::new("ip").args(["link", "delete", &self.card(host)]), b"");
        }
        let _ = run(Command::new("ip").args(["link", "delete", &self.bridge()]), b"");
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments), b"").ok();
}

/// A command inside a network namespace. Unlike `ip netns exec` this keeps the mount namespace: mounts
/// that a node makes stay visible to who looks for them.
#[must_use]
pub(crate) fn command_in(namespace: Option<&str>, program: impl AsRef<std::ffi::OsStr>) -> Command {
    match namespace {
        None => Command::new(program),
        Some(namespace) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
            command
        }
    }
}
