//! The one error type of this crate.

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::Refusal;
use crate::refusal::ending;

/// Why keys or certificates could not be read, made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the PKI folder could not be read or written.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was tried: "read", "write", "create".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file is there but what it holds is of no use; nothing was overwritten.
    #[error("{} is damaged: {reason}; {remedy}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate {name:?}")]
    Issue {
        /// The certificate's file name without its ending.
        name: String,
        /// What rcgen says.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate signing request is refused.
    #[error("certificate signing request refused: {0}")]
    Request(String),
    /// A key or certificate does not suit TLS.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The authorities that client certificates are checked against are of no use.
    #[error("cannot set up the check of client certificates")]
    ClientVerifier(#[from] rustls::server::VerifierBuilderError),
    /// The system gives no random numbers.
    #[error("the system's random number generator failed")]
    Random,
    /// A worker was asked for what only control-plane nodes have.
    #[error("this node is a worker and cannot {0}; only control-plane nodes can")]
    NoAuthority(&'static str),
    /// The join string cannot be understood.
    #[error(
        "the join string is not valid: {0}; it must look like HOST:PORT/TOKEN/CA-HASH, as kedge add-node prints it"
    )]
    JoinString(String),
    /// No token with this id.
    #[error("no token has an id that begins with {0:?}; kedge token list shows them")]
    NoSuchToken(String),
    /// Several tokens, or too little to tell.
    #[error(
        "{0:?} is too short to tell tokens apart; say more of the id, 4 digits at least (kedge token list shows them)"
    )]
    TokenUnclear(String),
    /// A control-plane node said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The other side is not the cluster of the join string.
    #[error(
        "{address} does not belong to the cluster of the join string: {}, but the join string says {expected}; \
         nothing was sent to it. Run kedge add-node again and compare: somebody may be in between",
        shown(.found)
    )]
    WrongAuthority {
        /// Where the connection went.
        address: String,
        /// The hash in the join string.
        expected: String,
        /// The hash of the authority that was shown.
        found: Option<String>,
    },
    /// A certificate is not valid at this node's time.
    #[error(
        "it is {now} on this node, but the certificate of {address} is valid {}; set the clock of this node (for instance with timedatectl or chrony)",
        bounds(.not_before, .not_after)
    )]
    ClockApart {
        /// Where the connection went.
        address: String,
        /// This node's time.
        now: Timestamp,
        /// The certificate is not valid earlier.
        not_before: Option<Timestamp>,
        /// The certificate is not valid later.
        not_after: Option<Timestamp>,
    },
    /// No connection.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// Refused, timed out, no such host, and what to do about it.
        reason: String,
    },
    /// A connection was made but the exchange failed.
    #[error("the exchange with {address} failed: {reason}")]
    Exchange {
        /// Host and port.
        address: String,
        /// What happened.
        reason: String,
    },
    /// Joining is for nodes without a cluster.
    #[error("this node is already in a cluster ({cluster}); run kedge leave first. Nothing was changed")]
    AlreadyInCluster {
        /// What is known of it: its other nodes.
        cluster: String,
    },
    /// Joining replaces what runs here.
    #[error(
        "joining replaces this node's state, and what was made in it would be lost: {}; save what you need and repeat with --force. Nothing was changed",
        shorten(.0)
    )]
    Holds(Vec<String>),
    /// No control-plane node could be asked.
    #[error("no control-plane node answers: {0}")]
    NoControlPlane(String),
    /// The API server refuses or does not sign a certificate.
    #[error("the certificate was not signed: {0}")]
    NotSigned(String),
}

impl Error {
    /// What helps: the end of what this error's text says.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let begin = match self {
            Self::Refused(refusal) => return refusal.remedy(),
            Self::Damaged { remedy, .. } => remedy,
            Self::JoinString(_) => "it must look like",
            Self::NoSuchToken(_) => "kedge token list",
            Self::WrongAuthority { .. } => return Some("run kedge add-node again and compare".to_owned()),
            Self::ClockApart { .. } => "set the clock",
            Self::AlreadyInCluster { .. } => "run kedge leave first",
            Self::Holds(_) => "save what you need",
            _ => return None,
        };
        ending(&self.to_string(), begin)
            .map(|remedy| remedy.trim_end_matches(". Nothing was changed").to_owned())
    }
}

fn bounds(not_before: &Option<Timestamp>, not_after: &Option<Timestamp>) -> String {
    match (not_before, not_after) {
        (Some(time), _) => format!("from {time} on"),
        (None, Some(time)) => format!("until {time}"),
        (None, None) => "at another time".into(),
    }
}

fn shown(found: &Option<String>) -> String {
    match found {
        Some(hash) => format!("its authority's hash is {hash}"),
        None => "it shows no authority (is this the cluster port of a Kedge node?)".into(),
    }
}

fn shorten(names: &[String]) -> String {
    let (shown, more) = names.split_at(names.len().min(5));
    let text = shown.join(", ");
    if more.is_empty() { text } else { format!("{text} and {} more", more.len()) }
}
