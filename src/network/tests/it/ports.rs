//! What the portmap plugin leaves behind when pods end without it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use kedge_network::cleanup;
use serde_json::json;

use crate::world::{Namespace, in_own_namespace, ip, is_enabled, run};

const FOLDERS: [&str; 2] = ["/usr/lib/cni/portmap", "/opt/cni/bin/portmap"];

/// Ask the real plugin for a host port, as the container runtime does.
fn map_port(plugin: &str, network: &str, container: &str, port: u16, pod: &Namespace) {
    let sandbox = format!("/run/netns/{}", pod.0);
    let config = json!({
        "cniVersion": "0.4.0", "name": network, "type": "portmap", "snat": true,
        "runtimeConfig": {
            "portMappings": [{ "hostPort": port, "containerPort": 80, "protocol": "tcp" }],
        },
        "prevResult": {
            "cniVersion": "0.4.0",
            "interfaces": [{ "name": "eth0", "sandbox": sandbox }],
            "ips": [{ "version": "4", "address": "10.244.0.5/24", "interface": 0 }],
        },
    });
    let mut child = Command::new(plugin)
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", &sandbox)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/usr/lib/cni")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn port_mappings_of_dead_pods_are_removed() {
    if is_enabled() {
        in_own_namespace(async || leftovers());
    }
}

#[expect(clippy::print_stderr, reason = "a test that does nothing has to say so")]
fn leftovers() {
    let Some(plugin) = FOLDERS.into_iter().find(|path| Path::new(path).exists()) else {
        eprintln!("skipped: the CNI plugin portmap is not installed");
        return;
    };
    ip("link set lo up");
    let pod = Namespace::new("map");
    // Something of somebody else's.
    run("iptables", "-t nat -N DOCKER");
    run("iptables", "-t nat -A PREROUTING -j DOCKER");
    map_port(plugin, "kedge", "a1", 8080, &pod);
    map_port(plugin, "kedge", "a2", 8081, &pod);
    map_port(plugin, "podman", "b1", 8082, &pod);
    let chains = |rules: &str| rules.lines().filter(|line| line.starts_with("-N CNI-DN-")).count();
    let before = run("iptables", "-t nat -S");
    assert_eq!(chains(&before), 3, "{before}");

    let clean = || cleanup("kedge", "kedge0", Path::new("/nonexistent")).unwrap();
    clean();
    let after = run("iptables", "-t nat -S");
    assert_eq!(chains(&after), 1, "another network's pod keeps its port: {after}");
    assert!(after.contains("podman") && after.contains("CNI-HOSTPORT-DNAT"), "{after}");
    assert!(!after.contains("kedge"), "{after}");

    // That one goes away by itself; then ours is the last.
    let last = run("iptables-save", "-t nat");
    let rule = last.lines().find(|line| line.contains("podman")).unwrap().replacen("-A ", "-D ", 1);
    let mut restore =
        Command::new("iptables-restore").arg("--noflush").stdin(Stdio::piped()).spawn().unwrap();
    restore.stdin.take().unwrap().write_all(format!("*nat\n{rule}\nCOMMIT\n").as_bytes()).unwrap();
    assert!(restore.wait().unwrap().success());
    map_port(plugin, "kedge", "a3", 8083, &pod);
    clean();
    let end = run("iptables", "-t nat -S");
    assert!(!end.contains("CNI-"), "{end}");
    assert!(end.contains("-A PREROUTING -j DOCKER"), "{end}");
    clean();
}
