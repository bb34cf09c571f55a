//! containerd's configuration file, version 2 as containerd 1.6 and 1.7 read it.

use std::path::Path;

use super::{Found, Settings, runtimes};

/// What the machine allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The process may not lower OOM scores (no CAP_SYS_RESOURCE, as in many containers).
    pub restrict_oom_score_adj: bool,
    /// overlayfs works below the root folder; else plain copies are used.
    pub overlayfs: bool,
    /// Runtimes beside runc.
    pub runtimes: Vec<Found>,
}

/// Looks at the machine. `root` is containerd's root folder and must exist.
pub fn detect(root: &Path) -> Detected {
    Detected {
        restrict_oom_score_adj: !may_lower_oom_score(),
        overlayfs: overlayfs_works(root),
        runtimes: runtimes::look(&std::env::var_os("PATH").unwrap_or_default()),
    }
}

/// CAP_SYS_RESOURCE is bit 24 of the effective capabilities.
fn may_lower_oom_score() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    has_sys_resource(&status)
}

fn has_sys_resource(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits & (1 << 24) != 0)
}

/// A trial mount: some file systems (overlayfs itself among them) cannot be an upper layer.
fn overlayfs_works(root: &Path) -> bool {
    let trial = root.join(".overlay-trial");
    let dirs = ["lower", "upper", "work", "merged"].map(|name| trial.join(name));
    let made = dirs.iter().all(|dir| std::fs::create_dir_all(dir).is_ok());
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        dirs[0].display(),
        dirs[1].display(),
        dirs[2].display()
    );
    let flags = nix::mount::MsFlags::empty();
    let works = made
        && nix::mount::mount(Some("overlay"), &dirs[3], Some("overlay"), flags, Some(options.as_str()))
            .is_ok();
    if works {
        let _ = nix::mount::umount2(&dirs[3], nix::mount::MntFlags::MNT_DETACH);
    }
    let _ = std::fs::remove_dir_all(&trial);
    works
}

/// A TOML string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// The text of the configuration file.
pub fn render(settings: &Settings, detected: &Detected) -> String {
    let snapshotter = if detected.overlayfs { "overlayfs" } else { "native" };
    format!(
        r#"# Written by kedge at every start; changes are lost.
version = 2
root = {root}
state = {state}
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = {socket}

[ttrpc]
  address = {ttrpc}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {pause}
  stream_server_address = {stream}
  stream_server_port = "0"
  enable_tls_streaming = false
  restrict_oom_score_adj = {restrict}
  max_container_log_line_size = 16384
  disable_tcp_service = true
  # Each time it walks the files of all containers; the default is every 10 seconds.
  stats_collect_period = 60

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{snapshotter}"
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
{runtimes}
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = {cni_bin}
  conf_dir = {cni_conf}

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = {registry}
"#,
        root = path(&settings.root),
        state = path(&settings.state),
        socket = path(&settings.socket()),
        ttrpc = path(&settings.state.join("containerd.sock.ttrpc")),
        pause = quoted(&settings.pause_image),
        stream = quoted(&settings.stream_address.to_string()),
        restrict = detected.restrict_oom_score_adj,
        cni_bin = path(&settings.cni_bin_dir),
        cni_conf = path(&settings.cni_conf_dir),
        registry = path(&settings.registry_dir),
        runtimes = detected.runtimes.iter().map(runtime).collect::<String>(),
    )
}

/// The lines of one more runtime.
fn runtime(found: &Found) -> String {
    const PLUGIN: &str = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes";
    let (handler, kind) = (found.handler, found.kind);
    let mut text = format!("\n[{PLUGIN}.{handler}]\n  runtime_type = \"{kind}\"\n");
    if let Some(program) = &found.program {
        text.push_str(&format!(
            "\n[{PLUGIN}.{handler}.options]\n  BinaryName = {}\n  SystemdCgroup = false\n",
            path(program)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities() {
        assert!(has_sys_resource("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_sys_resource("CapEff:\t00000000a80425fb\n"));
        assert!(!has_sys_resource(""));
    }

    #[test]
    fn the_file_says_what_was_detected() {
        let settings = Settings {
            binary: "/usr/bin/containerd".into(),
            root: "/var/lib/x".into(),
            state: "/run/x".into(),
            cni_bin_dir: "/usr/lib/cni".into(),
            cni_conf_dir: "/etc/x/net.d".into(),
            registry_dir: "/etc/x/certs.d".into(),
            pause_image: "kedge.local/pause:1".into(),
            stream_address: "127.0.0.1".parse().expect("an address"),
        };
        let text = render(
            &settings,
            &Detected {
                restrict_oom_score_adj: true,
                overlayfs: false,
                runtimes: vec![
                    Found {
                        handler: "crun",
                        kind: "io.containerd.runc.v2",
                        program: Some("/opt/crun".into()),
                    },
                    Found { handler: "kata", kind: "io.containerd.kata.v2", program: None },
                ],
            },
        );
        for line in [
            "restrict_oom_score_adj = true",
            "snapshotter = \"native\"",
            "address = \"/run/x/containerd.sock\"",
            "sandbox_image = \"kedge.local/pause:1\"",
            "stats_collect_period = 60",
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun]\n  runtime_type = \"io.containerd.runc.v2\"\n",
            "  BinaryName = \"/opt/crun\"\n",
            "runtime_type = \"io.containerd.kata.v2\"\n\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
