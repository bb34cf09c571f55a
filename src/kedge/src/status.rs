//! What a running node says about itself, and how to ask it: HTTP on a unix socket in the run folder.
//!
//! `GET /status` answers a [`Status`] as JSON. The types are shared by the node that answers and the
//! commands that ask.

use std::collections::BTreeMap;
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
    /// The cluster's enabled addons with their health; the command asks the API server for them.
    #[serde(default)]
    pub(crate) addons: Vec<kedge_addons::Listed>,
    /// What else is wrong, by the file that has to be mended.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) problems: BTreeMap<String, String>,
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
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Datastore {
    /// This node's part: `leader`, `voter`, `standby`, `joining`, `leaving`, `alone`; empty on a worker.
    pub(crate) role: String,
    /// The revision that was applied last.
    pub(crate) revision: u64,
    /// The loss of any one voter does no harm.
    pub(crate) high_availability: bool,
    /// Without a leader nothing can be written.
    pub(crate) has_leader: bool,
    /// Why the group is not yet what its members ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waits: Option<String>,
    /// What is wrong with this node's disk, as far as the datastore notices it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk: Option<String>,
    /// This node was taken off the cluster.
    pub(crate) removed: bool,
    /// Nodes that hold a copy.
    pub(crate) members: Vec<Member>,
    /// The newest snapshot in this node's own folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_snapshot: Option<crate::snapshot::Listed>,
}

/// A node that holds a copy of the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) address: String,
    /// `voter`, `standby`, `joining`, `leaving`.
    pub(crate) role: String,
    pub(crate) leader: bool,
    /// Heard of lately; only the leader knows.
    pub(crate) healthy: Option<bool>,
}

impl Datastore {
    fn to_short(&self) -> String {
        let list = |role: &str| {
            let names: Vec<String> = self
                .members
                .iter()
                .filter(|member| member.role == role)
                .map(|member| {
                    let sick = if member.healthy == Some(false) { " (does not answer)" } else { "" };
                    format!("{}{sick}", member.name)
                })
                .collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let leader = self.members.iter().find(|member| member.leader);
        let mut text = format!("high-availability: {}\n", if self.high_availability { "yes" } else { "no" });
        text.push_str(&format!("  datastore voters: {}\n", list("voter")));
        text.push_str(&format!("  datastore standby: {}\n", list("standby")));
        if self.members.iter().any(|member| member.role == "joining") {
            text.push_str(&format!("  datastore joining: {}\n", list("joining")));
        }
        let leader = match (leader, self.has_leader) {
            (Some(leader), _) => leader.name.clone(),
            (None, true) => "this node".to_owned(),
            (None, false) => "none (nothing can be written)".to_owned(),
        };
        text.push_str(&format!("  leader: {leader}, revision {}\n", self.revision));
        if let Some(last) = &self.last_snapshot {
            let time = last.time.strftime("%Y-%m-%dT%H:%M:%SZ");
            text.push_str(&format!("  last snapshot: {time}, {}\n", crate::snapshot::size(last.bytes)));
        }
        if let Some(waits) = &self.waits {
            text.push_str(&format!("  waits: {waits}\n"));
        }
        if let Some(disk) = &self.disk {
            text.push_str(&format!("  {disk}\n"));
        }
        if self.removed {
            text.push_str(
                "  this node was removed from the cluster; run kedge leave --force, then join again\n",
            );
        }
        text
    }
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
            addons: Vec::new(),
            problems: BTreeMap::new(),
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
            text.push_str(&self.datastore.to_short());
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
        if !self.addons.is_empty() {
            text.push_str("addons:\n");
        }
        let width = self.addons.iter().map(|addon| addon.name.len()).max().unwrap_or(0);
        for addon in &self.addons {
            let state = crate::commands::addons::word(addon.state);
            text.push_str(&format!("  {:width$}  {state}\n", addon.name));
            for reason in &addon.reasons {
                text.push_str(&format!("  {:width$}  {reason}\n", ""));
            }
        }
        for (what, problem) in &self.problems {
            text.push_str(&format!("problem: {what}: {problem}\n"));
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
            datastore: Datastore { role: "leader".into(), revision: 7, ..Datastore::default() },
            addons: vec![kedge_addons::Listed {
                name: "dns".into(),
                version: "1".into(),
                description: String::new(),
                state: kedge_addons::State::Unhealthy,
                arguments: std::collections::BTreeMap::new(),
                reasons: vec!["Deployment kube-system/kube-dns: 0 of 1 pods are ready".into()],
            }],
            problems: [("a.yaml".to_owned(), "no kind".to_owned())].into(),
        }
    }

    #[test]
    fn names_the_failing_part_its_error_and_the_remedy() {
        let text = status().to_short();
        for part in [
            "dns  unhealthy",
            "0 of 1 pods",
            "degraded",
            "containerd  not ready",
            "error: exit status 1",
            "remedy: see the log",
            "problem: a.yaml: no kind",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert_eq!(status().waits_for().as_deref(), Some("containerd: exit status 1"));
    }
}
