//! How members are written down. The record itself, two claims that keep name and address unique, and a
//! mark:
//!
//! ```text
//! kedge.member/ID          the member, protobuf
//! kedge.member.name/NAME   the id, 16 hex digits
//! kedge.member.address/A   the same
//! kedge.member.leaving/ID  empty: it is about to be removed and gets no vote any more
//! ```

use prost::Message;

use super::Member;
use crate::types::Key;

/// All keys of the store's own begin like this; observers never see them.
pub(crate) const PREFIX: &str = "kedge.member";
const RECORD: &str = "kedge.member/";
const LEAVING: &str = "kedge.member.leaving/";

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    address: String,
    #[prost(string, optional, tag = "4")]
    failure_domain: Option<String>,
}

/// Whether the key belongs to the store itself.
pub(crate) fn is_reserved(key: &str) -> bool {
    key.starts_with(PREFIX)
}

pub(crate) fn key(id: u64) -> Key {
    format!("{RECORD}{id:016x}").into()
}

pub(crate) fn name_key(name: &str) -> Key {
    format!("{PREFIX}.name/{name}").into()
}

pub(crate) fn address_key(address: &str) -> Key {
    format!("{PREFIX}.address/{address}").into()
}

/// The id in the key of a record; `None` for every other key.
pub(crate) fn parse_key(key: &str) -> Option<u64> {
    u64::from_str_radix(key.strip_prefix(RECORD)?, 16).ok()
}

pub(crate) fn leaving_key(id: u64) -> Key {
    format!("{LEAVING}{id:016x}").into()
}

/// The id in the key of a mark; `None` for every other key.
pub(crate) fn parse_leaving(key: &str) -> Option<u64> {
    u64::from_str_radix(key.strip_prefix(LEAVING)?, 16).ok()
}

pub(crate) fn encode(member: &Member) -> Vec<u8> {
    Record {
        id: member.id,
        name: member.name.clone(),
        address: member.address.clone(),
        failure_domain: member.failure_domain.clone(),
    }
    .encode_to_vec()
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Member> {
    let Record { id, name, address, failure_domain } = Record::decode(bytes).ok()?;
    (id != 0).then_some(Member { id, name, address, failure_domain })
}
