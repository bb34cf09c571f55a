//! What a removed node must not leave behind, found by the one thing that is the node's alone: its folder.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::command_in;
use crate::run::run;

/// A process whose arguments name a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its arguments, separated by spaces.
    pub command: String,
}

/// The processes (zombies and this one not) whose arguments name `folder` or something below it.
#[must_use]
pub fn processes_naming(folder: &Path) -> Vec<Process> {
    let folder = folder.to_string_lossy().into_owned();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()))
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned();
            command.contains(&folder).then_some(Process { pid, command })
        })
        .collect()
}

/// The mount points below `folder`, the deepest first.
pub(crate) fn mounts_below(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let prefix = format!("{}/", folder.display());
    let mut points: Vec<String> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.starts_with(&prefix))
        .map(str::to_owned)
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    points
}

/// Everything of a node that is still there, in words.
pub(crate) fn find(folder: &Path, namespace: Option<&str>, bridge: &str, table: &str) -> Vec<String> {
    let mut found: Vec<String> = processes_naming(folder)
        .into_iter()
        .map(|process| format!("process {}: {}", process.pid, process.command))
        .collect();
    found.extend(mounts_below(folder).into_iter().map(|point| format!("mount {point}")));
    found.extend(devices(namespace, bridge).into_iter().map(|device| format!("network device {device}")));
    let tables = run(command_in(namespace, "nft").args(["list", "tables"]), b"").stdout;
    if tables.lines().any(|line| line.split(' ').next_back() == Some(table)) {
        found.push(format!("nftables table {table}"));
    }
    for name in ["data", "run"] {
        if folder.join(name).exists() {
            found.push(format!("folder {}", folder.join(name).display()));
        }
    }
    found
}

/// The bridge, and the devices of its pod network: their alias names the bridge that they are for.
fn devices(namespace: Option<&str>, bridge: &str) -> Vec<String> {
    let of_node = |link: &&serde_json::Value| {
        let alias = link["ifalias"].as_str().unwrap_or_default();
        link["ifname"] == bridge || alias.split(' ').next_back() == Some(bridge)
    };
    let links = links(namespace);
    links.iter().filter(of_node).filter_map(|link| link["ifname"].as_str().map(str::to_owned)).collect()
}

fn links(namespace: Option<&str>) -> Vec<serde_json::Value> {
    let listed = run(command_in(namespace, "ip").args(["-json", "link", "show"]), b"").stdout;
    serde_json::from_str(&listed).unwrap_or_default()
}

/// Says whose pod network is on this machine: of two nodes only one has `flannel.1`, the other one goes without. No
/// failure, as nodes of several test processes may run at once.
pub(crate) fn note_pod_network_of_others(bridge: &str) {
    for link in links(None) {
        let alias = link["ifalias"].as_str().unwrap_or_default();
        if link["ifname"] == "flannel.1" && alias.split(' ').next_back() != Some(bridge) {
            eprintln!("NOTE flannel.1 of another node is on this machine: {alias:?}");
        }
    }
}

/// The last resort of a test that failed: end what names the folder, unmount what is below it.
pub(crate) fn force(folder: &Path, namespace: Option<&str>, bridge: &str, table: &str) {
    for _ in 0..3 {
        let processes = processes_naming(folder);
        for process in &processes {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        for point in mounts_below(folder) {
            let _ = nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
        if processes.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    for device in devices(namespace, bridge) {
        let _ = run(command_in(namespace, "ip").args(["link", "delete", &device]), b"");
    }
    let tables = run(command_in(namespace, "nft").args(["list", "tables"]), b"").stdout;
    for line in tables.lines() {
        // "table inet NAME"
        let words: Vec<&str> = line.split(' ').collect();
        if words.len() == 3 && words[2] == table {
            let _ = run(command_in(namespace, "nft").args(["delete", "table", words[1], words[2]]), b"");
        }
    }
}
