//! The Node object: registered at start, its status kept true, its Lease renewed
//! (upstream `kubelet_node_status.go` and `nodestatus/setters.go`).

mod machine;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kedge_base::{Backoff, Chain};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use crate::core::Shared;
use crate::eviction::Condition;
use crate::runtime::{HEALTH_LIMIT, Health};
use crate::{Config, Error, pod};

pub(crate) use machine::{Machine, has_image_disk, levels, swap};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
const REPORT: Duration = Duration::from_secs(300);
/// Registering is tried again after this and longer times (upstream: 100 ms to 7 s).
const REGISTER_AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(7)];
/// A leader's election passes sooner; what lasts longer is told.
const SILENCE: Duration = Duration::from_secs(10);

/// Labels that the kubelet sets itself.
fn own_labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine::architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine::architecture()),
        // Addons of Kedge's own image go where it is: not to a stock kubelet's node.
        ("kedge.dev/node", "true"),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    if config.control_plane {
        labels.insert("node-role.kubernetes.io/control-plane".to_owned(), String::new());
    }
    labels
}

/// Creates the Node object, or brings the labels of the one that exists up to date.
pub(crate) async fn register(core: &Shared) -> Result<(), Error> {
    let api = kube::Api::<Node>::all(core.client.clone());
    let labels = own_labels(&core.config);
    let status = status(core, &NodeStatus::default()).await;
    if let Some(existing) = api.get_opt(&core.config.node_name).await? {
        let have = existing.metadata.labels.unwrap_or_default();
        if labels.iter().any(|(key, value)| have.get(key) != Some(value)) {
            let patch = json!({ "metadata": { "labels": labels } });
            api.patch(&core.config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        }
        return Ok(());
    }
    let mut node = Node::default();
    node.metadata.name = Some(core.config.node_name.clone());
    node.metadata.labels = Some(labels);
    node.metadata.annotations = Some(BTreeMap::from([(
        "volumes.kubernetes.io/controller-managed-attach-detach".into(),
        "true".into(),
    )]));
    let taints = core.config.register_taints.clone();
    node.spec = Some(NodeSpec { taints: (!taints.is_empty()).then_some(taints), ..NodeSpec::default() });
    node.status = Some(status);
    match api.create(&PostParams::default(), &node).await {
        Ok(_) => {
            tracing::info!(node = core.config.node_name, "node registered");
            Ok(())
        }
        Err(error) if kedge_client::is_already_exists(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The status that the node has now; times of unchanged conditions stay.
async fn status(core: &Shared, old: &NodeStatus) -> NodeStatus {
    let health = look(core).await;
    // A runtime that hangs is not asked more: the answers that the node has stay.
    let asked = async {
        let version = version(core).await;
        (version, core.images.report().await.ok())
    };
    let (runtime_version, images) = if health.runtime.is_none() {
        tokio::time::timeout(HEALTH_LIMIT, asked).await.unwrap_or_default()
    } else {
        (None, None)
    };
    let version = runtime_version
        .or_else(|| old.node_info.as_ref().map(|info| info.container_runtime_version.clone()))
        .unwrap_or_else(|| "containerd://Unknown".to_owned());
    let images = images.or_else(|| old.images.clone());
    let (capacity, allocatable) = core.machine.resources(&core.config);
    let to_map =
        |list: Vec<(String, String)>| list.into_iter().map(|(name, text)| (name, Quantity(text))).collect();
    NodeStatus {
        capacity: Some(to_map(capacity)),
        allocatable: Some(to_map(allocatable)),
        addresses: Some(addresses(&core.config)),
        conditions: Some(conditions(core, &health, old)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(core.config.server_address.port()) }),
        }),
        node_info: Some(info(core, version)),
        images,
        runtime_handlers: handlers(&health),
        features: health.features.as_ref().map(|features| NodeFeatures {
            supplemental_groups_policy: Some(features.supplemental_groups_policy),
        }),
        ..NodeStatus::default()
    }
}

/// What RuntimeClasses may name; `None` where the runtime does not say (containerd before 2.0).
fn handlers(health: &Health) -> Option<Vec<NodeRuntimeHandler>> {
    let handler = |found: &k8s_cri::v1::RuntimeHandler| NodeRuntimeHandler {
        name: Some(found.name.clone()),
        features: found.features.as_ref().map(|features| NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
            user_namespaces: Some(features.user_namespaces),
        }),
    };
    (!health.handlers.is_empty()).then(|| health.handlers.iter().map(handler).collect())
}

fn addresses(config: &Config) -> Vec<NodeAddress> {
    let address = |kind: &str, address| NodeAddress { type_: kind.to_owned(), address };
    let mut all: Vec<NodeAddress> =
        config.host_ips().into_iter().map(|ip| address("InternalIP", ip)).collect();
    all.push(address("Hostname", config.node_name.clone()));
    all
}

/// Asks the runtime how it is; everybody learns the answer.
pub(crate) async fn look(core: &Shared) -> Health {
    let mut health = core
        .runtime
        .health()
        .await
        .unwrap_or_else(|error| Health { runtime: Some(error.text()), ..Health::default() });
    let plugins = missing_plugins(&core.config.network_plugins);
    if let Some(missing) = &plugins {
        let problem = format!("NetworkReady=false reason:NetworkPluginNotReady message:{missing}");
        health.network.get_or_insert(problem);
    }
    core.health.send_if_modified(|known| {
        let changed = known.as_ref() != Some(&health);
        *known = Some(health.clone());
        changed
    });
    core.summary.send_if_modified(|summary| {
        let changed = summary.runtime != health.runtime || summary.plugins != plugins;
        summary.runtime.clone_from(&health.runtime);
        summary.plugins = plugins;
        changed
    });
    health
}

/// Plugins that are not there, in words. The runtime looks for their configuration only, and finds out when
/// the first pod starts.
fn missing_plugins(wanted: &[PathBuf]) -> Option<String> {
    let missing: Vec<&PathBuf> = wanted.iter().filter(|file| !file.is_file()).collect();
    let dir = missing.first()?.parent()?.display();
    let name = |file: &&PathBuf| file.file_name().map(|name| name.to_string_lossy().into_owned());
    let names: Vec<String> = missing.iter().filter_map(name).collect();
    Some(format!("CNI plugins are missing in {dir}: {}", names.join(", ")))
}

async fn version(core: &Shared) -> Option<String> {
    let asked = k8s_cri::v1::VersionRequest { version: "v1".into() };
    let answer = core.runtime.cri().version(asked).await.ok()?.into_inner();
    Some(format!("{}://{}", answer.runtime_name, answer.runtime_version.trim_start_matches('v')))
}

fn info(core: &Shared, runtime: String) -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: machine::architecture().into(),
        boot_id: core.machine.boot_id.clone(),
        container_runtime_version: runtime,
        kernel_version: core.machine.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: kedge_base::git_version(),
        machine_id: core.machine.machine_id.clone(),
        operating_system: "linux".into(),
        os_image: core.machine.os_image.clone(),
        swap: None,
        system_uuid: core.machine.system_uuid.clone(),
    }
}

fn conditions(core: &Shared, health: &Health, old: &NodeStatus) -> Vec<NodeCondition> {
    let now = pod::now();
    let has = |condition: Condition| core.pressure.lock().has(condition);
    let memory = has(Condition::Memory);
    let disk = has(Condition::Disk);
    let pids = has(Condition::Pid);
    let mut problems: Vec<String> = Vec::new();
    if let Some(problem) = &health.runtime {
        problems.push(format!("container runtime is down: {problem}"));
    }
    if let Some(problem) = &health.network {
        problems.push(format!("container runtime network not ready: {problem}"));
    }
    let ready = if problems.is_empty() {
        ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned())
    } else {
        let text =
            if problems.len() == 1 { problems[0].clone() } else { format!("[{}]", problems.join(", ")) };
        ("Ready", false, "KubeletNotReady", text)
    };
    let pressure = |kind, bad: bool, reasons: [&'static str; 2], texts: [&str; 2]| {
        (kind, bad, reasons[usize::from(!bad)], texts[usize::from(!bad)].to_owned())
    };
    [
        pressure(
            "MemoryPressure",
            memory,
            ["KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"],
            ["kubelet has insufficient memory available", "kubelet has sufficient memory available"],
        ),
        pressure(
            "DiskPressure",
            disk,
            ["KubeletHasDiskPressure", "KubeletHasNoDiskPressure"],
            ["kubelet has disk pressure", "kubelet has no disk pressure"],
        ),
        pressure(
            "PIDPressure",
            pids,
            ["KubeletHasInsufficientPID", "KubeletHasSufficientPID"],
            ["kubelet has insufficient PID available", "kubelet has sufficient PID available"],
        ),
        ready,
    ]
    .into_iter()
    .map(|(kind, value, reason, message)| {
        let status = if value { "True" } else { "False" };
        let before = old.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
        NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(now.clone())),
        }
    })
    .collect()
}

/// Whether only heartbeat times differ.
fn is_same(old: &NodeStatus, new: &NodeStatus) -> bool {
    let strip = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status.conditions.get_or_insert_default().retain(|c| c.type_ != "NetworkUnavailable");
        (
            status.capacity,
            status.allocatable,
            status.conditions,
            status.addresses,
            status.node_info,
            status.images,
            status.runtime_handlers,
            status.features,
        )
    };
    strip(old) == strip(new)
}

/// Looks every ten seconds, and as soon as somebody asks; writes on a change and every five minutes.
pub(crate) async fn report(core: Shared) {
    let api = kube::Api::<Node>::all(core.client.clone());
    let mut written = Instant::now() - REPORT;
    let mut was_ready = None;
    let mut registration = Registration::new();
    loop {
        registration.go_on(&core).await;
        let node = core.node.get("", &core.config.node_name);
        if let Some(node) = &node {
            let old = node.status.clone().unwrap_or_default();
            let new = status(&core, &old).await;
            let ready = new.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            core.summary.send_if_modified(|summary| std::mem::replace(&mut summary.ready, ready) != ready);
            if !is_same(&old, &new) || written.elapsed() >= REPORT {
                let mut patch = json!({ "status": new });
                // Merged by type, two addresses of one type would become one (upstream
                // `fixupPatchForNodeStatusAddresses`).
                if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
                    addresses.push(json!({ "$patch": "replace" }));
                }
                match api
                    .patch_status(&core.config.node_name, &PatchParams::default(), &Patch::Strategic(patch))
                    .await
                {
                    Ok(_) => written = Instant::now(),
                    Err(error) => tracing::warn!(%error, "node status not written, trying again"),
                }
            }
            if was_ready != Some(ready) {
                was_ready = Some(ready);
                let reason = if ready { "NodeReady" } else { "NodeNotReady" };
                let mut regarding = kedge_client::reference(&**node);
                regarding.uid = Some(core.config.node_name.clone());
                let text = format!("Node {} status is now: {reason}", core.config.node_name);
                core.recorder.event(regarding, kedge_client::EventType::Normal, reason, text);
                // Pods that waited for the network.
                core.workers.wake_all();
            }
        } else if core.node.has_synced() && registration.is_done() {
            // Somebody deleted it.
            registration = Registration::new();
            registration.go_on(&core).await;
        }
        // A node that is not ready yet is looked at more often: start-up is a matter of milliseconds. Later
        // this wakes up together with the look for pressure; its own pause is for when that takes long.
        let pause = if was_ready == Some(true) { RENEW * 2 } else { Duration::from_millis(200) };
        let pause = registration.due_in().map_or(pause, |due| pause.min(due));
        let _ = tokio::time::timeout(pause, core.looked.notified()).await;
    }
}

/// Makes the Node object, however long the API server does not answer; meanwhile the rest of the kubelet does
/// what it can (upstream `registerWithAPIServer`).
struct Registration {
    done: bool,
    due: Instant,
    backoff: Backoff,
}

impl Registration {
    fn new() -> Self {
        let [base, cap] = REGISTER_AGAIN;
        Self { done: false, due: Instant::now(), backoff: Backoff::new(base, cap) }
    }

    fn is_done(&self) -> bool {
        self.done
    }

    /// When it wants to be tried again; `None` when it is done.
    fn due_in(&self) -> Option<Duration> {
        (!self.done).then(|| self.due.saturating_duration_since(Instant::now()))
    }

    /// One more attempt when it is due.
    async fn go_on(&mut self, core: &Shared) {
        if self.due_in().is_none_or(|due| !due.is_zero()) {
            return;
        }
        match register(core).await {
            Ok(()) => {
                self.done = true;
                tell_api(core, None);
            }
            Err(error) => {
                let text = format!("this node is not registered: {}; trying again", unanswered(&error));
                tracing::warn!(error = %error.text(), "node not registered, trying again");
                tell_api(core, Some(text));
                self.due = Instant::now() + self.backoff.next_delay();
            }
        }
    }
}

/// What it means that the API server did not do it.
fn unanswered(error: &Error) -> String {
    let text = match error {
        Error::Api(error) => match error.as_ref() {
            // Its own form repeats the whole status.
            kube::Error::Api(status) => status.message.clone(),
            other => Chain(other).to_string(),
        },
        other => other.text(),
    };
    let refused = match error {
        Error::Api(error) => match error.as_ref() {
            // 429: later it would have done it.
            kube::Error::Api(status) => (400..500).contains(&status.code) && status.code != 429,
            _ => false,
        },
        _ => false,
    };
    let word = if refused { "refuses it" } else { "does not answer" };
    format!("the API server {word}: {text}")
}

fn tell_api(core: &Shared, problem: Option<String>) {
    core.summary.send_if_modified(|summary| {
        let changed = summary.api != problem;
        summary.api = problem;
        changed
    });
}

/// Renews the node's Lease.
pub(crate) async fn heartbeat(core: Shared) {
    let api = kube::Api::<Lease>::namespaced(core.client.clone(), LEASE_NAMESPACE);
    let name = core.config.node_name.clone();
    let mut known: Option<Lease> = None;
    let mut renewed = Instant::now();
    loop {
        let result = renew(&core, &api, &name, known.take()).await;
        let pause = match result {
            Ok(lease) => {
                known = Some(lease);
                renewed = Instant::now();
                // What keeps the node from being registered is told by that.
                if core.node.get("", &name).is_some() {
                    tell_api(&core, None);
                }
                RENEW
            }
            Err(error) => {
                tracing::debug!(error = %error.text(), "lease not renewed, trying again");
                if renewed.elapsed() > RENEW + SILENCE && core.summary.borrow().api.is_none() {
                    tell_api(&core, Some(format!("{}; trying again", unanswered(&error))));
                }
                Duration::from_secs(1)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn renew(
    core: &Shared,
    api: &kube::Api<Lease>,
    name: &str,
    known: Option<Lease>,
) -> Result<Lease, Error> {
    let now = Some(MicroTime(Timestamp::now()));
    let existing = match known {
        Some(lease) => Some(lease),
        None => api.get_opt(name).await?,
    };
    let owner = core.node.get("", name).map(|node| OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    });
    let Some(mut lease) = existing else {
        let mut lease = Lease::default();
        lease.metadata.name = Some(name.to_owned());
        lease.metadata.owner_references = owner.map(|owner| vec![owner]);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: now,
            ..LeaseSpec::default()
        });
        return Ok(api.create(&PostParams::default(), &lease).await?);
    };
    if lease.metadata.owner_references.is_none() {
        lease.metadata.owner_references = owner.map(|owner| vec![owner]);
    }
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(name.to_owned());
    spec.lease_duration_seconds = Some(LEASE_SECONDS);
    spec.renew_time = now;
    Ok(api.replace(name, &PostParams::default(), &lease).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_plugins_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let wanted: Vec<PathBuf> = ["bridge", "host-local"].map(|name| dir.path().join(name)).into();
        std::fs::write(&wanted[0], "").unwrap();
        let text = missing_plugins(&wanted).unwrap();
        assert_eq!(text, format!("CNI plugins are missing in {}: host-local", dir.path().display()));
        std::fs::write(&wanted[1], "").unwrap();
        assert_eq!(missing_plugins(&wanted), None);
        assert_eq!(missing_plugins(&[]), None);
    }

    #[test]
    fn refusals_and_silence_are_told_apart() {
        let answered = |code: u16| {
            let status = kube::core::Status::failure("no", "Reason").with_code(code);
            Error::from(kube::Error::Api(Box::new(status)))
        };
        let broken = std::io::Error::other("no route");
        for (error, begin) in [
            (answered(401), "the API server refuses it: "),
            (answered(403), "the API server refuses it: "),
            (answered(429), "the API server does not answer: "),
            (answered(503), "the API server does not answer: "),
            (answered(500), "the API server does not answer: "),
            (Error::from(kube::Error::Service(broken.into())), "the API server does not answer: "),
        ] {
            let text = unanswered(&error);
            assert!(text.starts_with(begin) && !text.contains("Status {"), "{text}");
        }
    }
}
