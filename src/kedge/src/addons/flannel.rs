//! The addon `flannel`: Kedge's own pod network. It has no manifests: the ConfigMap that flannel reads says how it
//! is, and every node is told to read it again and says when it has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kedge_addons::{Listed, Manager, State};
use kedge_network::{
    APPLIED, Backend, CONFIG_MAP_NAME, CONFIG_MAP_NAMESPACE, NetworkConfig, POD_NETWORK, VxlanConfig, WANTED,
    is_off,
};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::failure::Failure;

/// The addon's name.
pub(crate) const NAME: &str = "flannel";

const MISSING: &str = "the pod network's ConfigMap kube-flannel/kube-flannel-cfg is not there yet; the leading \
                       control-plane node makes it (see kedge status)";

/// Switches it on with these arguments; what is not given stays as it is.
pub(crate) async fn enable(
    manager: &Manager,
    given: &BTreeMap<String, String>,
    limit: Duration,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Failure> {
    let client = manager.client();
    let found = read(client).await?.context(MISSING)?;
    let now = NetworkConfig::from_config_map(&found).context("read the pod network's configuration")?;
    let wanted = changed(&now, given).map_err(|what| Failure::Usage(anyhow::anyhow!("flannel: {what}")))?;
    if wanted.networks != now.networks {
        return Err(Failure::Usage(anyhow::Error::msg(refusal(&now.networks, &nodes(client).await?))));
    }
    if wanted == now && !is_off(&found) {
        return told(client, &tell_nobody(client).await?, limit, progress).await;
    }
    let conf = wanted.config_map().data.unwrap_or_default();
    write(client, json!({ "metadata": { "annotations": { POD_NETWORK: null } }, "data": conf })).await?;
    let nodes = tell(client).await?;
    told(client, &nodes, limit, progress).await
}

/// Could it be disabled?
pub(crate) async fn check_removal(manager: &Manager) -> Result<(), Failure> {
    let found = read(manager.client()).await?.context(MISSING)?;
    if is_off(&found) {
        return Err(Failure::Failed(anyhow::anyhow!("the addon flannel is not enabled")));
    }
    Ok(())
}

/// Takes it off all nodes; their pods go on, but reach no other node's.
pub(crate) async fn disable(
    manager: &Manager,
    limit: Duration,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Failure> {
    let client = manager.client();
    check_removal(manager).await?;
    write(client, json!({ "metadata": { "annotations": { POD_NETWORK: "none" } } })).await?;
    let nodes = tell(client).await?;
    told(client, &nodes, limit, progress).await
}

/// How it stands, in the list of addons.
pub(crate) async fn describe(manager: &Manager, list: &mut [Listed]) -> anyhow::Result<()> {
    let Some(listed) = list.iter_mut().find(|listed| listed.name == NAME) else { return Ok(()) };
    let client = manager.client();
    // Before it was written the nodes use their own configuration.
    let Some(found) = read(client).await? else { return Ok(()) };
    if is_off(&found) {
        listed.state = State::Disabled;
        return Ok(());
    }
    match NetworkConfig::from_config_map(&found) {
        Ok(network) => listed.arguments = arguments(&network),
        Err(error) => listed.reasons.push(kedge_base::Chain(&error).to_string()),
    }
    listed.reasons.extend(nodes(client).await?.iter().filter_map(problem));
    if !listed.reasons.is_empty() {
        listed.remedy =
            Some("kedge inspect on that node; kedge enable flannel tells all nodes again".to_owned());
    }
    listed.state = if listed.reasons.is_empty() { State::Enabled } else { State::Unhealthy };
    Ok(())
}

/// What the Node's condition says against it.
fn problem(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == "NetworkUnavailable")?;
    let name = node.metadata.name.as_deref().unwrap_or_default();
    (found.status == "True").then(|| format!("node {name}: {}", found.message.clone().unwrap_or_default()))
}

fn arguments(network: &NetworkConfig) -> BTreeMap<String, String> {
    let networks: Vec<String> = network.networks.iter().map(ToString::to_string).collect();
    let mut all = vec![("network", networks.join(","))];
    match &network.backend {
        Backend::HostGw => all.push(("backend", "host-gw".to_owned())),
        Backend::Vxlan(vxlan) => {
            all.push(("backend", "vxlan".to_owned()));
            all.push(("port", vxlan.port.to_string()));
            all.push(("vni", vxlan.vni.to_string()));
            all.push(("direct-routing", vxlan.direct_routing.to_string()));
        }
    }
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The configuration with these arguments, or what is wrong with them together.
fn changed(now: &NetworkConfig, given: &BTreeMap<String, String>) -> Result<NetworkConfig, String> {
    let value = |name: &str| given.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let mut wanted = now.clone();
    if let Some(text) = value("network") {
        let parse = |text: &str| text.trim().parse::<IpNet>().map(|net| net.trunc());
        wanted.networks = text
            .split(',')
            .map(|text| {
                parse(text).map_err(|_| format!("network: {text:?} is not a range such as 10.244.0.0/16"))
            })
            .collect::<Result<_, _>>()?;
    }
    wanted.backend = match (value("backend"), &now.backend) {
        (Some("host-gw"), _) | (None, Backend::HostGw) => Backend::HostGw,
        (_, Backend::Vxlan(vxlan)) => Backend::Vxlan(vxlan.clone()),
        (_, Backend::HostGw) => Backend::Vxlan(VxlanConfig::default()),
    };
    let of_vxlan = ["port", "vni", "direct-routing"];
    match &mut wanted.backend {
        Backend::HostGw => {
            if let Some(name) = of_vxlan.iter().find(|name| value(name).is_some()) {
                return Err(format!("{name} belongs to backend=vxlan, and the backend is host-gw"));
            }
        }
        Backend::Vxlan(vxlan) => {
            let number = |name: &str, text: &str| format!("{name}: {text:?} is not a number from 1 to 65535");
            if let Some(text) = value("port") {
                vxlan.port = text.parse().map_err(|_| number("port", text))?;
            }
            if let Some(text) = value("vni") {
                vxlan.vni = text.parse().map_err(|_| number("vni", text))?;
            }
            if let Some(text) = value("direct-routing") {
                vxlan.direct_routing = text == "true";
            }
        }
    }
    Ok(wanted)
}

/// Why the range of pods stays.
fn refusal(now: &[IpNet], nodes: &[Node]) -> String {
    let now: Vec<String> = now.iter().map(ToString::to_string).collect();
    let parts: Vec<String> = nodes
        .iter()
        .filter_map(|node| {
            let range = node.spec.as_ref()?.pod_cidr.as_deref()?;
            Some(format!("{} has {range}", node.metadata.name.as_deref()?))
        })
        .collect();
    let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    format!(
        "flannel: network: the cluster's range of pods is {} and nodes have parts of it{parts}, so it cannot be \
         changed; a cluster with another range is made by kedge install --pod-cidr",
        now.join(",")
    )
}

async fn read(client: &kube::Client) -> anyhow::Result<Option<ConfigMap>> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), CONFIG_MAP_NAMESPACE);
    maps.get_opt(CONFIG_MAP_NAME).await.context("read the pod network's configuration")
}

async fn write(client: &kube::Client, patch: serde_json::Value) -> anyhow::Result<()> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), CONFIG_MAP_NAMESPACE);
    let written = maps.patch(CONFIG_MAP_NAME, &PatchParams::default(), &Patch::Merge(patch)).await;
    written.map(drop).context("write the pod network's configuration")
}

async fn nodes(client: &kube::Client) -> anyhow::Result<Vec<Node>> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await;
    Ok(nodes.context("list the nodes")?.items)
}

/// Tells every node to read the configuration again: the names and what they are to answer with.
async fn tell(client: &kube::Client) -> anyhow::Result<BTreeMap<String, String>> {
    let version = read(client).await?.and_then(|map| map.metadata.resource_version).unwrap_or_default();
    let api = Api::<Node>::all(client.clone());
    let patch = json!({ "metadata": { "annotations": { WANTED: version } } });
    let mut told = BTreeMap::new();
    for node in nodes(client).await? {
        let name = node.metadata.name.unwrap_or_default();
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {
                told.insert(name, version.clone());
            }
            // It was removed meanwhile.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| format!("tell node {name} of its pod network")),
        }
    }
    Ok(told)
}

/// What every node was told last: an earlier call may not have waited for it.
async fn tell_nobody(client: &kube::Client) -> anyhow::Result<BTreeMap<String, String>> {
    let wanted = |node: Node| Some((node.metadata.name?, node.metadata.annotations?.remove(WANTED)?));
    Ok(nodes(client).await?.into_iter().filter_map(wanted).collect())
}

/// Waits until every node that runs has acted upon it.
async fn told(
    client: &kube::Client,
    told: &BTreeMap<String, String>,
    limit: Duration,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    loop {
        let nodes = nodes(client).await?;
        let waiting: BTreeSet<&str> =
            nodes.iter().filter(|node| runs(node)).filter_map(|node| late(node, told)).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let names = waiting.into_iter().collect::<Vec<_>>().join(", ");
        if Instant::now() >= deadline {
            return Err(Failure::Failed(anyhow::anyhow!(
                "these nodes have not changed their pod network after {} s: {names}; see kedge status and the log there",
                limit.as_secs()
            )));
        }
        progress(&format!("waiting for {names}"));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A node that does not run reads the configuration when it starts. Not Ready alone is no reason: without a
/// pod network every node is so.
fn runs(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    ready.is_none_or(|ready| ready.status != "Unknown")
}

fn late<'a>(node: &'a Node, told: &BTreeMap<String, String>) -> Option<&'a str> {
    let name = node.metadata.name.as_deref()?;
    let wanted = told.get(name)?;
    let applied = node.metadata.annotations.as_ref().and_then(|all| all.get(APPLIED));
    (applied != Some(wanted)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(';').filter_map(|part| part.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn network(backend: Backend) -> NetworkConfig {
        NetworkConfig { networks: vec!["10.244.0.0/16".parse().unwrap()], backend }
    }

    #[test]
    fn what_is_not_given_stays() {
        let own = VxlanConfig { vni: 7, ..VxlanConfig::default() };
        let with = |port: u16| Backend::Vxlan(VxlanConfig { port, ..own.clone() });
        for (now, text, then) in [
            (Backend::Vxlan(own.clone()), "", Backend::Vxlan(own.clone())),
            (Backend::Vxlan(own.clone()), "port=4789", with(4789)),
            (Backend::Vxlan(own.clone()), "backend=host-gw", Backend::HostGw),
            (Backend::HostGw, "", Backend::HostGw),
            (Backend::HostGw, "backend=vxlan", Backend::Vxlan(VxlanConfig::default())),
            (Backend::HostGw, "network=10.244.0.0/16", Backend::HostGw),
        ] {
            assert_eq!(changed(&network(now), &given(text)), Ok(network(then)), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (now, text, part) in [
            (Backend::HostGw, "vni=3", "vni belongs to backend=vxlan"),
            (
                Backend::Vxlan(VxlanConfig::default()),
                "backend=host-gw;port=1",
                "port belongs to backend=vxlan",
            ),
            (Backend::HostGw, "network=ten", "is not a range such as"),
        ] {
            let error = changed(&network(now), &given(text)).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "pi-1" }, "spec": { "podCIDR": "10.244.0.0/24" },
        }))
        .unwrap();
        let text = refusal(&network(Backend::HostGw).networks, &[node]);
        assert!(text.contains("10.244.0.0/16") && text.contains("pi-1 has 10.244.0.0/24"), "{text}");
    }

    #[test]
    fn a_node_is_late_until_it_says_so() {
        let node = |annotations: serde_json::Value, ready: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": { "name": "a", "annotations": annotations },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            }))
            .unwrap()
        };
        let told = BTreeMap::from([("a".to_owned(), "7".to_owned())]);
        assert_eq!(late(&node(json!({}), "True"), &told), Some("a"));
        assert_eq!(late(&node(json!({ APPLIED: "6" }), "True"), &told), Some("a"));
        assert_eq!(late(&node(json!({ APPLIED: "7" }), "True"), &told), None);
        assert!(runs(&node(json!({}), "False")) && !runs(&node(json!({}), "Unknown")));
    }
}
