//! What the cluster asks of this node: annotations of its Node object. The controller of load balancers writes
//! which addresses it is to hold and which ports it would like; the node answers which of them are free.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kedge_base::{Chain, Tasks};
use kedge_client::kube::api::{Api, Patch, PatchParams};
use kedge_client::load_balancer::{ADDRESSES, PORTS, PORTS_ANSWER, PortsAnswer, parse_ports};
use kedge_client::{Informer, Informers, kube};
use serde_json::json;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;

use super::{Announcer, Claim, Purpose, ports};

/// How long the API server may take to say who holds an address.
const ASK: Duration = Duration::from_secs(5);
/// While it does not, and an address was given up.
const ASK_AGAIN: Duration = Duration::from_secs(10);
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
    let mut claims = announcer.claims();
    let mut follower = Follower {
        announcer: announcer.clone(),
        name: node_name.to_owned(),
        reserved,
        client,
        nodes,
        yielded: BTreeSet::new(),
    };
    tasks.spawn_until_stopped("load balancers of this node", async move {
        follower.nodes.synced().await;
        loop {
            let again = follower.look().await;
            tokio::select! {
                () = changed.notified() => {}
                () = super::sleep(again) => {}
                claim = claims.recv() => match claim {
                    Ok(claim) => follower.dispute(claim).await,
                    // The next one comes.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
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

fn held(node: Option<&Node>) -> BTreeSet<IpAddr> {
    annotation(node, ADDRESSES).map(addresses).unwrap_or_default()
}

fn addresses(text: &str) -> BTreeSet<IpAddr> {
    text.split(',').filter_map(|part| part.trim().parse().ok()).collect()
}

struct Follower {
    announcer: Announcer,
    name: String,
    reserved: BTreeSet<u16>,
    client: kube::Client,
    nodes: Informer<Node>,
    /// Addresses that other machines claimed, and what the API server says is not what the cache says.
    yielded: BTreeSet<IpAddr>,
}

impl Follower {
    /// Returns after which time to look again at the latest.
    async fn look(&mut self) -> Option<Duration> {
        let node = self.nodes.get("", &self.name);
        let node = node.as_deref();
        // A node without an object is not part of the cluster (any more), or not yet.
        let cached = held(node);
        if self.yielded.is_empty() {
            self.announcer.hold(Purpose::Services, cached);
        } else {
            let fresh = self.ask().await;
            let rest = || cached.difference(&self.yielded).copied().collect();
            self.announcer.hold(Purpose::Services, fresh.clone().unwrap_or_else(rest));
            if fresh != Some(cached) {
                return Some(ASK_AGAIN);
            }
            self.yielded.clear();
        }
        node?;
        let Some(asked) = annotation(node, PORTS).map(parse_ports) else {
            if annotation(node, PORTS_ANSWER).is_some() {
                return self.answer(None).await.err();
            }
            return None;
        };
        let reserved = self.reserved.clone();
        let look = tokio::task::spawn_blocking(move || {
            let taken = ports::taken(Path::new("/proc/thread-self/net"), &asked, &reserved);
            let free = asked.difference(&taken).cloned().collect();
            PortsAnswer { free, taken }
        });
        let Ok(answer) = look.await else { return Some(LOOK_AGAIN) };
        let text = answer.to_string();
        if annotation(node, PORTS_ANSWER) != Some(&text)
            && let Err(soon) = self.answer(Some(&text)).await
        {
            return Some(soon);
        }
        (!answer.taken.is_empty()).then_some(LOOK_AGAIN)
    }

    /// Another machine says it has an address of this node. Who is right, the Node object says. A node that
    /// cannot ask, for it was cut off or removed, gives way: the others have moved the address.
    async fn dispute(&mut self, claim: Claim) {
        let (address, by) = (claim.address, claim.by);
        if !held(self.nodes.get("", &self.name).as_deref()).contains(&address) {
            return;
        }
        let fresh = self.ask().await;
        if fresh.as_ref().is_some_and(|held| held.contains(&address)) {
            tracing::warn!(%address, %by, "another machine says that it has this node's address");
            self.announcer.confirm(address);
            return;
        }
        let is_told = fresh.is_some();
        tracing::warn!(%address, %by, is_told, "another machine has the address: this node gives it up");
        self.yielded.insert(address);
    }

    /// What this node is to hold, from the API server itself; `None`: it does not say.
    async fn ask(&self) -> Option<BTreeSet<IpAddr>> {
        let nodes = Api::<Node>::all(self.client.clone());
        match tokio::time::timeout(ASK, nodes.get_opt(&self.name)).await {
            Ok(Ok(node)) => Some(held(node.as_ref())),
            _ => None,
        }
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
    fn addresses_are_read() {
        let held = addresses("192.0.2.200, 2001:db8::10,x");
        assert_eq!(held, ["192.0.2.200", "2001:db8::10"].map(|text| text.parse().unwrap()).into());
    }
}
