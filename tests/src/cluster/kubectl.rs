//! What tests ask of a node: by kubectl, and of what it serves.

use std::process::Command;

use serde_json::Value;

use super::Cluster;
use crate::http::Proxy;
use crate::network::command_in;
use crate::run::{Out, kubectl_program, run};

impl Cluster {
    /// Runs kubectl on the node's own host: it reaches the node when the network does not.
    #[track_caller]
    #[must_use]
    pub fn kubectl_inside(&self, arguments: &[&str]) -> Out {
        let mut command = command_in(self.namespace.as_deref(), kubectl_program());
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.dir);
        run(command.args(arguments), b"")
    }

    /// Runs kubectl.
    #[track_caller]
    #[must_use]
    pub fn kubectl(&self, arguments: &[&str]) -> Out {
        self.kubectl_with(arguments, "")
    }

    /// Runs kubectl with text on standard input.
    #[track_caller]
    #[must_use]
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Out {
        run(self.kubectl_command().args(arguments), input.as_bytes())
    }

    /// kubectl with this node's kubeconfig and nobody's settings.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(kubectl_program());
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.dir);
        command
    }

    /// Applies a manifest.
    ///
    /// # Panics
    /// When kubectl fails.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.kubectl_with(&["apply", "-f", "-"], manifest).ok()
    }

    /// `kubectl get ... -o json`.
    ///
    /// # Panics
    /// When kubectl fails.
    #[track_caller]
    pub fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        self.kubectl(&all).json()
    }

    /// The same inside [`crate::eventually`]: nothing when kubectl fails, and it is asked again.
    #[track_caller]
    pub fn try_get(&self, arguments: &[&str]) -> Option<Value> {
        let out = self.kubectl(&[&["get", "-o", "json"], arguments].concat());
        (out.code == 0).then(|| out.json())
    }

    /// `kubectl get -o jsonpath=...` as text.
    ///
    /// # Panics
    /// When kubectl fails.
    #[track_caller]
    #[must_use]
    pub fn field(&self, what: &str, path: &str) -> String {
        self.kubectl(&["get", what, "-o", &format!("jsonpath={{{path}}}")]).ok()
    }

    /// The same inside [`crate::eventually`]: nothing when kubectl fails, and it is asked again.
    #[track_caller]
    pub fn try_field(&self, what: &str, path: &str) -> Option<String> {
        let out = self.kubectl(&["get", what, "-o", &format!("jsonpath={{{path}}}")]);
        (out.code == 0).then_some(out.stdout)
    }

    /// `kubectl wait --for=CONDITION WHAT`, five minutes.
    ///
    /// # Panics
    /// When it does not come true.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: &str) {
        let out = self.kubectl(&["wait", what, &format!("--for={condition}"), "--timeout=300s"]);
        assert!(out.code == 0, "{out}\n{}", self.kubectl(&["describe", what]));
    }

    /// `kubectl rollout status`, five minutes.
    ///
    /// # Panics
    /// When the rollout does not finish.
    #[track_caller]
    pub fn rolled_out(&self, what: &str) {
        let out = self.kubectl(&["rollout", "status", what, "--timeout=300s"]);
        assert!(out.code == 0, "{out}\n{}", self.kubectl(&["get", "pods,events", "-o", "wide"]));
    }

    /// Runs a shell line in a container and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn exec(&self, pod: &str, line: &str) -> String {
        self.kubectl(&["exec", pod, "--", "sh", "-c", line]).ok()
    }

    /// Waits until an event about `object` ("Pod/name") has this reason, and gives its message.
    ///
    /// # Panics
    /// When there is none within five minutes.
    #[track_caller]
    pub fn event(&self, object: &str, reason: &str) -> String {
        let (kind, name) = object.split_once('/').expect("Kind/name");
        let selector =
            format!("--field-selector=involvedObject.kind={kind},involvedObject.name={name},reason={reason}");
        crate::eventually(&format!("an event {reason} about {object}"), || {
            let events = self.try_get(&["events", &selector])?;
            events["items"].as_array()?.last()?["message"].as_str().map(str::to_owned)
        })
    }

    /// `kubectl proxy`.
    #[must_use]
    pub fn proxy(&self) -> Proxy {
        Proxy::start(self.kubectl_command().args(["proxy", "--port=0"]))
    }

    /// `kubectl port-forward TARGET :PORT`.
    #[must_use]
    pub fn port_forward(&self, target: &str, port: u16) -> Proxy {
        Proxy::start(self.kubectl_command().args(["port-forward", target, &format!(":{port}")]))
    }

    /// The node's internal address.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn node_address(&self) -> String {
        let address = self
            .field(&format!("node/{}", self.node), ".status.addresses[?(@.type==\"InternalIP\")].address");
        assert!(!address.is_empty(), "the node has no internal address");
        address
    }

    /// GETs `path` from a plain HTTP server until it answers 200, and gives the body.
    ///
    /// # Panics
    /// When it does not within five minutes.
    pub fn http(&self, address: &str, path: &str) -> String {
        crate::eventually(&format!("http://{address}{path}"), || {
            let answer = crate::http::request(address, "GET", path, &[], "").ok()?;
            (answer.status == 200).then_some(answer.body)
        })
    }
}
