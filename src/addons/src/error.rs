//! What can go wrong, in words that say what to do.

use std::path::PathBuf;

use crate::inventory::ObjectRef;

/// Errors of this crate. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no addon {name:?}{hint}; kedge addons list shows them")]
    Unknown { name: String, hint: String },
    #[error("the addon {0} is not enabled")]
    NotEnabled(String),
    #[error("addon {addon}: {what}")]
    Argument { addon: String, what: String },
    #[error("the addon {addon} runs on {offered} only, and the cluster's nodes are {found}")]
    Architecture { addon: String, found: String, offered: String },
    #[error("{addon} is a part of Kedge, always on, and takes no arguments here. {notes}")]
    BuiltIn { addon: String, notes: String },
    #[error("{addon} is a part of Kedge and cannot be disabled")]
    AlwaysOn { addon: String },
    /// About a repository of addons.
    #[error("{0}")]
    Repository(String),
    #[error("the addon {addon} needs {requirement}; run: kedge enable {requirement} {addon}")]
    Requires { addon: String, requirement: String },
    #[error("the addon {addon} is needed by {users}; disable that first")]
    InUse { addon: String, users: String },
    #[error("{place} is not a valid addon: {what}")]
    Definition { place: String, what: String },
    #[error("{file} is not a valid manifest: {what}")]
    Manifest { file: String, what: String },
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the API server refused {object}")]
    Refused {
        object: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// Found out by a dry run.
    #[error(
        "{object} cannot be changed into what is asked for, and nothing was changed: {what}; call it with the \
         values that it has, or disable the addon first"
    )]
    Unchangeable { object: String, what: String },
    /// Found out by a dry run.
    #[error(
        "{object} was there before and is managed by others, and nothing was changed: {what}; remove it first if \
         the addon is to take its place"
    )]
    Foreign { object: String, what: String },
    #[error("the API server knows no kind {kind} of {api_version}, which {object} is")]
    UnknownKind { object: String, kind: String, api_version: String },
    #[error("ask the API server")]
    Api(#[source] Box<kube::Error>),
    /// Everything was applied and stays: the addon may still become healthy.
    #[error(
        "the addon {addon} was applied but is not healthy after {seconds} s: {reason}; {see}, then enable it \
         again, or run: kedge disable {addon}"
    )]
    Unhealthy { addon: String, seconds: u64, reason: String, see: String },
    #[error("the inventory of addon {addon} cannot be read: {what}; enable the addon again")]
    Inventory { addon: String, what: String },
}

impl Error {
    pub(crate) fn refused(object: &ObjectRef, source: kube::Error) -> Self {
        Self::Refused { object: object.to_string(), source: Box::new(source) }
    }

    /// What helps: the end of what this error's text says.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let text = self.to_string();
        let begin = match self {
            Self::Unknown { .. } => "kedge addons list",
            Self::Requires { .. } => "run: ",
            Self::InUse { .. } => "disable that first",
            Self::Unchangeable { .. } => "call it with",
            Self::Foreign { .. } => "remove it first",
            Self::Unhealthy { see, .. } => see,
            Self::Inventory { .. } => "enable the addon again",
            _ => return None,
        };
        text.rfind(&format!("; {begin}")).map(|at| text[at + 2..].to_owned())
    }

    /// One line for people: what the API server itself said, without the shape it came in.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Refused { source, .. } | Self::Api(source) => {
                format!("{self}: {}", kedge_client::told(source))
            }
            Self::Read { source, .. } => format!("{self}: {source}"),
            other => other.to_string(),
        }
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}
