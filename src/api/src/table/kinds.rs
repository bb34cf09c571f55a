//! Headers and rows of the built-in kinds. A header is a list of names; `#` marks
//! an integer, `+` a column of wide output.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::duration::{age, human_duration};
use super::pod;
use super::rows::{event, hpa, job, load_balancer, node, service};
use super::values::{access_modes, containers, int, join, labels, len, list, or, selector, some, text};
use crate::object::{self, get, get_str};

pub(super) fn header(group: &str, kind: &str) -> &'static str {
    match (group, kind) {
        ("", "Pod") => "Name|Ready|Status|Restarts|Age|IP+|Node+|Nominated Node+|Readiness Gates+",
        ("", "PodTemplate") => "Name|Containers|Images|Pod Labels",
        ("policy", "PodDisruptionBudget") => "Name|Min Available|Max Unavailable|Allowed Disruptions#|Age",
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            "Name|Desired#|Current#|Ready#|Age|Containers+|Images+|Selector+"
        }
        ("apps", "DaemonSet") => {
            "Name|Desired#|Current#|Ready#|Up-to-date#|Available#|Node Selector|Age|Containers+|Images+|Selector+"
        }
        ("batch", "Job") => "Name|Status|Completions|Duration|Age|Containers+|Images+|Selector+",
        ("batch", "CronJob") => {
            "Name|Schedule|Timezone|Suspend|Active#|Last Schedule|Age|Containers+|Images+|Selector+"
        }
        ("", "Service") => "Name|Type|Cluster-IP|External-IP|Port(s)|Age|Selector+",
        ("networking.k8s.io", "Ingress") => "Name|Class|Hosts|Address|Ports|Age",
        ("networking.k8s.io", "IngressClass") => "Name|Controller|Parameters|Age",
        ("networking.k8s.io", "NetworkPolicy") => "Name|Pod-Selector|Age",
        ("networking.k8s.io", "IPAddress") => "Name|ParentRef",
        ("networking.k8s.io", "ServiceCIDR") => "Name|CIDRs|Age",
        ("apps", "StatefulSet") => "Name|Ready|Age|Containers+|Images+",
        ("apps", "Deployment") => "Name|Ready|Up-to-date#|Available#|Age|Containers+|Images+|Selector+",
        ("apps", "ControllerRevision") => "Name|Controller|Revision#|Age",
        ("", "Endpoints") => "Name|Endpoints|Age",
        ("discovery.k8s.io", "EndpointSlice") => "Name|AddressType|Ports|Endpoints|Age",
        ("", "Node") => {
            "Name|Status|Roles|Age|Version|Internal-IP+|External-IP+|OS-Image+|Kernel-Version+|Container-Runtime+"
        }
        ("", "Event") | ("events.k8s.io", "Event") => {
            "Last Seen|Type|Reason|Object|Subobject+|Source+|Message|First Seen+|Count#+|Name+"
        }
        ("", "Namespace") => "Name|Status|Age",
        ("", "Secret") => "Name|Type|Data#|Age",
        ("", "ServiceAccount") => "Name|Secrets#|Age",
        ("", "ConfigMap") => "Name|Data#|Age",
        ("", "PersistentVolume") => {
            "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|VolumeMode+"
        }
        ("", "PersistentVolumeClaim") => {
            "Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|VolumeMode+"
        }
        ("", "ComponentStatus") => "Name|Status|Message|Error",
        ("", "ResourceQuota") => "Name|Request|Limit|Age",
        ("autoscaling", "Scale") => "Name|Desired#|Available#|Age",
        ("autoscaling", _) => "Name|Reference|Targets|MinPods|MaxPods|Replicas#|Age",
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            "Name|Role|Age|Users+|Groups+|ServiceAccounts+"
        }
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => "Name|Created At",
        ("certificates.k8s.io", _) => "Name|Age|SignerName|Requestor|RequestedDuration|Condition",
        ("coordination.k8s.io", "Lease") => "Name|Holder|Age",
        ("storage.k8s.io", "StorageClass") => {
            "Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age"
        }
        ("storage.k8s.io", "VolumeAttributesClass") => "Name|DriverName|Age",
        ("storage.k8s.io", "VolumeAttachment") => "Name|Attacher|PV|Node|Attached|Age",
        ("storage.k8s.io", "CSINode") => "Name|Drivers#|Age",
        ("storage.k8s.io", "CSIDriver") => {
            "Name|AttachRequired|PodInfoOnMount|StorageCapacity|TokenRequests|RequiresRepublish|Modes|Age"
        }
        ("scheduling.k8s.io", "PriorityClass") => "Name|Value#|Global-Default|Age|PreemptionPolicy",
        ("node.k8s.io", "RuntimeClass") => "Name|Handler|Age",
        ("apiextensions.k8s.io", _) => "Name|Created At",
        ("apiregistration.k8s.io", _) => "Name|Service|Available|Age",
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration",
        ) => "Name|Webhooks#|Age",
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => "Name|Validations#|ParamKind|Age",
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => "Name|Mutations#|ParamKind|Age",
        ("admissionregistration.k8s.io", _) => "Name|PolicyName|ParamRef|Age",
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => {
            "Name|PriorityLevel|MatchingPrecedence|DistinguisherMethod|Age|MissingPL"
        }
        ("flowcontrol.apiserver.k8s.io", _) => {
            "Name|Type|NominalConcurrencyShares|Queues|HandSize|QueueLengthLimit|Age"
        }
        ("resource.k8s.io", "ResourceClaim") => "Name|State|Age",
        ("resource.k8s.io", "ResourceSlice") => "Name|Node|Driver|Pool|Age",
        // Kinds without a printer of their own (apiserver `NewDefaultTableConvertor`).
        ("", "LimitRange") | ("storage.k8s.io", "CSIStorageCapacity") => "Name|Created At",
        _ => "Name|Age",
    }
}

pub(super) fn cells(group: &str, kind: &str, o: &Value, now: Timestamp) -> Vec<Value> {
    let name = Value::from(object::name(o));
    let old = Value::from(age(object::creation_timestamp(o), now));
    let created = Value::from(object::creation_timestamp(o).unwrap_or("<unknown>"));
    match (group, kind) {
        ("", "Pod") => pod::cells(o, now),
        ("", "PodTemplate") => {
            let [c, i] = containers(o, "/template/spec/containers");
            vec![name, c, i, labels(get(o, "/template/metadata/labels"))]
        }
        ("policy", "PodDisruptionBudget") => vec![
            name,
            or(o, "/spec/minAvailable", "N/A"),
            or(o, "/spec/maxUnavailable", "N/A"),
            int(o, "/status/disruptionsAllowed"),
            old,
        ],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            let [c, i] = containers(o, "/spec/template/spec/containers");
            let s = get(o, "/spec/selector");
            let s = if group.is_empty() { labels(s) } else { selector(s, "<none>") };
            vec![
                name,
                int(o, "/spec/replicas"),
                int(o, "/status/replicas"),
                int(o, "/status/readyReplicas"),
                old,
                c,
                i,
                s,
            ]
        }
        ("apps", "DaemonSet") => {
            let [c, i] = containers(o, "/spec/template/spec/containers");
            vec![
                name,
                int(o, "/status/desiredNumberScheduled"),
                int(o, "/status/currentNumberScheduled"),
                int(o, "/status/numberReady"),
                int(o, "/status/updatedNumberScheduled"),
                int(o, "/status/numberAvailable"),
                labels(get(o, "/spec/template/spec/nodeSelector")),
                old,
                c,
                i,
                selector(get(o, "/spec/selector"), "<none>"),
            ]
        }
        ("apps", "Deployment") => {
            let [c, i] = containers(o, "/spec/template/spec/containers");
            let ready = format!("{}/{}", int(o, "/status/readyReplicas"), int(o, "/spec/replicas"));
            vec![
                name,
                ready.into(),
                int(o, "/status/updatedReplicas"),
                int(o, "/status/availableReplicas"),
                old,
                c,
                i,
                selector(get(o, "/spec/selector"), "<none>"),
            ]
        }
        ("apps", "StatefulSet") => {
            let [c, i] = containers(o, "/spec/template/spec/containers");
            let ready = format!("{}/{}", int(o, "/status/readyReplicas"), int(o, "/spec/replicas"));
            vec![name, ready.into(), old, c, i]
        }
        ("apps", "ControllerRevision") => {
            let owner = object::owner_references(o).iter().find(|r| r["controller"] == true);
            let controller = owner.map_or_else(
                || "<none>".to_string(),
                |r| {
                    let (group, _) = object::split_api_version(get_str(r, "/apiVersion"));
                    let kind = get_str(r, "/kind").to_lowercase();
                    let dot = if group.is_empty() { "" } else { "." };
                    format!("{kind}{dot}{group}/{}", get_str(r, "/name"))
                },
            );
            vec![name, controller.into(), int(o, "/revision"), old]
        }
        ("batch", "Job") => job(o, name, old, now),
        ("batch", "CronJob") => {
            let [c, i] = containers(o, "/spec/jobTemplate/spec/template/spec/containers");
            let last = get(o, "/status/lastScheduleTime").as_str();
            let suspend = if get(o, "/spec/suspend").as_bool() == Some(true) { "True" } else { "False" };
            vec![
                name,
                text(o, "/spec/schedule"),
                or(o, "/spec/timeZone", "<none>"),
                suspend.into(),
                len(o, "/status/active").into(),
                last.map_or_else(|| "<none>".into(), |t| age(Some(t), now).into()),
                old,
                c,
                i,
                selector(get(o, "/spec/jobTemplate/spec/selector"), "<none>"),
            ]
        }
        ("", "Service") => service(o, name, old),
        ("networking.k8s.io", "Ingress") => {
            let hosts: Vec<String> = list(o, "/spec/rules")
                .iter()
                .map(|r| get_str(r, "/host"))
                .filter(|h| !h.is_empty())
                .map(str::to_string)
                .collect();
            let ports = if len(o, "/spec/tls") > 0 { "80, 443" } else { "80" };
            vec![
                name,
                or(o, "/spec/ingressClassName", "<none>"),
                some(&hosts, 3, "*"),
                load_balancer(o),
                ports.into(),
                old,
            ]
        }
        ("networking.k8s.io", "IngressClass") => {
            let p = get(o, "/spec/parameters");
            let parameters = if p.is_object() {
                let group = get_str(p, "/apiGroup");
                let dot = if group.is_empty() { "" } else { "." };
                format!("{}{dot}{group}/{}", get_str(p, "/kind"), get_str(p, "/name"))
            } else {
                "<none>".to_string()
            };
            vec![name, text(o, "/spec/controller"), parameters.into(), old]
        }
        ("networking.k8s.io", "NetworkPolicy") => {
            vec![name, selector(get(o, "/spec/podSelector"), "<none>"), old]
        }
        ("networking.k8s.io", "IPAddress") => {
            let p = get(o, "/spec/parentRef");
            let parts = ["/group", "/resource", "/namespace", "/name"].map(|f| get_str(p, f));
            let shown: Vec<String> =
                parts.iter().filter(|s| !s.is_empty()).map(ToString::to_string).collect();
            vec![name, if shown.is_empty() { "<none>".into() } else { join(shown.into_iter(), "/") }]
        }
        ("networking.k8s.io", "ServiceCIDR") => {
            let all = list(o, "/spec/cidrs").iter().filter_map(Value::as_str).map(str::to_string);
            vec![name, join(all, ","), old]
        }
        ("", "Endpoints") => {
            let mut all = Vec::new();
            for s in list(o, "/subsets") {
                for a in list(s, "/addresses") {
                    let ip = get_str(a, "/ip");
                    if list(s, "/ports").is_empty() {
                        all.push(ip.to_string());
                    }
                    for p in list(s, "/ports") {
                        let port = int(p, "/port");
                        all.push(if ip.contains(':') {
                            format!("[{ip}]:{port}")
                        } else {
                            format!("{ip}:{port}")
                        });
                    }
                }
            }
            vec![name, some(&all, 3, "<none>"), old]
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            let port = |p: &Value| match get(p, "/port") {
                Value::Null => "*".to_string(),
                n => n.to_string(),
            };
            let ports: Vec<String> = list(o, "/ports").iter().map(port).collect();
            let addresses: Vec<String> = list(o, "/endpoints")
                .iter()
                .flat_map(|e| list(e, "/addresses"))
                .filter_map(Value::as_str)
                .map(str::to_string)
                .collect();
            vec![
                name,
                text(o, "/addressType"),
                some(&ports, 3, "<unset>"),
                some(&addresses, 3, "<unset>"),
                old,
            ]
        }
        ("", "Node") => node(o, name, old),
        (_, "Event") => event(o, name, now),
        ("", "Namespace") => vec![name, text(o, "/status/phase"), old],
        ("", "Secret") => vec![name, text(o, "/type"), len(o, "/data").into(), old],
        ("", "ServiceAccount") => vec![name, len(o, "/secrets").into(), old],
        ("", "ConfigMap") => vec![name, (len(o, "/data") + len(o, "/binaryData")).into(), old],
        ("", "PersistentVolume") => {
            let claim = get(o, "/spec/claimRef");
            let claim = if claim.is_object() {
                format!("{}/{}", get_str(claim, "/namespace"), get_str(claim, "/name"))
            } else {
                String::new()
            };
            vec![
                name,
                or(o, "/spec/capacity/storage", ""),
                access_modes(o, "/spec/accessModes"),
                text(o, "/spec/persistentVolumeReclaimPolicy"),
                phase(o),
                claim.into(),
                text(o, "/spec/storageClassName"),
                or(o, "/spec/volumeAttributesClassName", "<unset>"),
                text(o, "/status/reason"),
                old,
                or(o, "/spec/volumeMode", "<unset>"),
            ]
        }
        ("", "PersistentVolumeClaim") => {
            let bound = !get_str(o, "/spec/volumeName").is_empty();
            let (capacity, modes) = if bound {
                (or(o, "/status/capacity/storage", "0"), access_modes(o, "/status/accessModes"))
            } else {
                ("".into(), "".into())
            };
            vec![
                name,
                phase(o),
                text(o, "/spec/volumeName"),
                capacity,
                modes,
                text(o, "/spec/storageClassName"),
                or(o, "/spec/volumeAttributesClassName", "<unset>"),
                old,
                or(o, "/spec/volumeMode", "<unset>"),
            ]
        }
        ("", "ComponentStatus") => {
            let c = get(o, "/conditions/0");
            let status = match get_str(c, "/status") {
                "True" => "Healthy",
                "False" => "Unhealthy",
                _ => "Unknown",
            };
            vec![name, status.into(), text(c, "/message"), text(c, "/error")]
        }
        ("", "ResourceQuota") => {
            let (mut requests, mut limits) = (Vec::new(), Vec::new());
            for (k, hard) in get(o, "/status/hard").as_object().unwrap_or(&Map::new()) {
                let used = get(o, "/status/used").get(k).and_then(Value::as_str).unwrap_or("0");
                let entry = format!("{k}: {used}/{}", hard.as_str().unwrap_or("0"));
                if k.starts_with("limits.") { limits.push(entry) } else { requests.push(entry) }
            }
            vec![name, join(requests.into_iter(), ", "), join(limits.into_iter(), ", "), old]
        }
        ("autoscaling", "Scale") => {
            vec![name, int(o, "/spec/replicas"), int(o, "/status/replicas"), old]
        }
        ("autoscaling", _) => hpa(o, name, old),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            let role = format!("{}/{}", get_str(o, "/roleRef/kind"), get_str(o, "/roleRef/name"));
            let of = |kind: &str| {
                let found = list(o, "/subjects").iter().filter(|s| s["kind"] == kind);
                join(
                    found.map(|s| match (kind, get_str(s, "/namespace")) {
                        ("ServiceAccount", ns) if !ns.is_empty() => format!("{ns}/{}", get_str(s, "/name")),
                        _ => get_str(s, "/name").to_string(),
                    }),
                    ", ",
                )
            };
            vec![name, role.into(), old, of("User"), of("Group"), of("ServiceAccount")]
        }
        ("rbac.authorization.k8s.io", _) | ("apiextensions.k8s.io", _) => vec![name, created],
        ("certificates.k8s.io", _) => {
            let requested = get(o, "/spec/expirationSeconds")
                .as_i64()
                .map_or_else(|| "<none>".to_string(), human_duration);
            let has = |t: &str| list(o, "/status/conditions").iter().any(|c| c["type"] == t);
            let mut status = if has("Denied") {
                "Denied"
            } else if has("Approved") {
                "Approved"
            } else {
                "Pending"
            }
            .to_string();
            if has("Failed") {
                status.push_str(",Failed");
            }
            if !get_str(o, "/status/certificate").is_empty() {
                status.push_str(",Issued");
            }
            vec![
                name,
                old,
                or(o, "/spec/signerName", "<none>"),
                text(o, "/spec/username"),
                requested.into(),
                status.into(),
            ]
        }
        ("coordination.k8s.io", "Lease") => vec![name, text(o, "/spec/holderIdentity"), old],
        ("storage.k8s.io", "StorageClass") => {
            let default =
                object::annotation(o, "storageclass.kubernetes.io/is-default-class") == Some("true");
            let shown = format!("{}{}", object::name(o), if default { " (default)" } else { "" });
            vec![
                shown.into(),
                text(o, "/provisioner"),
                or(o, "/reclaimPolicy", "Delete"),
                or(o, "/volumeBindingMode", "Immediate"),
                (get(o, "/allowVolumeExpansion").as_bool() == Some(true)).into(),
                old,
            ]
        }
        ("storage.k8s.io", "VolumeAttributesClass") => vec![name, text(o, "/driverName"), old],
        ("storage.k8s.io", "VolumeAttachment") => vec![
            name,
            text(o, "/spec/attacher"),
            text(o, "/spec/source/persistentVolumeName"),
            text(o, "/spec/nodeName"),
            (get(o, "/status/attached").as_bool() == Some(true)).into(),
            old,
        ],
        ("storage.k8s.io", "CSINode") => vec![name, len(o, "/spec/drivers").into(), old],
        ("storage.k8s.io", "CSIDriver") => {
            let flag = |p: &str, default: bool| Value::from(get(o, p).as_bool().unwrap_or(default));
            let tokens =
                join(list(o, "/spec/tokenRequests").iter().map(|t| get_str(t, "/audience").to_string()), ",");
            let modes = join(
                list(o, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str).map(str::to_string),
                ",",
            );
            let unset = |v: Value| if v == "" { Value::from("<unset>") } else { v };
            vec![
                name,
                flag("/spec/attachRequired", true),
                flag("/spec/podInfoOnMount", false),
                flag("/spec/storageCapacity", false),
                unset(tokens),
                flag("/spec/requiresRepublish", false),
                unset(modes),
                old,
            ]
        }
        ("scheduling.k8s.io", "PriorityClass") => vec![
            name,
            int(o, "/value"),
            (get(o, "/globalDefault").as_bool() == Some(true)).into(),
            old,
            or(o, "/preemptionPolicy", "PreemptLowerPriority"),
        ],
        ("node.k8s.io", "RuntimeClass") => vec![name, text(o, "/handler"), old],
        ("apiregistration.k8s.io", _) => {
            let s = get(o, "/spec/service");
            let service = if s.is_object() {
                format!("{}/{}", get_str(s, "/namespace"), get_str(s, "/name"))
            } else {
                "Local".to_string()
            };
            let c = list(o, "/status/conditions").iter().find(|c| c["type"] == "Available");
            let available = c.map_or_else(
                || "Unknown".to_string(),
                |c| match get_str(c, "/status") {
                    "True" => "True".to_string(),
                    s => format!("{s} ({})", get_str(c, "/reason")),
                },
            );
            vec![name, service.into(), available.into(), old]
        }
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration",
        ) => {
            vec![name, len(o, "/webhooks").into(), old]
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy") => {
            let rules = if kind.starts_with("Mutating") { "/spec/mutations" } else { "/spec/validations" };
            let params = get(o, "/spec/paramKind");
            let params = if params.is_object() {
                format!("{}/{}", get_str(params, "/apiVersion"), get_str(params, "/kind")).into()
            } else {
                "<unset>".into()
            };
            vec![name, len(o, rules).into(), params, old]
        }
        ("admissionregistration.k8s.io", _) => {
            let params = get(o, "/spec/paramRef");
            let params: Value = match (get_str(params, "/namespace"), get_str(params, "/name")) {
                (_, "") if get(params, "/selector").is_object() => {
                    selector(get(params, "/selector"), "<none>")
                }
                (_, "") => "<unset>".into(),
                ("", one) => one.into(),
                (namespace, one) => format!("{namespace}/{one}").into(),
            };
            vec![name, text(o, "/spec/policyName"), params, old]
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => {
            let dangling = list(o, "/status/conditions").iter().find(|c| c["type"] == "Dangling");
            vec![
                name,
                text(o, "/spec/priorityLevelConfiguration/name"),
                int(o, "/spec/matchingPrecedence"),
                or(o, "/spec/distinguisherMethod/type", "<none>"),
                old,
                dangling.map_or("?", |c| get_str(c, "/status")).into(),
            ]
        }
        ("flowcontrol.apiserver.k8s.io", _) => {
            let number = |path: &str| match get(o, path).as_i64() {
                Some(n) => Value::from(n),
                None => "<none>".into(),
            };
            vec![
                name,
                text(o, "/spec/type"),
                number("/spec/limited/nominalConcurrencyShares"),
                number("/spec/limited/limitResponse/queuing/queues"),
                number("/spec/limited/limitResponse/queuing/handSize"),
                number("/spec/limited/limitResponse/queuing/queueLengthLimit"),
                old,
            ]
        }
        ("resource.k8s.io", "ResourceClaim") => {
            let is_deleted = object::deletion_timestamp(o).is_some();
            let is_allocated = get(o, "/status/allocation").is_object();
            let is_reserved = is_allocated && len(o, "/status/reservedFor") > 0;
            let states = [
                (is_deleted, "deleted"),
                (!is_allocated && !is_deleted, "pending"),
                (is_allocated, "allocated"),
                (is_reserved, "reserved"),
            ];
            let states = states.iter().filter(|(is_so, _)| *is_so).map(|(_, word)| (*word).to_string());
            vec![name, join(states, ","), old]
        }
        ("resource.k8s.io", "ResourceSlice") => {
            vec![name, text(o, "/spec/nodeName"), text(o, "/spec/driver"), text(o, "/spec/pool/name"), old]
        }
        ("", "LimitRange") | ("storage.k8s.io", "CSIStorageCapacity") => vec![name, created],
        _ => vec![name, old],
    }
}

/// The phase, or that the object is being deleted.
fn phase(o: &Value) -> Value {
    if object::deletion_timestamp(o).is_some() { "Terminating".into() } else { text(o, "/status/phase") }
}
