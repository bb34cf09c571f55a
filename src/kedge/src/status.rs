//! What a running node says about itself, and how to ask it: HTTP on a unix socket in the run folder.
//!
//! `GET /status` answers a [`Status`] as JSON. The types are shared by the node that answers and the
//! commands that ask.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::{self, CallError};

/// The whole node in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Every component is ready and the Node object is Ready.
    Ready,
    /// Some component has not been ready yet.
    Starting,
    /// A component that was ready has failed.
    Degraded,
    /// No process answers.
    Stopped,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Degraded => "degraded",
            Self::Stopped => "stopped",
        }
    }
}

/// What `kedge status` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The node as a whole.
    pub(crate) state: State,
    /// The Node object's name.
    pub(crate) node: String,
    /// Kubernetes version and Kedge's, e.g. `v1.36.0+kedge.0.1.0`.
    pub(crate) version: String,
    /// The parts, in order of start.
    #[serde(default)]
    pub(crate) components: Vec<Component>,
    /// Addresses that the node announces.
    #[serde(default)]
    pub(crate) addresses: Vec<String>,
    /// The store.
    #[serde(default)]
    pub(crate) datastore: Datastore,
}

/// One part of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Component {
    /// For instance `store`, `apiserver`, `containerd`, `kubelet`.
    pub(crate) name: String,
    /// Does it work now?
    pub(crate) ready: bool,
    /// The last thing that went wrong, with its causes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_error: Option<String>,
    /// What the operator can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

/// The store's side of a status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Datastore {
    /// `leader`, `follower`, `standby`.
    #[serde(default)]
    pub(crate) role: String,
    /// The revision that was applied last.
    #[serde(default)]
    pub(crate) revision: u64,
    /// Nodes that hold a copy.
    #[serde(default)]
    pub(crate) members: Vec<String>,
}

impl Status {
    /// What is true of a node whose process does not run.
    pub(crate) fn stopped(node: &str) -> Self {
        Self {
            state: State::Stopped,
            node: node.into(),
            version: kedge_base::git_version(),
            components: Vec::new(),
            addresses: Vec::new(),
            datastore: Datastore::default(),
        }
    }

    /// The first part that is not ready, in words.
    pub(crate) fn waits_for(&self) -> Option<String> {
        let component = self.components.iter().find(|component| !component.ready)?;
        Some(match &component.last_error {
            Some(error) => format!("{}: {error}", component.name),
            None => component.name.clone(),
        })
    }

    /// Lines for people.
    pub(crate) fn to_short(&self) -> String {
        let mut text = format!("kedge is {} on node {} ({})\n", self.state.as_str(), self.node, self.version);
        if !self.addresses.is_empty() {
            text.push_str(&format!("addresses: {}\n", self.addresses.join(", ")));
        }
        if !self.datastore.role.is_empty() {
            text.push_str(&format!(
                "datastore: {} at revision {}, members: {}\n",
                self.datastore.role,
                self.datastore.revision,
                self.datastore.members.join(", ")
            ));
        }
        let width = self.components.iter().map(|component| component.name.len()).max().unwrap_or(0);
        for component in &self.components {
            let state = if component.ready { "ready" } else { "not ready" };
            text.push_str(&format!("  {:width$}  {state}\n", component.name));
            if let Some(error) = &component.last_error {
                text.push_str(&format!("  {:width$}  error: {error}\n", ""));
            }
            if let Some(remedy) = &component.remedy {
                text.push_str(&format!("  {:width$}  remedy: {remedy}\n", ""));
            }
        }
        text
    }
}

/// Ask the node behind `socket`. `Ok(None)`: nobody listens there.
///
/// # Errors
/// When somebody listens but does not answer properly within five seconds.
pub(crate) fn ask(socket: &Path) -> io::Result<Option<Status>> {
    match control::call(socket, "GET", "/status", &(), Duration::from_secs(5)) {
        Ok(status) => Ok(Some(status)),
        Err(CallError::NotRunning) => Ok(None),
        Err(CallError::Io(error)) => Err(error),
        Err(CallError::Refused(text)) => Err(io::Error::other(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            state: State::Degraded,
            node: "n1".into(),
            version: "v1.36.0+kedge.0.1.0".into(),
            components: vec![
                Component { name: "store".into(), ready: true, last_error: None, remedy: None },
                Component {
                    name: "containerd".into(),
                    ready: false,
                    last_error: Some("exit status 1".into()),
                    remedy: Some("see the log".into()),
                },
            ],
            addresses: vec!["192.0.2.1".into()],
            datastore: Datastore { role: "leader".into(), revision: 7, members: vec!["n1".into()] },
        }
    }

    #[test]
    fn names_the_failing_part_its_error_and_the_remedy() {
        let text = status().to_short();
        for part in ["degraded", "containerd  not ready", "error: exit status 1", "remedy: see the log"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert_eq!(status().waits_for().as_deref(), Some("containerd: exit status 1"));
    }
}
