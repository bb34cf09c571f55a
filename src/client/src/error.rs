//! The error of everything that talks to an API server.

/// A request failed, or a component could not do what an object asks for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused a request or could not be reached.
    #[error("request to the API server")]
    Api(#[source] Box<kube::Error>),
    /// Anything else; the text says what to do.
    #[error("{0}")]
    Other(String),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl Error {
    /// An error that did not come from the API server.
    pub fn other(message: impl Into<String>) -> Self {
        Self::Other(message.into())
    }

    /// The HTTP status code of the API server's answer, when it is one.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => code(error),
            Self::Other(_) => None,
        }
    }

    /// 404.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(error) if is_not_found(error))
    }

    /// 409 with reason Conflict: somebody else changed the object first.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(error) if is_conflict(error))
    }

    /// 409 with reason AlreadyExists.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Api(error) if is_already_exists(error))
    }

    /// 403.
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn has_reason(error: &kube::Error, code: u16, reason: &str) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code && status.reason == reason)
}

/// 404: there is no such object.
pub fn is_not_found(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

/// 409 with reason Conflict: somebody else changed the object first.
pub fn is_conflict(error: &kube::Error) -> bool {
    has_reason(error, 409, "Conflict")
}

/// 409 with reason AlreadyExists.
pub fn is_already_exists(error: &kube::Error) -> bool {
    has_reason(error, 409, "AlreadyExists")
}
