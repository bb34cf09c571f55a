//! The Node's condition `NetworkUnavailable`, with the words of flanneld (pkg/subnet/kube/kube.go,
//! `CompleteLease`): other programs look for its reason. It stays while Kedge restarts, as the network does.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

const KIND: &str = "NetworkUnavailable";
const UP: (&str, &str, &str) = ("False", "FlannelIsUp", "Flannel is running on this node");

/// What of it means something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) status: String,
    reason: String,
    message: String,
}

impl Condition {
    fn new((status, reason, message): (&str, &str, &str)) -> Self {
        Self { status: status.into(), reason: reason.into(), message: message.into() }
    }

    /// As the Node has it.
    pub(super) fn of(node: &Node) -> Option<Self> {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        let found = conditions.iter().find(|condition| condition.type_ == KIND)?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some(Self {
            status: found.status.clone(),
            reason: text(&found.reason),
            message: text(&found.message),
        })
    }

    /// Without an announced network other nodes' pods are out of reach; where there is no other node, nothing
    /// is, and pods may run.
    pub(super) fn wanted(is_announced: bool, has_others: bool, problems: &[String]) -> Self {
        if is_announced {
            return Self::new(UP);
        }
        let message = problems.first().map_or("Flannel is not running on this node", String::as_str);
        let status = if has_others { "True" } else { "False" };
        Self::new((status, "FlannelIsDown", message))
    }

    /// Takes it off the Node's status.
    pub(super) fn removal() -> Value {
        json!({ "status": { "conditions": [{ "type": KIND, "$patch": "delete" }] } })
    }

    /// Is it one that this network wrote?
    pub(super) fn is_ours(&self) -> bool {
        matches!(self.reason.as_str(), "FlannelIsUp" | "FlannelIsDown")
    }

    /// For the Node's status; `moved`: the status differs from the one before.
    pub(super) fn patch(&self, moved: bool) -> Value {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut patch = json!({
            "type": KIND, "status": self.status, "reason": self.reason, "message": self.message,
            "lastHeartbeatTime": now,
        });
        if moved {
            patch["lastTransitionTime"] = json!(now);
        }
        patch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_flannels() {
        let up = Condition::wanted(true, true, &["a detail".into()]);
        let mut patch = up.patch(true);
        assert_eq!(patch["reason"], "FlannelIsUp");
        assert_eq!(patch["lastTransitionTime"], patch["lastHeartbeatTime"]);
        let node: Node =
            serde_json::from_value(json!({ "status": { "conditions": [patch.take()] } })).unwrap();
        assert_eq!(Condition::of(&node), Some(up));
        let down = Condition::wanted(false, true, &["no address".into()]);
        assert_eq!((&*down.status, &*down.reason, &*down.message), ("True", "FlannelIsDown", "no address"));
        assert!(down.patch(false)["lastTransitionTime"].is_null());
        let alone = Condition::wanted(false, false, &["no address".into()]);
        assert_eq!((&*alone.status, &*alone.reason), ("False", "FlannelIsDown"));
    }
}
