//! The one error type of this crate.

use std::io;
use std::path::PathBuf;

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
}
