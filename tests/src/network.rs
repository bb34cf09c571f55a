//! Several hosts on one machine: network namespaces, each with one card on a common bridge.

use std::process::Command;

use crate::run::run;

/// Which IP families the hosts of a [`Network`] have addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Both,
}

/// Hosts of one test; taken away again when it is dropped.
#[derive(Debug)]
pub struct Network {
    id: u32,
    hosts: usize,
    families: Families,
}

impl Network {
    /// Makes the bridge (which this process's own namespace is on too) and `hosts` namespaces.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn new(hosts: usize) -> Self {
        Self::of(hosts, Families::V4)
    }

    /// The same with addresses of these families.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn of(hosts: usize, families: Families) -> Self {
        let network = Self { id: std::process::id(), hosts, families };
        let bridge = network.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"]);
        if families != Families::V6 {
            ip(&["addr", "add", &format!("{}/24", network.address_v4(0)), "dev", &bridge]);
        }
        if families != Families::V4 {
            ip(&["addr", "add", &format!("{}/64", network.address_v6(0)), "dev", &bridge, "nodad"]);
        }
        ip(&["link", "set", &bridge, "up"]);
        for host in 1..=hosts {
            let (namespace, card) = (network.namespace(host), network.card(host));
            ip(&["netns", "add", &namespace]);
            ip(&["link", "add", &card, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
            ip(&["link", "set", &card, "master", &bridge, "up"]);
            let inside = |arguments: &[&str]| ip(&[&["-n", &namespace], arguments].concat());
            inside(&["link", "set", "lo", "up"]);
            if families != Families::V6 {
                inside(&["addr", "add", &format!("{}/24", network.address_v4(host)), "dev", "eth0"]);
            }
            if families != Families::V4 {
                inside(&["addr", "add", &format!("{}/64", network.address_v6(host)), "dev", "eth0", "nodad"]);
            }
            inside(&["link", "set", "eth0", "up"]);
            if families != Families::V6 {
                inside(&["route", "add", "default", "via", &network.address_v4(0)]);
            }
            if families != Families::V4 {
                inside(&["-6", "route", "add", "default", "via", &network.address_v6(0)]);
            }
        }
        network
    }

    /// The namespace of a host (from 1).
    #[must_use]
    pub fn namespace(&self, host: usize) -> String {
        format!("kt{}-{host}", self.id)
    }

    /// The address of a host, IPv4 where it has one; 0 is this process's own namespace.
    #[must_use]
    pub fn address(&self, host: usize) -> String {
        if self.families == Families::V6 { self.address_v6(host) } else { self.address_v4(host) }
    }

    /// A host's IPv6 address.
    #[must_use]
    pub fn address_v6(&self, host: usize) -> String {
        format!("fd7e:{:x}:{:x}::{}", self.id >> 16, self.id & 0xffff, if host == 0 { 254 } else { host })
    }

    fn address_v4(&self, host: usize) -> String {
        let (second, third) = (100 + self.id % 50, self.id / 50 % 250);
        format!("10.{second}.{third}.{}", if host == 0 { 254 } else { host })
    }

    /// Takes a host's card off the net, as a pulled cable does, or puts it back.
    pub fn connect(&self, host: usize, connected: bool) {
        ip(&["link", "set", &self.card(host), if connected { "up" } else { "down" }]);
    }

    /// Leaves a host with its own network only.
    pub fn remove_default_route(&self, host: usize) {
        ip(&["-n", &self.namespace(host), "route", "del", "default"]);
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
