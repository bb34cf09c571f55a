//! How a command ends when it does not do what was asked.

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The call or the configuration is wrong: exit code 2.
    Usage(String),
    /// The work failed: exit code 1.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Failure {
    /// The same for a caller that knows no exit codes.
    pub(crate) fn into_error(self) -> anyhow::Error {
        match self {
            Self::Usage(text) => anyhow::anyhow!(text),
            Self::Failed(error) => error,
        }
    }
}
