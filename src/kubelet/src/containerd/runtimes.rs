//! Container runtimes beside runc that are installed: each becomes a handler that a RuntimeClass may name.
//! What lies in PATH is found, under the names that its maker uses; nothing is run.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A runtime of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What a RuntimeClass calls it.
    pub handler: &'static str,
    /// How containerd starts it.
    pub kind: &'static str,
    /// The program that stands in for runc, where containerd's shim for runc is used.
    pub program: Option<PathBuf>,
}

const RUNC_SHIM: &str = "io.containerd.runc.v2";

/// Handler, program, and its own shim's name for containerd (`None`: it takes runc's place).
const KNOWN: [(&str, &str, Option<&str>); 9] = [
    ("crun", "crun", None),
    ("youki", "youki", None),
    ("nvidia", "nvidia-container-runtime", None),
    ("runsc", "containerd-shim-runsc-v1", Some("io.containerd.runsc.v1")),
    ("kata", "containerd-shim-kata-v2", Some("io.containerd.kata.v2")),
    ("spin", "containerd-shim-spin-v2", Some("io.containerd.spin.v2")),
    ("slight", "containerd-shim-slight-v1", Some("io.containerd.slight.v1")),
    ("wasmtime", "containerd-shim-wasmtime-v1", Some("io.containerd.wasmtime.v1")),
    ("wasmedge", "containerd-shim-wasmedge-v1", Some("io.containerd.wasmedge.v1")),
];

/// Looks through the folders of `path`, a PATH.
pub(super) fn look(path: &OsStr) -> Vec<Found> {
    let folders: Vec<PathBuf> = std::env::split_paths(path).filter(|folder| folder.is_absolute()).collect();
    KNOWN
        .iter()
        .filter_map(|(handler, program, shim)| {
            let file = folders.iter().map(|folder| folder.join(program)).find(|file| is_program(file))?;
            let kind = shim.unwrap_or(RUNC_SHIM);
            Some(Found { handler, kind, program: shim.is_none().then_some(file) })
        })
        .collect()
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn programs_in_the_path_are_handlers() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (name, mode) in [("crun", 0o755), ("containerd-shim-kata-v2", 0o755), ("youki", 0o644)] {
            let file = dir.path().join(name);
            std::fs::write(&file, "#!/bin/sh\n").expect("written");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("a mode");
        }
        let path = std::env::join_paths([Path::new("relative"), Path::new("/nonexistent"), dir.path()]);
        let found = look(&path.expect("a PATH"));
        assert_eq!(
            found,
            [
                Found { handler: "crun", kind: RUNC_SHIM, program: Some(dir.path().join("crun")) },
                Found { handler: "kata", kind: "io.containerd.kata.v2", program: None },
            ]
        );
    }
}
