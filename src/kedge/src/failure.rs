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

/// The error with all that caused it, for people: what an API server answered is said in its words.
pub(crate) fn text(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let from_kube = cause.downcast_ref::<kube::Error>();
        let boxed = cause.downcast_ref::<Box<kube::Error>>().map(Box::as_ref);
        if let Some(error) = from_kube.or(boxed) {
            // Its own causes are in there.
            parts.push(kedge_client::told(error));
            break;
        }
        parts.push(cause.to_string());
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn an_answer_is_told_without_its_shape() {
        let status = || kube::core::Status {
            message: "reclaimPolicy: Forbidden".to_owned(),
            code: 422,
            ..kube::core::Status::default()
        };
        let plain = Err::<(), _>(kube::Error::Api(status().boxed())).context("enable x").unwrap_err();
        assert_eq!(text(&plain), "enable x: reclaimPolicy: Forbidden");
        let wrapped = kedge_addons::Error::from(kube::Error::Api(status().boxed()));
        let wrapped = anyhow::Error::from(wrapped).context("enable x");
        assert_eq!(text(&wrapped), "enable x: ask the API server: reclaimPolicy: Forbidden");
        let other = anyhow::anyhow!("inner").context("outer");
        assert_eq!(text(&other), format!("{other:#}"));
    }
}
