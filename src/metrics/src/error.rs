//! What can stop the server from starting.

/// Why the metrics API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused something or could not be reached.
    #[error("{doing}")]
    Api {
        doing: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// A file or the port.
    #[error("{doing}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    /// TLS does not take a certificate, a key or an authority.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    /// A certificate cannot be made.
    #[error("make the server's certificate")]
    Issue(#[from] rcgen::Error),
    /// Anything else; the text says what to do.
    #[error("{0}")]
    Other(String),
}

impl Error {
    pub(crate) fn api(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Api { doing, source: Box::new(source) }
    }
}
