//! What the cluster asks of this node: annotations of its Node object. The controller of load balancers writes
//! which addresses it is to hold and which ports it would like; the node answers which of them are free.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kedge_base::{Chain, Tasks};
use kedge_client::kube::api::{Api, Patch, PatchParams};
use kedge_client::{Informer, Informers, kube};
use serde_json::json;
use tokio::sync::Notify;

use super::ports::{self, Port};
use super::{Announcer, Purpose};

/// A Node's annotation: the addresses that the node is to hold, with commas.
pub const ADDRESSES: &str = "kedge.dev/load-balancer-addresses";
/// A Node's annotation: ports on which Services want to answer at the node's own addresses, as `TCP/80,UDP/53`.
pub const PORTS: &str = "kedge.dev/load-balancer-ports";
/// A Node's annotation: the node's answer to [`PORTS`]; those that its own programs use have a `!` before them.
pub const PORTS_ANSWER: &str = "kedge.dev/load-balancer-ports-free";

/// While a port is in use: whether it still is. Nobody tells when a program stops to listen.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Follow this node's annotations. `reserved` are TCP ports that Kedge itself needs, whether or not it listens
/// there already. `client` patches the annotation [`PORTS_ANSWER`], nothing else.
pub fn follow_node(
    announcer: &Announcer,
    node_name: &str,
    reserved: BTreeSet<u16>,
    client: kube::Client,
    informers: &Informers,
    tasks: &Tasks,
) {
    let nodes = informers.informer_with_fields::<Node>(&format!("metadata.name={node_name}"));
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    nodes.on_change(move |change| {
        if asked(change.old.as_deref()) != asked(change.new.as_deref()) {
            notify.notify_one();
        }
    });
    let follower =
        Follower { announcer: announcer.clone(), name: node_name.to_owned(), reserved, client, nodes };
    tasks.spawn_until_stopped("load balancers of this node", async move {
        follower.nodes.synced().await;
        loop {
            let again = follower.look().await;
            tokio::select! {
                () = changed.notified() => {}
                () = super::sleep(again) => {}
            }
        }
    });
}

fn annotation<'a>(node: Option<&'a Node>, name: &str) -> Option<&'a str> {
    Some(node?.metadata.annotations.as_ref()?.get(name)?.as_str())
}

fn asked(node: Option<&Node>) -> [Option<&str>; 3] {
    [ADDRESSES, PORTS, PORTS_ANSWER].map(|name| annotation(node, name))
}

fn addresses(text: &str) -> BTreeSet<IpAddr> {
    text.split(',').filter_map(|part| part.trim().parse().ok()).collect()
}

fn answer(asked: &BTreeSet<Port>, taken: &BTreeSet<Port>) -> String {
    let mut text = String::new();
    for port in asked {
        let comma = if text.is_empty() { "" } else { "," };
        let mark = if taken.contains(port) { "!" } else { "" };
        let _ = write!(text, "{comma}{mark}{}/{}", port.0, port.1);
    }
    text
}

struct Follower {
    announcer: Announcer,
    name: String,
    reserved: BTreeSet<u16>,
    client: kube::Client,
    nodes: Informer<Node>,
}

impl Follower {
    /// Returns after which time to look again at the latest.
    async fn look(&self) -> Option<Duration> {
        let node = self.nodes.get("", &self.name);
        let node = node.as_deref();
        // A node without an object is not part of the cluster (any more), or not yet.
        self.announcer
            .hold(Purpose::Services, annotation(node, ADDRESSES).map(addresses).unwrap_or_default());
        node?;
        let asked: Option<BTreeSet<Port>> =
            annotation(node, PORTS).map(|text| text.split(',').filter_map(ports::parse).collect());
        let Some(asked) = asked else {
            if annotation(node, PORTS_ANSWER).is_some() {
                return self.answer(None).await.err();
            }
            return None;
        };
        let reserved = self.reserved.clone();
        let look = tokio::task::spawn_blocking(move || {
            let taken = ports::taken(Path::new("/proc/thread-self/net"), &asked, &reserved);
            (answer(&asked, &taken), !taken.is_empty())
        });
        let Ok((text, some_are_taken)) = look.await else { return Some(LOOK_AGAIN) };
        if annotation(node, PORTS_ANSWER) != Some(&text)
            && let Err(soon) = self.answer(Some(&text)).await
        {
            return Some(soon);
        }
        some_are_taken.then_some(LOOK_AGAIN)
    }

    async fn answer(&self, text: Option<&str>) -> Result<(), Duration> {
        let patch = json!({ "metadata": { "annotations": { PORTS_ANSWER: text } } });
        let nodes = Api::<Node>::all(self.client.clone());
        match nodes.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the cluster does not know yet which ports of this node are free");
                Err(Duration::from_secs(5))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_and_answered() {
        let asked: BTreeSet<Port> =
            "TCP/80,UDP/53,nonsense,TCP/443".split(',').filter_map(ports::parse).collect();
        let taken = BTreeSet::from([("TCP".to_owned(), 80)]);
        assert_eq!(answer(&asked, &taken), "TCP/443,!TCP/80,UDP/53");
        assert_eq!(answer(&BTreeSet::new(), &taken), "");
        let held = addresses("192.0.2.200, 2001:db8::10,x");
        assert_eq!(held, ["192.0.2.200", "2001:db8::10"].map(|text| text.parse().unwrap()).into());
    }
}
