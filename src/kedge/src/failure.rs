//! How a command ends when it does not do what was asked.

use std::fmt::{self, Display};
use std::process::ExitCode;

use crate::config::Faults;
use crate::control::CallError;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The call or the configuration is wrong: exit code 2.
    Usage(anyhow::Error),
    /// The work failed: exit code 1.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Failure {
    /// A call that is wrong, and the right one.
    pub(crate) fn usage(what: impl Display, remedy: impl Display) -> Self {
        Self::Usage(Remedied::new(what, remedy).into())
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::from(1),
        }
    }

    /// The same for a caller that knows no exit codes.
    pub(crate) fn into_error(self) -> anyhow::Error {
        let (Self::Usage(error) | Self::Failed(error)) = self;
        error
    }
}

/// An error, or the context of one, of which is known what helps against it.
#[derive(Debug)]
pub(crate) struct Remedied {
    /// For people, with the remedy in it.
    text: String,
    remedy: String,
}

impl Remedied {
    pub(crate) fn new(what: impl Display, remedy: impl Display) -> Self {
        Self { text: format!("{what}; {remedy}"), remedy: remedy.to_string() }
    }

    /// With a text of many lines that names its remedies itself.
    pub(crate) fn told_in(text: String, remedy: String) -> Self {
        Self { text, remedy }
    }
}

impl Display for Remedied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Remedied {}

/// What helps, where whoever made the error said it.
pub(crate) fn remedy(error: &anyhow::Error) -> Option<String> {
    if let Some(known) = error.downcast_ref::<Remedied>() {
        return Some(known.remedy.clone());
    }
    if let Some(remedy) = error.downcast_ref::<CallError>().and_then(CallError::remedy) {
        return Some(remedy.to_owned());
    }
    if let Some(faults) = error.downcast_ref::<Faults>() {
        return faults.remedy();
    }
    error.chain().find_map(|cause| {
        let from_kube = cause.downcast_ref::<kube::Error>();
        let boxed = cause.downcast_ref::<Box<kube::Error>>().map(Box::as_ref);
        let of_kube = from_kube.or(boxed).and_then(of_no_answer);
        of_kube
            .or_else(|| cause.downcast_ref().and_then(kedge_addons::Error::remedy))
            .or_else(|| cause.downcast_ref().and_then(kedge_cluster::Error::remedy))
            .or_else(|| cause.downcast_ref().and_then(kedge_cluster::Refusal::remedy))
    })
}

/// The ends of what [`kedge_client::told`] says when the API server has said nothing.
const OF_NO_ANSWER: [&str; 2] = ["start it: kedge start", "kedge status shows how the node is"];

fn of_no_answer(error: &kube::Error) -> Option<String> {
    let told = kedge_client::told(error);
    let known = OF_NO_ANSWER.into_iter().find(|remedy| told.ends_with(&format!("; {remedy}")));
    known.filter(|_| !matches!(error, kube::Error::Api(_))).map(str::to_owned)
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
    fn a_remedy_is_what_was_said_to_be_one() {
        let plain = anyhow::anyhow!("an unknown name; there are: none").context("look");
        assert_eq!(remedy(&plain), None);
        let own = anyhow::Error::new(Remedied::new("no cluster", "run kedge install")).context("read x");
        assert_eq!(text(&own), "read x: no cluster; run kedge install");
        assert_eq!(remedy(&own).as_deref(), Some("run kedge install"));
        let as_context =
            anyhow::anyhow!("not found").context(Remedied::new("no cluster", "run kedge install"));
        assert_eq!(text(&as_context), "no cluster; run kedge install: not found");
        assert_eq!(remedy(&as_context).as_deref(), Some("run kedge install"));
        let call = anyhow::Error::new(CallError::NotRunning).context("stop");
        assert!(text(&call).ends_with(&format!("; {}", remedy(&call).unwrap())));
        let needs = kedge_addons::Error::Requires { addon: "a".into(), requirement: "b".into() };
        let needs = anyhow::Error::new(needs).context("enable a");
        assert_eq!(remedy(&needs).as_deref(), Some("run: kedge enable b a"));
        assert!(text(&needs).ends_with("; run: kedge enable b a"));
        let held = anyhow::Error::new(kedge_cluster::Error::Holds(vec!["Pod a".into()])).context("join");
        assert_eq!(remedy(&held).as_deref(), Some("save what you need and repeat with --force"));
        let refusal = kedge_cluster::Error::from(kedge_cluster::Refusal::NotAMember);
        assert_eq!(remedy(&refusal.into()).as_deref(), Some("run kedge leave and join again"));
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        for (cause, words) in [(refused, "kedge start"), (std::io::Error::other("cut"), "kedge status")] {
            let silent = anyhow::Error::new(kube::Error::Service(Box::new(cause)));
            assert!(remedy(&silent).is_some_and(|remedy| remedy.contains(words)), "{silent:#}");
        }
    }

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
