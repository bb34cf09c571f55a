use std::sync::Arc;

use super::*;
use crate::transport::{Dial, Dialing};
use crate::types::{Cluster, Value};

struct NoBook;

impl Book for NoBook {
    fn wants(&self, _: &str) -> bool {
        false
    }

    fn rewrite(&self, _: &[Member], _: &BTreeMap<String, Vec<u8>>) -> Vec<Op> {
        vec![]
    }
}

struct Nowhere;

impl Dial for Nowhere {
    fn dial(&self, _: u64, _: &str) -> Dialing {
        Box::pin(async { Err(std::io::ErrorKind::HostUnreachable.into()) })
    }
}

fn config(dir: &Path, node_id: u64, bootstrap: Bootstrap) -> Config {
    let cluster = Cluster { bootstrap, ..Cluster::new(Arc::new(Nowhere)) };
    Config { node_id, cluster: Some(cluster), segment_bytes: 64 << 10, ..Config::new(dir) }
}

/// A state with a few objects, as if entry 40 of term 3 had been the last one.
fn sample(members: &[u64]) -> State {
    let mut state = State::empty(ConfState { voters: members.to_vec(), ..ConfState::default() });
    let ops = (0..30).map(|i| Op::Put {
        key: format!("key{i}").into(),
        value: Value { bytes: vec![i; 100].into(), splice: None },
    });
    let txn = command::encode(&Txn { ops: ops.collect(), ..Txn::default() });
    state.apply(&command::decode(&txn).unwrap(), &mut Vec::new());
    (state.meta.applied, state.meta.applied_term) = (40, 3);
    state
}

/// Puts a snapshot into the folder under the name of one that was received.
fn receive(paths: &Paths, state: &State) {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Sled::open(dir.path(), 1 << 20).unwrap();
    write_overlay(&mut engine, state.overlay(), &state.meta).unwrap();
    snapshot::write_received(&paths.snapshots, &engine, &state.meta).unwrap();
}

fn check(config: &Config, expected: &State) {
    let paths = Paths::new(&config.dir);
    let opened = open(config, &paths, &Arc::default()).unwrap();
    assert_eq!(opened.state.meta, expected.meta);
    assert!(opened.state.verify());
    assert_eq!((opened.log.last(), opened.log.hard_state.commit), (40, 40));
    let names: Vec<_> = fs::read_dir(&paths.snapshots).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["0000000000000028.snap"]);
}

fn join() -> Bootstrap {
    let peer = Member { id: 1, name: "a".into(), address: "h:1".into(), failure_domain: None };
    Bootstrap::Join { peers: vec![peer] }
}

#[test]
fn an_installation_is_finished_wherever_it_was_interrupted() {
    let state = sample(&[1, 9]);
    for stage in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 9, join());
        let paths = Paths::new(dir.path());
        // It had something else before.
        let mut opened = open(&config, &paths, &Arc::default()).unwrap();
        let hard_state = HardState { term: 3, vote: 1, commit: 1 };
        let entry = Entry { index: 1, term: 1, ..Entry::default() };
        opened.wal.append(Some(&hard_state), &[entry]).unwrap();
        receive(&paths, &state);
        let installing = snapshot::installing(&paths.snapshots, 40, 3);
        if stage < 3 {
            fs::rename(snapshot::received(&paths.snapshots, 40, 3), &installing).unwrap();
        }
        if (1..3).contains(&stage) {
            opened.wal.reset(40, 3, &hard_state).unwrap();
        }
        drop(opened);
        match stage {
            2 => fs::remove_dir_all(&paths.engine).unwrap(),
            3 => {
                let mut opened = open(&config, &paths, &Arc::default()).unwrap();
                assert!(
                    !snapshot::received(&paths.snapshots, 40, 3).exists(),
                    "what was not begun is dropped"
                );
                assert_eq!(opened.state.meta.applied, 0);
                receive(&paths, &state);
                drop(opened.engine);
                let (_, installed) = install(&config, &paths, &mut opened.wal, 40, 3).unwrap();
                assert_eq!(installed.meta, state.meta);
            }
            _ => {}
        }
        for _ in 0..2 {
            check(&config, &state);
        }
        let opened = open(&config, &paths, &Arc::default()).unwrap();
        assert_eq!((opened.log.hard_state.term, opened.log.hard_state.vote), (3, 1), "its vote is kept");
    }
}

#[test]
fn who_joins_begins_with_nobody_however_often() {
    let dir = tempfile::tempdir().unwrap();
    for bootstrap in [join(), join(), Bootstrap::New] {
        let config = config(dir.path(), 9, bootstrap);
        let opened = open(&config, &Paths::new(dir.path()), &Arc::default()).unwrap();
        assert!(opened.state.meta.members.voters.is_empty());
    }
    // And who has founded a group does not forget that.
    let dir = tempfile::tempdir().unwrap();
    for bootstrap in [Bootstrap::New, join()] {
        let config = config(dir.path(), 1, bootstrap);
        let opened = open(&config, &Paths::new(dir.path()), &Arc::default()).unwrap();
        assert_eq!(opened.state.meta.members.voters, [1]);
    }
}

#[test]
fn recovery_needs_something_to_recover() {
    let dir = tempfile::tempdir().unwrap();
    let empty = config(&dir.path().join("empty"), 1, Bootstrap::New);
    assert!(matches!(alone(&empty, &NoBook, &Arc::default()), Err(Error::NoState { .. })));
    let joined = config(&dir.path().join("joined"), 9, join());
    drop(open(&joined, &Paths::new(&joined.dir), &Arc::default()).unwrap());
    assert!(matches!(alone(&joined, &NoBook, &Arc::default()), Err(Error::NoState { .. })));
}
