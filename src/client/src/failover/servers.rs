//! The API servers a node knows of: kept on disk, ordered by preference, those that failed a moment ago
//! last.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use kedge_base::{Order as _, read_optional, write_atomic};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::Error;

/// A server that failed is left alone for so long, doubled with every failure.
const REST: Duration = Duration::from_secs(2);
const LONGEST_REST: Duration = Duration::from_secs(120);

/// The list, shared by its clones.
#[derive(Clone, Debug)]
pub struct Servers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Makes the preference of this node another one than that of the next.
    seed: String,
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order of preference.
    known: Vec<Authority>,
    failures: HashMap<Authority, Failure>,
    generation: u64,
}

#[derive(Debug, Clone, Copy)]
struct Failure {
    rest: Duration,
    until: Instant,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    servers: Vec<String>,
}

impl Servers {
    /// Start with what is in `file` and, when that is missing or of no use, with `first`: the addresses
    /// that joining gave, as `host:port`. `node_name` spreads nodes over servers.
    ///
    /// # Errors
    /// When there is no usable address, or the file cannot be read.
    pub fn open(node_name: &str, file: Option<PathBuf>, first: &[String]) -> Result<Self, Error> {
        let failed = |path: &PathBuf, error: std::io::Error| {
            Error::other(format!("cannot read the API servers' addresses in {}: {error}", path.display()))
        };
        let bytes = match &file {
            Some(path) => read_optional(path).map_err(|error| failed(path, error))?,
            None => None,
        };
        let kept = bytes.and_then(|bytes| serde_json::from_slice::<OnDisk>(&bytes).ok());
        let kept = parse(&kept.map(|kept| kept.servers).unwrap_or_default());
        let known = if kept.is_empty() { parse(first) } else { kept };
        if known.is_empty() {
            return Err(Error::other(format!("no API server's address is known (given: {first:?})")));
        }
        let servers = Self(Arc::new(Shared { seed: node_name.to_owned(), file, state: Mutex::default() }));
        servers.0.state.lock().known = servers.by_preference(known);
        Ok(servers)
    }

    /// `host:port` of all, the preferred one first.
    pub fn addresses(&self) -> Vec<String> {
        self.0.state.lock().known.iter().map(Authority::to_string).collect()
    }

    /// These are the servers now; nothing happens when none of the addresses is usable.
    ///
    /// # Errors
    /// When the file cannot be written; the new addresses are used all the same.
    pub fn update(&self, addresses: &[String]) -> Result<(), Error> {
        let known = self.by_preference(parse(addresses));
        {
            let mut state = self.0.state.lock();
            if known.is_empty() || known == state.known {
                return Ok(());
            }
            state.failures.retain(|server, _| known.contains(server));
            state.known.clone_from(&known);
        }
        tracing::info!(servers = ?known, "API servers");
        self.persist()
    }

    /// Write the addresses to the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn persist(&self) -> Result<(), Error> {
        let Some(path) = &self.0.file else { return Ok(()) };
        let mut servers = self.addresses();
        servers.sort();
        let text =
            serde_json::to_vec(&OnDisk { servers }).map_err(|error| Error::other(error.to_string()))?;
        write_atomic(path, &text, 0o600)
            .map_err(|error| Error::other(format!("cannot write {}: {error}", path.display())))
    }

    /// Use new connections for new requests: this node's certificate was renewed.
    pub fn reconnect(&self) {
        self.0.state.lock().generation += 1;
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.state.lock().generation
    }

    /// Whom to try, in this order: those that failed lately come last, the longest ago first.
    pub(super) fn in_order(&self) -> Vec<Authority> {
        let state = self.0.state.lock();
        let now = Instant::now();
        let resting = |server: &Authority| {
            state.failures.get(server).map(|failure| failure.until).filter(|until| *until > now)
        };
        let mut servers = state.known.clone();
        // Stable: preference decides among equals.
        servers.order_by_key(resting);
        servers
    }

    pub(super) fn failed(&self, server: &Authority) {
        let mut state = self.0.state.lock();
        let now = Instant::now();
        let rest = match state.failures.get(server) {
            // Requests that were under way fail together: that is one failure.
            Some(failure) if failure.until > now => return,
            Some(failure) => (failure.rest * 2).min(LONGEST_REST),
            None => REST,
        };
        state.failures.insert(server.clone(), Failure { rest, until: now + rest });
    }

    pub(super) fn works(&self, server: &Authority) {
        self.0.state.lock().failures.remove(server);
    }

    /// Rendezvous hashing: every node has its own order, and a server that comes or goes moves only the
    /// nodes that prefer it.
    fn by_preference(&self, mut servers: Vec<Authority>) -> Vec<Authority> {
        let weight = |server: &Authority| {
            let mut hasher = DefaultHasher::new();
            (&self.0.seed, server.as_str()).hash(&mut hasher);
            (hasher.finish(), server.as_str().to_owned())
        };
        servers.sort_by_cached_key(weight);
        servers.dedup();
        servers
    }
}

fn parse(addresses: &[String]) -> Vec<Authority> {
    let parsed = addresses.iter().filter_map(|address| {
        let authority: Authority = address.parse().ok()?;
        authority.port_u16().filter(|port| *port != 0)?;
        (!authority.host().is_empty() && !address.contains('@')).then_some(authority)
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(numbers: &[u8]) -> Vec<String> {
        numbers.iter().map(|number| format!("192.0.2.{number}:6443")).collect()
    }

    #[test]
    fn nodes_spread_and_few_move() {
        let first = |node: u32, numbers: &[u8]| {
            Servers::open(&format!("node-{node}"), None, &list(numbers)).unwrap().addresses()[0].clone()
        };
        let mut counts = HashMap::new();
        let mut moved = 0;
        for node in 0..300 {
            let before = first(node, &[1, 2, 3]);
            assert_eq!(before, first(node, &[3, 1, 2]), "the order of the list does not matter");
            let after = first(node, &[1, 2, 3, 4]);
            assert!(after == before || after == list(&[4])[0], "nodes move to the new server only");
            moved += u32::from(after != before);
            *counts.entry(before).or_insert(0) += 1;
        }
        assert!(counts.len() == 3 && counts.values().all(|count| (60..=140).contains(count)), "{counts:?}");
        assert!((40..=110).contains(&moved), "{moved}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_failed_comes_last_for_a_while() {
        let servers = Servers::open("n1", None, &list(&[1, 2, 3])).unwrap();
        let order = servers.in_order();
        servers.failed(&order[0]);
        assert_eq!(servers.in_order(), [order[1].clone(), order[2].clone(), order[0].clone()]);
        tokio::time::advance(REST / 2).await;
        servers.failed(&order[1]);
        assert_eq!(servers.in_order(), [order[2].clone(), order[0].clone(), order[1].clone()]);
        tokio::time::advance(REST).await;
        assert_eq!(servers.in_order(), order);
        servers.failed(&order[0]);
        tokio::time::advance(REST).await;
        assert_eq!(servers.in_order()[0], order[1], "it rests longer every time");
        servers.works(&order[0]);
        assert_eq!(servers.in_order(), order);
    }

    #[test]
    fn the_list_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("servers.json");
        let servers = Servers::open("n1", Some(file.clone()), &list(&[1])).unwrap();
        servers.update(&list(&[2, 3])).unwrap();
        let again = Servers::open("n1", Some(file.clone()), &list(&[1])).unwrap();
        assert_eq!(again.addresses(), servers.addresses());
        again.update(&["not an address".into()]).unwrap();
        assert_eq!(again.addresses().len(), 2, "a list of nothing is not believed");
        std::fs::write(&file, "cut sh").unwrap();
        assert_eq!(Servers::open("n1", Some(file), &list(&[1])).unwrap().addresses(), list(&[1]));
        assert!(Servers::open("n1", None, &["x".into()]).is_err());
        let v6 = Servers::open("n1", None, &["[2001:db8::1]:6443".into()]).unwrap();
        assert_eq!(v6.addresses(), ["[2001:db8::1]:6443"]);
    }
}
