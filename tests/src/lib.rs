//! The fixture of the whole-binary tests: a real Kedge node with its own folders, ports, networks and
//! names, driven by the real kubectl, removed completely at the end.
//!
//! Nothing here is a stand-in: no mock of containerd, of kubectl or of the API. The environment names the
//! programs: `KEDGE_BINARY` (needed), `KUBECTL` and `HELM` (otherwise from PATH), `DOCKER_REGISTRY` (likewise),
//! `FLANNELD` (for the test that is ignored without it); and folders: `KEDGE_TEST_DIR` (where folders are made,
//! `/var/tmp`), `KEDGE_TEST_RECORDS` (where a running node's flags are noted for who cleans up after a test that
//! was killed); `KEDGE_TEST_SKIPPED` a file for what was left out.

#![allow(clippy::print_stderr, reason = "a test's story is what it prints")]

mod clock;
mod cluster;
mod disk;
pub mod history;
mod http;
mod https;
mod image;
mod leftovers;
mod load;
mod network;
mod registry;
mod run;
pub mod trio;
mod web;

pub use clock::Clock;
pub use cluster::Cluster;
pub use disk::Disk;
pub use http::{Proxy, Response};
pub use https::Server;
pub use image::{BUSYBOX, docker_archive, oci_archive};
pub use leftovers::{Process, processes_naming};
pub use load::{Amount, Load};
pub use network::{Families, Network};
pub use registry::Registry;
pub use run::{Out, kedge_binary, kubectl_program, run};
pub use web::web;

use std::io::Write as _;
use std::time::{Duration, Instant};

/// Longer than anything takes on a slow, busy board; only a broken node reaches it.
pub const LIMIT: Duration = Duration::from_secs(300);

/// Prints the name of a test's step, so that a failure shows where it happened.
pub fn step(name: &str) {
    eprintln!("--- {name}");
}

/// Says that a part of a test was left out. Such a test passes; `./test.sh` gathers in the file that
/// `KEDGE_TEST_SKIPPED` names what was not tested, and lists it at its end.
///
/// # Panics
/// When that file cannot be written.
pub fn skipped(what: &str, why: &str) {
    eprintln!("SKIPPED: {what} ({why})");
    if let Some(file) = std::env::var_os("KEDGE_TEST_SKIPPED") {
        let mut file =
            std::fs::OpenOptions::new().append(true).create(true).open(file).expect("open the list");
        // One write: other tests write there too.
        file.write_all(format!("{what}\t{why}\n").as_bytes()).expect("write the list");
    }
}

/// Asks until there is an answer. For what `kubectl wait` cannot wait for.
///
/// # Panics
/// When there is none within [`LIMIT`].
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "gave up waiting for: {what}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Asserts that a text has every part, and shows the text when it has not.
///
/// # Panics
/// When a part is missing.
#[track_caller]
pub fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}
