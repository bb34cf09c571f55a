//! The crate's one error type.

use std::io;
use std::path::PathBuf;

use crate::nft::TransactionError;

/// Why something about the node's network could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder.
    #[error("{what} {}", .path.display())]
    File {
        /// What was tried, e.g. "write".
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A netlink socket or request.
    #[error("{what}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A change of nftables; the text names the object and the kernel's reason.
    #[error("{0}")]
    Nftables(String),
    /// No usable address on this machine.
    #[error(
        "no network interface with an IP address that other machines could reach; give an interface an address \
         (for example: ip address add 192.0.2.10/24 dev eth0) or name the address to use in the configuration"
    )]
    NoAddress,
    /// An address that the DNS server cannot listen on.
    #[error("listen on {address} by {protocol}{remedy}")]
    Bind {
        /// The address.
        address: std::net::SocketAddr,
        /// UDP or TCP.
        protocol: &'static str,
        /// What to do, when that is known; begins with a semicolon.
        remedy: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl From<TransactionError> for Error {
    fn from(error: TransactionError) -> Self {
        Self::Nftables(kedge_base::Chain(&error).to_string())
    }
}

impl Error {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { what, path: path.into(), source }
    }

    pub(crate) fn netlink(what: &'static str, source: io::Error) -> Self {
        Self::Netlink { what, source }
    }
}
