//! Why a control-plane node refuses another node's request. These travel: each is its own variant on the
//! wire, so that the node that asked can say the same thing, and scripts can tell them apart.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Role;

/// The answer no. Nothing was changed on either side, except where a variant says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Refusal {
    /// No such token was made, or it was revoked, or it is long gone.
    #[error(
        "this token is unknown to the cluster: it was mistyped, revoked or belongs to another cluster; \
         run kedge add-node for a new one"
    )]
    UnknownToken,
    /// Its time is over.
    #[error("this token expired at {expired}; run kedge add-node for a new one")]
    TokenExpired {
        /// The end of its life.
        expired: Timestamp,
    },
    /// One-time, and used by another node.
    #[error(
        "this token was already used, by node {by:?}; run kedge add-node for a new one \
         (--reusable makes one for several nodes)"
    )]
    TokenUsed {
        /// The name of the node that used it.
        by: String,
    },
    /// It is for other kinds of nodes.
    #[error("this token does not allow to join as {role}, only as {}", list(.allowed))]
    TokenRole {
        /// What was asked for.
        role: Role,
        /// What the token allows.
        allowed: Vec<Role>,
    },
    /// Too many wrong attempts from this source, or from all together.
    #[error("too many failed attempts; try again in {retry_after_seconds} s")]
    TooManyAttempts {
        /// When to try again.
        retry_after_seconds: u64,
    },
    /// Certificates and tokens need clocks that agree.
    #[error(
        "the clocks are {} s apart, at most {limit_seconds} s are allowed: it is {joiner} on this node and \
         {cluster} in the cluster; set the clock (for instance with timedatectl or chrony) and join again",
        apart(.joiner, .cluster)
    )]
    ClocksApart {
        /// The time on the node that asked.
        joiner: Timestamp,
        /// The time on the node that answered.
        cluster: Timestamp,
        /// How far apart they may be.
        limit_seconds: u64,
    },
    /// Nodes of one cluster run the same minor version.
    #[error(
        "this node runs {joiner} and the cluster runs {cluster}; the minor versions must be the same: install \
         the cluster's version here, or upgrade the cluster first"
    )]
    VersionsApart {
        /// The version of the node that asked.
        joiner: String,
        /// The version of the node that answered.
        cluster: String,
    },
    /// Another node has the name.
    #[error(
        "the cluster already has a node named {name:?} with another key; choose another name, or, if that node \
         is gone for good, run kedge remove-node {name} on a control-plane node"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Another node has the address.
    #[error(
        "the cluster already has a node at {address}: {by:?}; give this node another address, or, if that node \
         is gone for good, run kedge remove-node {by} on a control-plane node"
    )]
    AddressTaken {
        /// Host and port.
        address: String,
        /// The other node's name.
        by: String,
    },
    /// The node's key was taken off the cluster.
    #[error("this node ({name}) was removed from the cluster on {since}; run kedge leave and join again")]
    Removed {
        /// Its name then.
        name: String,
        /// When.
        since: Timestamp,
    },
    /// Its key is valid, but the cluster has no record of it.
    #[error("this node is not a member of the cluster; run kedge leave and join again")]
    NotAMember,
    /// No certificate, or one of another kind.
    #[error("this needs a node's certificate: {message}")]
    Unauthenticated {
        /// What was shown in its place.
        message: String,
    },
    /// The certificate does not allow it.
    #[error("{message}")]
    Forbidden {
        /// What is not allowed.
        message: String,
    },
    /// `remove-node` found no such node.
    #[error("the cluster has no node with the name, id or address {wanted:?}; its nodes are {}", known.join(", "))]
    NoSuchNode {
        /// What was asked for.
        wanted: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// It would harm the cluster.
    #[error("refused: {message}")]
    Unsafe {
        /// What would happen, and what to do.
        message: String,
    },
    /// The request makes no sense.
    #[error("the request is not valid: {message}")]
    Invalid {
        /// What is wrong with it.
        message: String,
    },
    /// The cluster can not decide now (no quorum, stopping).
    #[error("the cluster cannot answer now: {message}; try again")]
    Unavailable {
        /// Why.
        message: String,
    },
}

impl Refusal {
    /// What helps: the end of what this refusal's text says.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let begin = match self {
            Self::UnknownToken | Self::TokenExpired { .. } | Self::TokenUsed { .. } => "run kedge add-node",
            Self::TooManyAttempts { .. } => "try again in",
            Self::ClocksApart { .. } => "set the clock",
            Self::NameTaken { .. } => "choose another name",
            Self::AddressTaken { .. } => "give this node another address",
            Self::Removed { .. } | Self::NotAMember => "run kedge leave",
            Self::Unavailable { .. } => "try again",
            _ => return None,
        };
        ending(&self.to_string(), begin)
    }

    /// Was it a wrong guess, to be counted against the source?
    pub(crate) fn is_guess(&self) -> bool {
        matches!(
            self,
            Self::UnknownToken
                | Self::TokenExpired { .. }
                | Self::TokenUsed { .. }
                | Self::TokenRole { .. }
                | Self::Invalid { .. }
        )
    }

    /// The HTTP status that goes with it.
    pub(crate) fn status(&self) -> http::StatusCode {
        use http::StatusCode as Code;
        match self {
            Self::UnknownToken
            | Self::TokenExpired { .. }
            | Self::TokenUsed { .. }
            | Self::Unauthenticated { .. } => Code::UNAUTHORIZED,
            Self::TokenRole { .. } | Self::Forbidden { .. } | Self::Removed { .. } | Self::NotAMember => {
                Code::FORBIDDEN
            }
            Self::TooManyAttempts { .. } => Code::TOO_MANY_REQUESTS,
            Self::NoSuchNode { .. } => Code::NOT_FOUND,
            Self::ClocksApart { .. }
            | Self::VersionsApart { .. }
            | Self::NameTaken { .. }
            | Self::AddressTaken { .. }
            | Self::Unsafe { .. } => Code::CONFLICT,
            Self::Invalid { .. } => Code::BAD_REQUEST,
            Self::Unavailable { .. } => Code::SERVICE_UNAVAILABLE,
        }
    }
}

/// What stands behind the semicolon, when it begins like this.
pub(crate) fn ending(text: &str, begin: &str) -> Option<String> {
    text.rfind(&format!("; {begin}")).map(|at| text[at + 2..].to_owned())
}

fn list(roles: &[Role]) -> String {
    roles.iter().map(Role::to_string).collect::<Vec<_>>().join(" or ")
}

fn apart(one: &Timestamp, other: &Timestamp) -> u64 {
    one.as_second().abs_diff(other.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_travel_by_name() {
        let refusal = Refusal::ClocksApart {
            joiner: Timestamp::from_second(1_000).unwrap(),
            cluster: Timestamp::from_second(1_800_000_000).unwrap(),
            limit_seconds: 300,
        };
        let text = serde_json::to_string(&refusal).unwrap();
        assert!(text.starts_with(r#"{"reason":"clocksApart","joiner":"#), "{text}");
        assert!(text.contains("limitSeconds"), "{text}");
        assert_eq!(serde_json::from_str::<Refusal>(&text).unwrap(), refusal);
        let shown = refusal.to_string();
        assert!(shown.contains("1799999000 s apart") && shown.contains("1970-01-01T00:16:40Z"), "{shown}");
        assert!(shown.contains("2027-01-15"), "{shown}");
        let remedy = refusal.remedy().unwrap();
        assert!(remedy.starts_with("set the clock") && shown.ends_with(&remedy), "{remedy}");
    }
}
