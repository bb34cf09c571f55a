//! What a running node says about itself, and how to ask it: HTTP on a unix socket in the run folder.
//!
//! `GET /status` answers a [`Status`] as JSON. The types are shared by the node that answers and the
//! commands that ask.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

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
    let Some(body) = get(socket, "/status")? else { return Ok(None) };
    serde_json::from_slice(&body).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// One HTTP/1.0 request: the answer then ends with the connection and is never chunked.
fn get(socket: &Path, path: &str) -> io::Result<Option<Vec<u8>>> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let limit = Some(Duration::from_secs(5));
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: kedge\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    body_of(&answer).map(|body| Some(body.to_vec()))
}

fn body_of(answer: &[u8]) -> io::Result<&[u8]> {
    let split = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))?;
    let head = String::from_utf8_lossy(&answer[..split]);
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(&answer[split + 4..]),
        _ => Err(io::Error::other(format!("refused: {}", head.lines().next().unwrap_or_default()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

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

    #[test]
    fn asks_over_a_unix_socket() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kedge.sock");
        assert!(ask(&socket).unwrap().is_none());
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /status HTTP/1.0\r\n"));
            let body = serde_json::to_string(&status()).unwrap();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        });
        assert_eq!(ask(&socket).unwrap(), Some(status()));
        server.join().unwrap();
        // The file stays when a process dies: nobody listens any more.
        assert!(ask(&socket).unwrap().is_none());
    }

    #[test]
    fn other_answers_are_errors() {
        assert!(body_of(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(body_of(b"nonsense").is_err());
    }
}
