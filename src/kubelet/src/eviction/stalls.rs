//! The kernel's word that programs wait for memory: a trigger of `/proc/pressure/memory` (the kernel's
//! `Documentation/accounting/psi.rst`). It costs nothing while nobody waits. Upstream has a like one for cgroup
//! v1 alone and leaves it off; a node of Kedge looks at once, and otherwise every ten seconds.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A tenth of two seconds, in microseconds: programs are slow, the machine still answers. In a container the
/// kernel takes multiples of two seconds only.
const TRIGGER: &str = "some 200000 2000000\0";

/// Without the kernel's support it never says anything.
pub(super) struct Stalls(Option<AsyncFd<File>>);

impl Stalls {
    /// Needs a tokio runtime.
    pub(super) fn watch() -> Self {
        let open = || {
            let flags = nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags)
                .open("/proc/pressure/memory")?;
            file.write_all(TRIGGER.as_bytes())?;
            #[expect(deprecated, reason = "its successor is unsafe; the descriptor is owned")]
            let fd = AsyncFd::with_interest(file, Interest::PRIORITY);
            fd
        };
        match open() {
            Ok(fd) => Self(Some(fd)),
            Err(error) => {
                tracing::debug!(%error, "the kernel tells of no memory stalls, the node looks every ten seconds");
                Self(None)
            }
        }
    }

    /// Programs wait for memory.
    pub(super) async fn next(&mut self) {
        if let Some(fd) = &self.0 {
            match fd.ready(Interest::PRIORITY).await {
                Ok(mut ready) => {
                    ready.clear_ready();
                    return;
                }
                Err(error) => tracing::debug!(%error, "the kernel tells of memory stalls no more"),
            }
            self.0 = None;
        }
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_takes_the_trigger() {
        // Some kernels have no such file, and it may be root's alone.
        let there = OpenOptions::new().write(true).open("/proc/pressure/memory").is_ok();
        assert_eq!(Stalls::watch().0.is_some(), there);
    }
}
