//! The first process of every pod: holds the namespaces and buries orphans. It starts no runtime and
//! no thread and sleeps until a signal comes.

use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Sleep until SIGTERM or SIGINT; reap every child that ends meanwhile.
pub(crate) fn run() -> ExitCode {
    crate::memory::small_pages();
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    // Blocked signals wait for sigwait instead of doing what they do by default (for process 1: nothing).
    if signals.thread_block().is_err() {
        return ExitCode::from(1);
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => return ExitCode::SUCCESS,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return ExitCode::from(1),
        }
    }
}

/// Several children may have ended behind one signal.
fn reap() {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
