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

/// For people: what the API server said, without the shape it came in; or why there is no answer, and the remedy.
pub fn told(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return if status.message.is_empty() {
            format!("{} ({})", status.reason, status.code)
        } else {
            status.message.clone()
        };
    }
    // The innermost says what happened; those around it only that something did.
    let (mut deepest, mut io): (&dyn std::error::Error, Option<&std::io::Error>) = (error, None);
    while let Some(source) = deepest.source() {
        io = source.downcast_ref().or(io);
        deepest = source;
    }
    match io {
        Some(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
            "nothing listens at its address: the node does not run; start it: kedge start".to_owned()
        }
        _ => format!("{deepest}; kedge status shows how the node is"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Connect(#[source] io::Error);

    #[test]
    fn people_are_told_the_cause_and_the_remedy() {
        let status: kube::core::Status = serde_json::from_value(serde_json::json!({
            "status": "Failure", "message": "StorageClass is invalid", "reason": "Invalid", "code": 422,
        }))
        .unwrap();
        assert_eq!(told(&kube::Error::Api(status.boxed())), "StorageClass is invalid");
        let refused = Connect(io::Error::from(io::ErrorKind::ConnectionRefused));
        let text = told(&kube::Error::Service(Box::new(refused)));
        assert!(text.ends_with("the node does not run; start it: kedge start"), "{text}");
        let other = Connect(io::Error::other("no route"));
        assert!(told(&kube::Error::Service(Box::new(other))).starts_with("no route; kedge status"));
    }
}
