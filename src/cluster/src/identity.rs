//! Who a node is: its key. The id of a node is the beginning of its key's hash, so it cannot be chosen, and
//! a certificate that names an id proves that its holder has that key. Pure.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::issue::alternative_names;

/// Common names of node certificates begin so; no other signer may hand out such a name.
pub(crate) const NODE_PREFIX: &str = "kedge:node:";
const CONTROL_PLANE: &str = "kedge:control-plane";
const WORKERS: &str = "kedge:workers";
const NAME_BEGIN: &str = "member-";
const NAME_END: &str = ".kedge.internal";

/// A node's id: the first 64 bits of SHA-256 over the SubjectPublicKeyInfo of its key. Control-plane nodes
/// have it as their member id in the replicated store. In text: 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NodeId(u64);

impl NodeId {
    /// An id from its number; 0 is never one.
    pub const fn new(id: u64) -> Self {
        Self(if id == 0 { 1 } else { id })
    }

    /// The id of a key.
    pub fn of_public_key(subject_public_key_info: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, subject_public_key_info);
        let mut first = [0_u8; 8];
        first.copy_from_slice(&digest.as_ref()[..8]);
        Self::new(u64::from_be_bytes(first))
    }

    /// The number, for the store's membership.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The DNS name in the node's certificate that connections to this node are verified against.
    pub fn server_name(self) -> String {
        format!("{NAME_BEGIN}{self}{NAME_END}")
    }

    fn of_server_name(name: &str) -> Option<Self> {
        name.strip_prefix(NAME_BEGIN)?.strip_suffix(NAME_END)?.parse().ok()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valid = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(id) if valid && id != 0 => Ok(Self(id)),
            _ => Err(format!("{text:?} is not a node id: 16 hexadecimal digits")),
        }
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for NodeId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What a node does in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Holds the data and answers API requests; runs pods as well.
    ControlPlane,
    /// Runs pods.
    Worker,
}

impl Role {
    pub(crate) fn organization(self) -> &'static str {
        match self {
            Self::ControlPlane => CONTROL_PLANE,
            Self::Worker => WORKERS,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ControlPlane => "control-plane",
            Self::Worker => "worker",
        })
    }
}

/// The id and role that go into a node's own certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) id: NodeId,
    pub(crate) role: Role,
}

/// Who is at the other end of a connection on the cluster port, by its certificate. The listener puts it
/// into every request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The node's id.
    pub id: NodeId,
    /// The node's name.
    pub name: String,
    /// What it was admitted as.
    pub role: Role,
}

impl PeerIdentity {
    /// Read a node certificate that was verified against the cluster's authority. `None` for every other
    /// certificate (a kubelet's, an administrator's), and when the id is not that of the certificate's key.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let subject = parsed.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.strip_prefix(NODE_PREFIX)?.to_owned();
        let role = match subject.iter_organization().next()?.as_str().ok()? {
            CONTROL_PLANE => Role::ControlPlane,
            WORKERS => Role::Worker,
            _ => return None,
        };
        let id = alternative_names(&parsed).iter().find_map(|name| NodeId::of_server_name(name))?;
        (id == NodeId::of_public_key(parsed.public_key().raw)).then_some(Self { id, name, role })
    }
}

/// Does a subject's part claim to be a node's? Only joining makes such certificates.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with("kedge:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_sixteen_digits() {
        let id = NodeId::new(0xab);
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!("00000000000000ab".parse(), Ok(id));
        assert_eq!(NodeId::of_server_name(&id.server_name()), Some(id));
        for wrong in ["", "ab", "0000000000000000", "+0000000000000ab", "00000000000000ag"] {
            assert!(wrong.parse::<NodeId>().is_err(), "{wrong}");
        }
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"00000000000000ab\"");
    }
}
