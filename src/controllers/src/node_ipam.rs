//! Every node gets its part of the pod network (upstream pkg/controller/nodeipam, range allocator).

use std::collections::HashSet;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kedge_client::{Error, EventType, Informer, Queue, Recorder, reference};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::context::{Context, ignore_not_found};

pub(crate) fn start(ctx: &Context) {
    if ctx.config.pod_cidrs.is_empty() {
        return;
    }
    let nodes = ctx.informers.informer::<Node>();
    let recorder = ctx.recorder("cidrAllocator");
    let queue: Queue<String> = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&nodes, move |change| {
        if let Some(node) = &change.new
            && ranges(node).is_empty()
        {
            adder.add(change.key().name);
        }
    });
    let ready = nodes.clone();
    let ctx = ctx.clone();
    let synced = async move { ready.synced().await };
    // One worker: what it gave out and the cache does not show yet is looked up on the server.
    ctx.clone().run("node-ipam", queue, 1, synced, move |name| {
        let (ctx, nodes, recorder) = (ctx.clone(), nodes.clone(), recorder.clone());
        async move { reconcile(&ctx, &nodes, &recorder, &name).await }
    });
}

fn ranges(node: &Node) -> Vec<&str> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let mut all: Vec<&str> = spec.pod_cidrs.iter().flatten().map(String::as_str).collect();
    if let Some(one) = &spec.pod_cidr
        && !one.is_empty()
        && !all.contains(&one.as_str())
    {
        all.push(one);
    }
    all
}

async fn reconcile(
    ctx: &Context,
    nodes: &Informer<Node>,
    recorder: &Recorder,
    name: &str,
) -> Result<Option<Duration>, Error> {
    let Some(node) = nodes.get("", name) else { return Ok(None) };
    if !ranges(&node).is_empty() || node.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let api = kube::Api::<Node>::all(ctx.client.clone());
    // Two nodes must never share a range, so the truth is read and not the cache.
    let live = api.list(&kube::api::ListParams::default()).await?;
    if live.items.iter().any(|other| other.metadata.name == node.metadata.name && !ranges(other).is_empty()) {
        return Ok(None);
    }
    let taken: Vec<IpNet> =
        live.items.iter().flat_map(ranges).filter_map(|range| range.parse().ok()).collect();
    // All families or none: what a node has does not change any more.
    let mut free = Vec::new();
    for cidr in &ctx.config.pod_cidrs {
        let Some(part) = allocate(*cidr, ctx.config.node_mask(cidr), &taken) else {
            let text = format!("Node {name} status is now: CIDRNotAvailable");
            recorder.event(reference(&*node), EventType::Normal, "CIDRNotAvailable", text);
            return Err(Error::other(format!(
                "no part of {cidr} is left for node {name}: delete nodes that are gone or use a larger pod network"
            )));
        };
        free.push(part.to_string());
    }
    let patch = json!({
        "metadata": { "uid": node.metadata.uid },
        "spec": { "podCIDR": free.first(), "podCIDRs": free },
    });
    ignore_not_found(api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
    tracing::info!(node = name, cidrs = free.join(","), "pod network of node allocated");
    Ok(None)
}

/// The first part of `cidr` that touches none of `taken`.
fn allocate(cidr: IpNet, mask: u8, taken: &[IpNet]) -> Option<IpNet> {
    let same: HashSet<IpNet> = taken.iter().map(IpNet::trunc).collect();
    let others: Vec<&IpNet> = taken.iter().filter(|net| net.prefix_len() != mask).collect();
    cidr.trunc().subnets(mask).ok()?.find(|part| {
        !same.contains(part) && !others.iter().any(|other| other.contains(part) || part.contains(*other))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap() {
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        for (cidr, mask, taken, expected) in [
            ("10.244.0.0/16", 24, vec![], Some("10.244.0.0/24")),
            ("10.244.0.0/16", 24, vec!["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24")),
            ("10.244.0.0/16", 24, vec!["10.244.0.0/23"], Some("10.244.2.0/24")),
            ("10.244.0.0/16", 24, vec!["10.244.0.128/25"], Some("10.244.1.0/24")),
            ("10.244.0.0/23", 24, vec!["10.244.0.0/24", "10.244.1.0/24"], None),
            ("10.244.0.0/24", 24, vec!["192.168.0.0/24"], Some("10.244.0.0/24")),
            ("fd00::/56", 64, vec!["fd00::/64"], Some("fd00:0:0:1::/64")),
        ] {
            let taken: Vec<IpNet> = taken.into_iter().map(net).collect();
            assert_eq!(allocate(net(cidr), mask, &taken), expected.map(net), "{cidr} {taken:?}");
        }
    }
}
