//! How a transaction looks inside a Raft entry. All numbers are little-endian.
//!
//! ```text
//! command   = version u8 (1), n u32, n * condition, m u32, m * op
//! condition = check u8 (0 absent, 1 at, 2 any), [revision u64], key
//! op        = 0 u8, key, splice u32 (all ones: none), len u32, bytes   |   1 u8, key
//! key       = len u32, UTF-8 bytes
//! ```

use crate::types::{Check, Op, Txn};

const VERSION: u8 = 1;
const NO_SPLICE: u32 = u32::MAX;

/// Why bytes are not a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("unknown command version {0}")]
    Version(u8),
    #[error("command ends early")]
    Short,
    #[error("{0} bytes follow the command")]
    Trailing(usize),
    #[error("unknown tag {0}")]
    Tag(u8),
    #[error("a key is empty or not UTF-8")]
    Key,
    #[error("a splice offset lies outside of its value")]
    Splice,
}

/// A decoded command; it borrows from the entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Command<'a> {
    pub(crate) conditions: Vec<(&'a str, Check)>,
    pub(crate) ops: Vec<CommandOp<'a>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CommandOp<'a> {
    Put { key: &'a str, splice: Option<u32>, bytes: &'a [u8] },
    Delete { key: &'a str },
}

/// The number of bytes that [`encode`] makes; no overflow, for values are in memory.
pub(crate) fn encoded_len(txn: &Txn) -> usize {
    let conditions: usize = txn
        .conditions
        .iter()
        .map(|c| 5 + c.key.len() + if matches!(c.check, Check::At(_)) { 8 } else { 0 })
        .sum();
    let ops: usize = txn
        .ops
        .iter()
        .map(|op| match op {
            Op::Put { key, value } => 13 + key.len() + value.bytes.len(),
            Op::Delete { key } => 5 + key.len(),
        })
        .sum();
    9 + conditions + ops
}

/// The caller has checked that the whole fits into a `u32`.
pub(crate) fn encode(txn: &Txn) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded_len(txn));
    out.push(VERSION);
    put_u32(&mut out, txn.conditions.len());
    for condition in &txn.conditions {
        match condition.check {
            Check::Absent => out.push(0),
            Check::At(revision) => {
                out.push(1);
                out.extend_from_slice(&revision.to_le_bytes());
            }
            Check::Any => out.push(2),
        }
        put_bytes(&mut out, condition.key.as_bytes());
    }
    put_u32(&mut out, txn.ops.len());
    for op in &txn.ops {
        match op {
            Op::Put { key, value } => {
                out.push(0);
                put_bytes(&mut out, key.as_bytes());
                out.extend_from_slice(&value.splice.unwrap_or(NO_SPLICE).to_le_bytes());
                put_bytes(&mut out, &value.bytes);
            }
            Op::Delete { key } => {
                out.push(1);
                put_bytes(&mut out, key.as_bytes());
            }
        }
    }
    out
}

/// Never panics and never allocates more than the input's size warrants.
pub(crate) fn decode(bytes: &[u8]) -> Result<Command<'_>, DecodeError> {
    let mut input = Reader(bytes);
    match input.u8()? {
        VERSION => {}
        other => return Err(DecodeError::Version(other)),
    }
    // The smallest condition and the smallest op take 6 bytes: a count cannot promise more than that.
    let n = input.count(6)?;
    let mut conditions = Vec::with_capacity(n);
    for _ in 0..n {
        let check = match input.u8()? {
            0 => Check::Absent,
            1 => Check::At(input.u64()?),
            2 => Check::Any,
            tag => return Err(DecodeError::Tag(tag)),
        };
        conditions.push((input.key()?, check));
    }
    let m = input.count(6)?;
    let mut ops = Vec::with_capacity(m);
    for _ in 0..m {
        ops.push(match input.u8()? {
            0 => {
                let key = input.key()?;
                let splice = Some(input.u32()?).filter(|&at| at != NO_SPLICE);
                let bytes = input.bytes()?;
                if splice.is_some_and(|at| at as usize > bytes.len()) {
                    return Err(DecodeError::Splice);
                }
                CommandOp::Put { key, splice, bytes }
            }
            1 => CommandOp::Delete { key: input.key()? },
            tag => return Err(DecodeError::Tag(tag)),
        });
    }
    match input.0.len() {
        0 => Ok(Command { conditions, ops }),
        left => Err(DecodeError::Trailing(left)),
    }
}

/// Whether bytes are a well-formed command: the entry point for fuzzers.
///
/// # Errors
/// What is wrong with them.
pub fn check_encoding(bytes: &[u8]) -> Result<(), DecodeError> {
    decode(bytes).map(drop)
}

fn put_u32(out: &mut Vec<u8>, n: usize) {
    out.extend_from_slice(&(n as u32).to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Reads little-endian fields from the front of a slice.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    fn key(&mut self) -> Result<&'a str, DecodeError> {
        let key = std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Key)?;
        if key.is_empty() { Err(DecodeError::Key) } else { Ok(key) }
    }

    fn count(&mut self, smallest: usize) -> Result<usize, DecodeError> {
        let n = self.u32()? as usize;
        if n > self.0.len() / smallest { Err(DecodeError::Short) } else { Ok(n) }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Condition, Value};

    fn txn() -> impl Strategy<Value = Txn> {
        let key = "[a-zé]{1,12}";
        let check = prop_oneof![Just(Check::Absent), any::<u64>().prop_map(Check::At), Just(Check::Any)];
        let condition = (key, check).prop_map(|(key, check)| Condition { key: key.into(), check });
        let put = (key, proptest::collection::vec(any::<u8>(), 0..200), any::<Option<u32>>()).prop_map(
            |(key, bytes, splice)| {
                let splice = splice.map(|at| at % (bytes.len() as u32 + 1));
                Op::Put { key: key.into(), value: Value { bytes: Bytes::from(bytes), splice } }
            },
        );
        let delete = key.prop_map(|key| Op::Delete { key: key.into() });
        let ops = proptest::collection::vec(prop_oneof![put, delete], 0..6);
        (proptest::collection::vec(condition, 0..4), ops).prop_map(|(conditions, ops)| Txn {
            conditions,
            ops,
            lazy: false,
        })
    }

    proptest! {
        #[test]
        fn round_trip(txn in txn()) {
            let bytes = encode(&txn);
            prop_assert_eq!(bytes.len(), encoded_len(&txn));
            let command = decode(&bytes).unwrap();
            let conditions: Vec<_> = txn.conditions.iter().map(|c| (&*c.key, c.check)).collect();
            prop_assert_eq!(command.conditions, conditions);
            let ops: Vec<_> = txn.ops.iter().map(|op| match op {
                Op::Put { key, value } =>
                    CommandOp::Put { key, splice: value.splice, bytes: &value.bytes },
                Op::Delete { key } => CommandOp::Delete { key },
            }).collect();
            prop_assert_eq!(command.ops, ops);
        }

        #[test]
        fn damage_never_panics(txn in txn(), at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
            let mut bytes = encode(&txn);
            let short = cut.index(bytes.len());
            prop_assert!(decode(&bytes[..short]).is_err(), "a prefix is never a command");
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode(&bytes);
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = check_encoding(&bytes);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let table: &[(&[u8], DecodeError)] = &[
            (&[], DecodeError::Short),
            (&[9], DecodeError::Version(9)),
            (&[1, 255, 255, 255, 255], DecodeError::Short),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 7], DecodeError::Trailing(1)),
            (&[1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0xff], DecodeError::Key),
            (&[1, 0, 0, 0, 0, 1, 0, 0, 0, 4, 1, 0, 0, 0, b'a'], DecodeError::Tag(4)),
            (
                &[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, b'a', 2, 0, 0, 0, 1, 0, 0, 0, b'v'],
                DecodeError::Splice,
            ),
        ];
        for (bytes, error) in table {
            assert_eq!(decode(bytes), Err(*error), "{bytes:?}");
        }
    }
}
