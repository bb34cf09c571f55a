//! What fuzz/ calls: every decoder of this crate, with what has to hold of it.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft::eraftpb::ConfState;

use crate::backup::Part;
use crate::command::{self, CommandOp};
use crate::membership;
use crate::state::{self, Meta};
use crate::types::{Check, Condition, Entry, Op, Txn, Value};

pub use crate::transport::fuzz::{message, message_seeds};
pub use crate::wal::fuzz::{log, log_seeds};

/// A file for one run, gone when it ends.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let name = format!("kedge-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a folder");
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A transaction in the log.
pub fn transaction(data: &[u8]) {
    let Ok(decoded) = command::decode(data) else { return };
    let conditions = decoded.conditions.iter().map(|&(key, check)| Condition { key: key.into(), check });
    let ops = decoded.ops.iter().map(|op| match op {
        CommandOp::Put { key, splice, bytes } => Op::Put {
            key: (*key).into(),
            value: Value { bytes: Bytes::copy_from_slice(bytes), splice: *splice },
        },
        CommandOp::Delete { key } => Op::Delete { key: (*key).into() },
    });
    let txn = Txn { conditions: conditions.collect(), ops: ops.collect(), lazy: false };
    assert_eq!(command::encode(&txn), data);
    assert_eq!(command::encoded_len(&txn), data.len());
}

/// Transactions to begin with.
pub fn transaction_seeds() -> Vec<Vec<u8>> {
    let value =
        Value { bytes: Bytes::from_static(br#"{"metadata":{"resourceVersion":""}}"#), splice: Some(32) };
    let all = Txn {
        conditions: vec![
            Condition { key: "configmaps/default/a".into(), check: Check::Absent },
            Condition { key: "configmaps/default/b".into(), check: Check::At(7) },
            Condition { key: "c".into(), check: Check::Any },
        ],
        ops: vec![
            Op::Put { key: "configmaps/default/a".into(), value },
            Op::Put { key: "x".into(), value: Value { bytes: Bytes::new(), splice: None } },
            Op::Delete { key: "configmaps/default/b".into() },
        ],
        lazy: false,
    };
    vec![command::encode(&all), command::encode(&Txn::default())]
}

/// An object, the summary of the state and a member's record, as the engine and snapshots hold them. The
/// checksums are made right: damage is not the point here.
pub fn stored(data: &[u8]) {
    let sealed = |hash: u32| [data, &hash.to_le_bytes()[..]].concat();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(b"key");
    hasher.update(data);
    let object = sealed(hasher.finalize());
    if let Some((entry, _)) = state::decode_object("key", &object) {
        assert_eq!(state::encode_object("key", &entry), object);
    }
    if let Some(meta) = Meta::decode(&sealed(crc32fast::hash(data))) {
        assert_eq!(Meta::decode(&meta.encode()), Some(meta));
    }
    if let Some(member) = membership::decode(data) {
        assert_eq!(membership::decode(&membership::encode(&member)), Some(member));
    }
    let _ = state::decode_object("key", data);
    let _ = Meta::decode(data);
}

fn meta() -> Meta {
    let members = ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() };
    Meta { applied: 5, applied_term: 2, revision: 9, count: 1, sum: 3, members }
}

fn entry() -> Entry {
    Entry { bytes: Bytes::from_static(b"{\"kind\":\"Pod\"}"), splice: Some(3), created: 4, modified: 5 }
}

/// Stored things to begin with.
pub fn stored_seeds() -> Vec<Vec<u8>> {
    let member = membership::Member {
        id: 7,
        name: "node1".into(),
        address: "192.0.2.1:25000".into(),
        failure_domain: Some("a".into()),
    };
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() - 4);
        bytes
    };
    vec![cut(state::encode_object("key", &entry())), cut(meta().encode()), membership::encode(&member)]
}

/// A snapshot file. With an odd first byte the rest is what the file holds, uncompressed and with checksums;
/// else the file itself with its last checksum made right.
pub fn snapshot(data: &[u8]) {
    use std::io::Write as _;
    let Some((kind, data)) = data.split_first() else { return };
    let mut file = if kind % 2 == 1 {
        let mut file = b"KEDGESNP\x01\0\0\0".to_vec();
        let meta = meta().encode();
        file.extend((meta.len() as u32).to_le_bytes());
        file.extend(meta);
        let mut stream = flate2::write::ZlibEncoder::new(file, flate2::Compression::fast());
        stream.write_all(data).expect("in memory");
        stream.finish().expect("in memory")
    } else {
        data.to_vec()
    };
    let crc = crc32fast::hash(&file);
    file.extend(crc.to_le_bytes());
    let scratch = Scratch::new();
    let path = scratch.path().join("s.snap");
    fs::write(&path, &file).expect("written");
    let part = Part::whole(&path).expect("there");
    let _ = part.read(&mut |_, _| {});
}

/// Snapshots to begin with.
pub fn snapshot_seeds() -> Vec<Vec<u8>> {
    let mut stream = vec![1];
    for part in [b"key".to_vec(), state::encode_object("key", &entry())] {
        stream.extend((part.len() as u32).to_le_bytes());
        stream.extend(part);
    }
    stream.extend([0; 4]);
    let mut file = b"\0KEDGESNP\x01\0\0\0".to_vec();
    let meta = meta().encode();
    file.extend((meta.len() as u32).to_le_bytes());
    file.extend(meta);
    // zlib's stored block of four zeros.
    file.extend([0x78, 0x01, 1, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 4, 0, 1]);
    vec![stream, file]
}
