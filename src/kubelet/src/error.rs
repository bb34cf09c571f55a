//! The error of the node agent.

/// Something the kubelet could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// containerd refused a call or could not be reached.
    #[error("{0}")]
    Runtime(#[source] Box<tonic::Status>),
    /// The API server refused a request or could not be reached.
    #[error("request to the API server")]
    Api(#[source] Box<kube::Error>),
    /// The operating system refused something; the text says what.
    #[error("{0}")]
    Io(String, #[source] std::io::Error),
    /// A container cannot be started; `reason` is what its status shows.
    #[error("{message}")]
    Container {
        /// The waiting reason, e.g. `CreateContainerConfigError`.
        reason: &'static str,
        /// The waiting message.
        message: String,
    },
    /// Pods cannot have a network yet; the runtime's reason.
    #[error("network is not ready: container runtime network not ready: {0}")]
    NetworkNotReady(String),
    /// Anything else; the text says what to do.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// An error with only a text.
    pub fn other(message: impl Into<String>) -> Self {
        Self::Other(message.into())
    }

    /// An error of the operating system, with what was tried.
    pub fn io(what: impl Into<String>, error: std::io::Error) -> Self {
        Self::Io(what.into(), error)
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::Container { reason: "CreateContainerConfigError", message: message.into() }
    }

    /// The runtime does not know the container or sandbox (any more).
    pub fn is_runtime_not_found(&self) -> bool {
        matches!(self, Self::Runtime(status) if status.code() == tonic::Code::NotFound)
    }

    /// What was asked of the runtime took longer than it may.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::Runtime(status) if status.code() == tonic::Code::DeadlineExceeded)
    }

    /// The network or the runtime is not there at the moment, and will be before long.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::NetworkNotReady(_) => true,
            Self::Runtime(status) => {
                status.code() == tonic::Code::Unavailable
                    // containerd has no code for what a network plugin says (`RunPodSandbox`).
                    || status.message().contains("failed to setup network for sandbox")
            }
            _ => false,
        }
    }

    /// The text for an event or a status: the error and its causes, without repeating a cause.
    pub fn text(&self) -> String {
        match self {
            Self::Runtime(status) => {
                format!("rpc error: code = {} desc = {}", code_name(status.code()), status.message())
            }
            Self::Api(error) => error.to_string(),
            Self::Io(what, error) => format!("{what}: {error}"),
            Self::Container { message, .. } | Self::Other(message) => message.clone(),
            Self::NetworkNotReady(_) => self.to_string(),
        }
    }

    /// The same without a code of the runtime: what upstream says of a container that does not start.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Runtime(status) => status.message().to_owned(),
            other => other.text(),
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Runtime(Box::new(status))
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// gRPC codes as Go prints them; users search for these texts.
fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::{Code, Status};

    #[test]
    fn what_passes_by_itself_is_told_by_its_type() {
        let plugin = "failed to setup network for sandbox \"x\": plugin type=\"flannel\" failed (add)";
        for (error, transient) in [
            (Error::NetworkNotReady("cni plugin not initialized".into()), true),
            (Status::unavailable("connection refused").into(), true),
            (Status::unknown(plugin).into(), true),
            // Words of users: names of images, volumes, Secrets.
            (Status::not_found("image example.invalid/network:1").into(), false),
            (Error::other("secret \"network\" not found"), false),
            (Error::config("network"), false),
        ] {
            assert_eq!(error.is_transient(), transient, "{error}");
        }
        assert!(Error::from(Status::new(Code::DeadlineExceeded, "timeout 1s exceeded")).is_timeout());
        assert!(!Error::from(Status::unknown("the program timed out")).is_timeout());
        let error = Error::from(Status::unknown("no such file"));
        assert_eq!(error.text(), "rpc error: code = Unknown desc = no such file");
        assert_eq!(error.message(), "no such file");
        let error = Error::NetworkNotReady("no plugin".into());
        assert_eq!(error.text(), "network is not ready: container runtime network not ready: no plugin");
    }
}
