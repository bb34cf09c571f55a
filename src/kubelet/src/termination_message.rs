//! What containers that ended wrote for their successors: the file at `terminationMessagePath`, or the end of the
//! log (upstream `kuberuntime_container.go`, `getTerminationMessage`).
//!
//! The file is the container's: it may be of any size or kind, and lie on a file system that hangs.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use crate::core::Core;
use crate::runtime::{Running, RuntimePod, keys};
use crate::{logs, pod, volumes};

/// The longest message of a container.
const LIMIT: u64 = 4096;
const LOG_LINES: usize = 80;
const LOG_LIMIT: usize = 2048;

/// By the container's id.
pub(crate) type Messages = HashMap<String, String>;

/// The messages of all containers of the pod that ended.
pub(crate) async fn read(core: &Core, target: &Pod, real: &RuntimePod) -> Messages {
    let dir = core.config.pod_log_dir(pod::namespace(target), pod::name(target), &pod::uid(target));
    let ended: Vec<(Running, PathBuf)> = real
        .containers
        .iter()
        .filter(|container| container.is_exited())
        .map(|container| {
            let log = dir.join(&container.name).join(format!("{}.log", container.restart_count));
            (container.clone(), log)
        })
        .collect();
    if ended.is_empty() {
        return Messages::new();
    }
    let read = volumes::blocking(move || {
        let messages = ended.into_iter().map(|(container, log)| (container.id, of(&container.status, &log)));
        Ok(messages.collect())
    });
    read.await.unwrap_or_default()
}

fn of(status: &cri::ContainerStatus, log: &Path) -> String {
    let annotation = |key: &str| status.annotations.get(key).map(String::as_str).unwrap_or_default();
    let at = annotation(keys::MESSAGE_PATH);
    let file = status.mounts.iter().find(|mount| mount.container_path == at);
    let mut text = file.and_then(|mount| end_of(Path::new(&mount.host_path)).ok()).unwrap_or_default();
    let from_log = annotation(keys::MESSAGE_POLICY) == "FallbackToLogsOnError";
    if text.is_empty() && from_log && status.exit_code != 0 {
        text = logs::last_lines(log, LOG_LINES, LOG_LIMIT);
    }
    if text.is_empty() { status.message.clone() } else { text }
}

/// The last bytes of a file, of what is a file only.
fn end_of(path: &Path) -> std::io::Result<String> {
    // Nobody writes to the other end of a pipe.
    let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOFOLLOW;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Ok(String::new());
    }
    file.seek(SeekFrom::Start(found.len().saturating_sub(LIMIT)))?;
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_file_of_any_size_only_the_end_is_read() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("0.message");
        std::fs::write(&path, "why").expect("written");
        assert_eq!(end_of(&path).expect("read"), "why");
        // Sparse: larger than the machine's memory, and no disk is used.
        let mut file = OpenOptions::new().write(true).open(&path).expect("opened");
        file.set_len(1 << 40).expect("made longer");
        file.seek(SeekFrom::End(0)).expect("at the end");
        std::io::Write::write_all(&mut file, b"the end").expect("written");
        let text = end_of(&path).expect("read");
        assert_eq!(text.len(), usize::try_from(LIMIT).expect("small"));
        assert!(text.ends_with("the end"));
    }

    #[test]
    fn what_is_no_file_has_no_message() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).expect("a link");
        assert_eq!(end_of(&pipe).expect("not waited for"), "");
        assert_eq!(end_of(dir.path()).unwrap_or_default(), "");
        assert_eq!(end_of(Path::new("/dev/zero")).expect("looked"), "");
        assert!(end_of(&dir.path().join("link")).is_err());
    }
}
