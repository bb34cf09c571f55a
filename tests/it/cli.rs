//! The command line without a node, and the background form of a node.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use kedge_tests::{Cluster, assert_has, kedge_binary, run, step};

#[test]
fn exit_codes_help_and_messages() {
    let kedge = |arguments: &[&str]| run(Command::new(kedge_binary()).args(arguments), b"");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (data, run_dir, logs, config) = (path("data"), path("run"), path("log"), path("config.yaml"));
    // A file that is named must exist.
    std::fs::write(&config, "").expect("write the configuration file");
    let own = ["--data-dir", &data, "--run-dir", &run_dir, "--log-dir", &logs, "--config", &config];

    step("help names every command");
    let help = kedge(&["--help"]).ok();
    for command in [
        "install",
        "uninstall",
        "start",
        "stop",
        "status",
        "run",
        "config",
        "kubectl",
        "images",
        "version",
        "completion",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(command)),
            "{command} is not in\n{help}"
        );
    }
    assert_has(&kedge(&["status", "--help"]).ok(), &["--wait-ready", "--timeout", "--format", "--data-dir"]);

    step("wrong usage is exit code 2");
    for arguments in [
        ["nonsense"].as_slice(),
        &["status", "--format", "xml"],
        &["run", "--port", "many"],
        &["--no-such-flag"],
    ] {
        let message = kedge(arguments).failed(2);
        assert!(message.contains("error"), "{arguments:?}: {message}");
    }

    step("versions");
    assert_has(&kedge(&["version"]).ok(), &["kedge ", "v1.36."]);
    let version = kedge(&["version", "--output", "json"]).json();
    assert!(version["gitVersion"].as_str().unwrap().contains("+kedge."), "{version}");

    step("completion for the shells");
    for shell in ["bash", "zsh", "fish"] {
        assert!(kedge(&["completion", shell]).ok().contains("kedge"));
    }
    let script = kedge(&["completion", "bash"]).ok();
    assert_eq!(run(Command::new("bash").arg("-n"), script.as_bytes()).code, 0);

    step("a node that does not run");
    let mut status = vec!["status", "--format", "json"];
    status.extend(own);
    let out = kedge(&status);
    assert_eq!(out.code, 1, "{out}");
    let status: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!(status["state"], "stopped");
    for command in [["config"].as_slice(), &["kubectl", "get", "nodes"]] {
        // Flags stand before `kubectl`: everything after it is kubectl's.
        let mut arguments = own.to_vec();
        arguments.extend(command);
        assert_has(&kedge(&arguments).failed(1), &["kedge install"]);
    }

    step("a key that nobody knows: the nearest one is named");
    fs::write(&config, "prot: 1\nnode_name: x\n").unwrap();
    let mut arguments = vec!["status"];
    arguments.extend(own);
    let message = kedge(&arguments).failed(2);
    assert_has(&message, &["prot", "did you mean \"port\"?", "did you mean \"node-name\"?", "config.yaml"]);
    fs::remove_file(&config).unwrap();

    step("a port in use: who has it and what to do, and nothing is changed");
    // Below the ports of Services, which are refused for themselves.
    let listener = (20_000..30_000).find_map(|port| TcpListener::bind(("0.0.0.0", port)).ok()).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let mut arguments = vec!["install", "--check", "--port", &port];
    arguments.extend(own);
    let message = kedge(&arguments).failed(1);
    assert_has(
        &message,
        &[
            &format!("port {port} is in use"),
            &format!("process {}", std::process::id()),
            "--port",
            "nothing was changed",
        ],
    );
    assert!(!dir.path().join("data").exists() && !dir.path().join("config.yaml").exists());

    step(
        "settings that could not work are refused alike by install, run and inspect, and nothing is changed",
    );
    for (setting, code, parts) in [
        ("cluster-dns: 10.96.0.1", 2, ["is the Service kubernetes' in", "leave it out for 10.96.0.10"]),
        ("snapshot-interval: 5", 2, ["has no unit", "write 5m, 5h or 5d"]),
        ("addons: [dns, metrcs]", 1, ["there is no addon \"metrcs\"", "did you mean metrics?"]),
        ("registries: /nonexistent.yaml", 1, ["there is no file /nonexistent.yaml", "write that file"]),
    ] {
        fs::write(&config, format!("{setting}\n")).unwrap();
        // Without its mirrors a node comes back all the same.
        let starts = setting.starts_with("registries");
        let commands = [["install", "--check"].as_slice(), &["install"], &["inspect"], &["run"]];
        for command in &commands[..commands.len() - usize::from(starts)] {
            let mut arguments = command.to_vec();
            arguments.extend(own);
            let out = kedge(&arguments);
            assert_eq!(out.code, code, "{setting} {command:?}: {out}");
            assert_has(&format!("{}{}", out.stdout, out.stderr), &parts);
        }
        assert!(!dir.path().join("data/pki").exists(), "{setting}");
    }
    let mut arguments = vec!["install", "--check", "--output", "json"];
    arguments.extend(own);
    arguments.extend(["--cluster-dns", "10.96.0.1"]);
    let out = kedge(&arguments);
    let error: serde_json::Value = serde_json::from_str(&out.stdout).expect("JSON");
    assert_eq!(error["remedy"], "leave it out for 10.96.0.10, or choose another of that range", "{out}");
    let error = kedge(&["stats", "--output", "json"]);
    let error: serde_json::Value = serde_json::from_str(&error.stdout).expect("JSON");
    assert!(error["remedy"].as_str().is_some_and(|remedy| remedy.contains("'status'")), "{error}");
    fs::remove_file(&config).unwrap();

    step("a program that is missing: the package is named");
    let mut arguments = vec!["install", "--check", "--containerd", "/nonexistent/containerd"];
    arguments.extend(own);
    assert_has(&kedge(&arguments).failed(1), &["/nonexistent/containerd", "apt-get install", "containerd"]);

    step("not root");
    let as_nobody = run(
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(readable_copy(dir.path()))
            .args(["install", "--check"])
            .args(own),
        b"",
    );
    assert_has(&as_nobody.failed(1), &["root", "sudo"]);
}

/// The binary where any user may run it.
fn readable_copy(dir: &std::path::Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let copy = dir.join("kedge");
    fs::copy(kedge_binary(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn in_the_background() {
    let mut cluster = Cluster::prepare();
    step("start returns, status waits");
    cluster.kedge(&["start"]).ok();
    cluster.wait_ready();
    let short = cluster.kedge(&["status"]).ok();
    assert_has(
        &short,
        &["kedge is ready", &cluster.node, "high-availability: no", "datastore voters:", "leader:"],
    );
    assert_has(&cluster.kedge(&["status", "--format", "yaml"]).ok(), &["state: ready"]);

    step("start again changes nothing");
    let pid = fs::read_to_string(cluster.dir().join("run/kedge.pid")).unwrap();
    cluster.kedge(&["start"]).ok();
    assert_eq!(fs::read_to_string(cluster.dir().join("run/kedge.pid")).unwrap(), pid);

    step("of several starts at once one starts it, and none fails");
    cluster.kedge(&["stop"]).ok();
    for _ in 0..5 {
        let starts: Vec<_> = (0..4).map(|_| cluster.spawn(&["start"])).collect();
        for start in starts {
            let out = start.wait_with_output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        let own = kedge_tests::processes_naming(cluster.dir());
        assert_eq!(own.iter().filter(|process| process.command.contains(" run --detach")).count(), 1);
        // It is in the middle of its start, and that is no failure.
        cluster.kedge(&["stop"]).ok();
        assert!(!cluster.dir().join("run/last-failure.json").exists());
    }
    cluster.kedge(&["start"]).ok();
    cluster.wait_ready();

    step("kedge kubectl and kedge config");
    let mut arguments: Vec<&str> = cluster.flags().iter().map(String::as_str).collect();
    arguments.extend(["kubectl", "get", "nodes", "-o", "name"]);
    let kubectl = kedge_tests::kubectl_program();
    let mut command = Command::new(kedge_binary());
    command.args(arguments);
    if let Some(folder) = kubectl.parent().filter(|folder| folder.is_absolute()) {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", folder.display()));
    }
    assert_eq!(run(&mut command, b"").ok().trim(), format!("node/{}", cluster.node));
    assert_has(&cluster.kedge(&["config"]).ok(), &["client-certificate-data", &format!(":{}", cluster.port)]);

    step("images");
    let images = cluster.kedge(&["images", "list"]).ok();
    assert_has(&images, &["kedge.dev/pause:", "kedge.dev/hello:1.0", "kedge.dev/hello:2.0"]);
    cluster.import_busybox();
    let archive = cluster.dir().join("docker.tar");
    kedge_tests::docker_archive("docker.io/library/saved:1", &archive);
    cluster.kedge(&["images", "import", &archive.display().to_string()]).ok();
    let images = cluster.kedge(&["images", "list"]).ok();
    assert_has(&images, &[kedge_tests::BUSYBOX, "docker.io/library/saved:1"]);
    fs::write(&archive, "no archive").unwrap();
    assert_has(
        &cluster.kedge(&["images", "import", &archive.display().to_string()]).failed(1),
        &["docker.tar"],
    );

    step("stop: containers stay; start: they are found again");
    cluster.kubectl(&["run", "web", "--image=kedge.dev/hello:1.0"]).ok();
    cluster.wait("pod/web", "condition=Ready");
    let before = cluster.field("pod/web", ".status.containerStatuses[0].containerID");
    cluster.kedge(&["stop"]).ok();
    assert_eq!(cluster.kedge(&["status"]).code, 1);
    let shims: Vec<_> = kedge_tests::processes_naming(cluster.dir())
        .into_iter()
        .filter(|process| process.command.contains("containerd-shim"))
        .collect();
    assert!(!shims.is_empty(), "stop ended the containers");
    cluster.kedge(&["start"]).ok();
    cluster.wait_ready();
    cluster.wait("pod/web", "condition=Ready");
    assert_eq!(cluster.field("pod/web", ".status.containerStatuses[0].containerID"), before);

    step("uninstall with a pod running leaves nothing, and once more is no fault");
    cluster.kedge(&["uninstall"]).ok();
    cluster.remove();
}
