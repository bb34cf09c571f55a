//! What a running node says about itself, and how to ask it: HTTP on a unix socket in the run folder.
//!
//! `GET /status` answers a [`Status`] as JSON. The types are shared by the node that answers and the
//! commands that ask.

mod remedies;
mod text;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::control::{self, CallError};

pub(crate) use remedies::remedy_for;

/// What `status` and `start` say of a node that is none of its cluster's any more.
pub(crate) const REMOVED: &str =
    "this node was removed from the cluster; run kedge leave to make it a single node, then join again";

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
#[serde(rename_all = "camelCase")]
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
    /// How pods reach pods of other nodes: `vxlan`, `host-gw`, or `none`, when that network is the user's;
    /// empty while it is not known yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) pod_network: String,
    /// The API server's own addresses; the datastore's leader has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) virtual_addresses: Vec<String>,
    /// The store.
    #[serde(default)]
    pub(crate) datastore: Datastore,
    /// The cluster's enabled addons with their health; the command asks the API server for them.
    #[serde(default)]
    pub(crate) addons: Vec<kedge_addons::Listed>,
    /// What the cluster says: is this node still in it? Nothing before it was asked, and on a founder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) in_cluster: Option<bool>,
    /// What else is wrong, by the file that has to be mended.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) problems: BTreeMap<String, String>,
    /// What works, but will bite.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<Warning>,
    /// Why the process ended by itself, when none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_failure: Option<LastFailure>,
}

/// Something that the operator should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Warning {
    /// A short name that does not change: `disk slow`, `clock`, `datastore`.
    pub(crate) name: String,
    pub(crate) message: String,
    pub(crate) remedy: String,
}

/// The last words of a process that ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastFailure {
    pub(crate) time: jiff::Timestamp,
    /// With its causes.
    pub(crate) error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

impl LastFailure {
    /// Keep it for `status` and `inspect`; it goes with the next good start or a reboot.
    pub(crate) fn record(error: &anyhow::Error, config: &Config) -> io::Result<()> {
        let error = crate::failure::text(error);
        let failure = Self { time: jiff::Timestamp::now(), remedy: remedy_for("process", &error), error };
        std::fs::create_dir_all(&config.run_dir)?;
        kedge_base::write_atomic(
            &config.last_failure_file(),
            &serde_json::to_vec(&failure).map_err(io::Error::other)?,
            0o600,
        )
    }
}

/// Why the node's process ended by itself the last time, when it did: in its own words, or that it was
/// killed (its pid file is still there).
pub(crate) fn last_failure(config: &Config) -> Option<LastFailure> {
    if let Ok(Some(bytes)) = kedge_base::read_optional(&config.last_failure_file())
        && let Ok(failure) = serde_json::from_slice(&bytes)
    {
        return Some(failure);
    }
    let modified = std::fs::metadata(config.pid_file()).ok()?.modified().ok()?;
    if crate::process::Process::recorded(&config.pid_file()).ok().flatten().is_some() {
        return None;
    }
    Some(LastFailure {
        time: jiff::Timestamp::try_from(modified).unwrap_or_default(),
        error: "the process was killed, by hand or because memory ran out (its time is that of its start)"
            .into(),
        remedy: Some("look for \"Killed process\" in dmesg; start it with kedge start".into()),
    })
}

/// One part of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    /// Grows with each election.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) term: u64,
    /// What the objects take, keys included, in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) bytes: u64,
    /// How much they may take; none on a worker.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) quota_bytes: u64,
    /// Why the group is not yet what its members ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waits: Option<String>,
    /// This node was taken off the cluster.
    pub(crate) removed: bool,
    /// Nodes that hold a copy.
    pub(crate) members: Vec<Member>,
    /// The newest snapshot in this node's own folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_snapshot: Option<crate::snapshot::Listed>,
    /// How long a write to the log takes until it is on the disk, as a moving average, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sync_micros: Option<u64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
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

impl Status {
    /// What is true of a node whose process does not run.
    pub(crate) fn stopped(node: &str) -> Self {
        Self {
            state: State::Stopped,
            node: node.into(),
            version: kedge_base::git_version(),
            components: Vec::new(),
            addresses: Vec::new(),
            pod_network: String::new(),
            virtual_addresses: Vec::new(),
            datastore: Datastore::default(),
            addons: Vec::new(),
            in_cluster: None,
            problems: BTreeMap::new(),
            warnings: Vec::new(),
            last_failure: None,
        }
    }

    /// The cluster does without this node: nothing here will work again before it joins anew.
    pub(crate) fn was_removed(&self) -> bool {
        self.datastore.removed || self.in_cluster == Some(false)
    }

    /// Is the only thing that this node waits for a pod network of the user's?
    pub(crate) fn lacks_network(&self) -> bool {
        self.pod_network == "none"
            && self.state != State::Ready
            && self.components.iter().filter(|part| !part.ready).all(|part| {
                part.name == "kubelet"
                    && part.last_error.as_deref().is_some_and(|error| error.contains("NetworkPluginNotReady"))
            })
    }

    /// Whether what may be wrong with the machine is behind it: the datastore is open, the API server listens,
    /// containerd runs. In the order of a node's start containerd is the last of these.
    pub(crate) fn serves(&self) -> bool {
        self.state != State::Stopped
            && self.components.iter().any(|part| part.name == "containerd" && part.ready)
    }

    /// Whether a part of it says what it lacks. One that starts may do so for a moment, before it has a leader.
    pub(crate) fn complains(&self) -> bool {
        self.components.iter().any(|part| !part.ready && part.last_error.is_some())
    }

    /// Ready, or would be with the pod network that the user has yet to bring.
    pub(crate) fn is_up(&self) -> bool {
        self.state == State::Ready || self.lacks_network()
    }

    /// The same in words.
    pub(crate) fn how_it_is_up(&self) -> &'static str {
        if self.lacks_network() { "waits for a pod network of yours" } else { "is Ready" }
    }

    /// The first part that is not ready, in words.
    pub(crate) fn waits_for(&self) -> Option<String> {
        let component = self.components.iter().find(|component| !component.ready)?;
        Some(match &component.last_error {
            Some(error) => format!("{}: {error}", component.name),
            None => component.name.clone(),
        })
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
        Err(refused) => Err(io::Error::other(refused)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn status() -> Status {
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
            pod_network: "vxlan".into(),
            virtual_addresses: vec!["192.0.2.9".into()],
            datastore: Datastore { role: "leader".into(), revision: 7, ..Datastore::default() },
            addons: vec![kedge_addons::Listed {
                name: "dns".into(),
                version: "1".into(),
                description: String::new(),
                state: kedge_addons::State::Unhealthy,
                arguments: std::collections::BTreeMap::new(),
                reasons: vec!["Deployment kube-system/kube-dns: 0 of 1 pods are ready".into()],
                remedy: Some("see the pod".into()),
            }],
            in_cluster: None,
            problems: [("a.yaml".to_owned(), "no kind".to_owned())].into(),
            warnings: vec![Warning {
                name: "disk slow".into(),
                message: "a write takes 300 ms".into(),
                remedy: "use another disk".into(),
            }],
            last_failure: None,
        }
    }

    #[test]
    fn the_last_words_of_a_process_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut given = crate::config::Settings::default();
        given.insert("run-dir", dir.path().join("run").display().to_string());
        let config = Config::load(Some(Path::new("/nonexistent")), &given).unwrap();
        assert_eq!(last_failure(&config), None);
        let error = anyhow::anyhow!("No space left on device").context("open the datastore");
        LastFailure::record(&error, &config).unwrap();
        let last = last_failure(&config).unwrap();
        assert_eq!(last.error, "open the datastore: No space left on device");
        assert!(last.remedy.unwrap().contains("df -h"));
        std::fs::remove_file(config.last_failure_file()).unwrap();
        // A pid file without a process: killed.
        std::fs::write(config.pid_file(), "999999999\n1\n").unwrap();
        assert!(last_failure(&config).unwrap().error.contains("killed"));
    }

    #[test]
    fn a_node_without_a_pod_network_is_up_and_not_ready() {
        let waiting = |pod_network: &str, part: &str, error: &str| Status {
            pod_network: pod_network.into(),
            components: vec![Component {
                name: part.into(),
                ready: false,
                last_error: Some(error.into()),
                remedy: None,
            }],
            ..status()
        };
        let lacks = "container runtime network not ready: NetworkPluginNotReady message: none";
        assert_eq!(status().waits_for().as_deref(), Some("containerd: exit status 1"));
        for (status, up) in [
            (waiting("none", "kubelet", lacks), true),
            (waiting("vxlan", "kubelet", lacks), false),
            (waiting("none", "kubelet", "no disk"), false),
            (waiting("none", "containerd", lacks), false),
            (Status { state: State::Ready, ..status() }, true),
            (status(), false),
        ] {
            assert_eq!(status.is_up(), up, "{status:?}");
        }
    }
}
