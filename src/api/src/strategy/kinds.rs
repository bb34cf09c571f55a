//! Which rules belong to which kind.

use serde_json::{Value, json};

use super::{Rules, addresses, config, crd, expressions, jobs, network, pod, rbac, storage, workloads};
use crate::names;

/// Kinds whose `metadata.generation` counts changes.
const GENERATION: &[&str] = &[
    "Pod",
    "ReplicationController",
    "Deployment",
    "ReplicaSet",
    "DaemonSet",
    "StatefulSet",
    "Job",
    "CronJob",
    "PodDisruptionBudget",
    "Ingress",
    "IngressClass",
    "NetworkPolicy",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "FlowSchema",
    "PriorityLevelConfiguration",
    "EndpointSlice",
    "CSIDriver",
    "ResourceSlice",
    "DeviceClass",
    "PriorityClass",
];

/// Most status strategies take the sent metadata; these keep the stored one, whole or in part
/// (`PrepareForUpdate` of upstream's `registry/*/*/strategy.go`).
fn status_keeps(group: &str, kind: &str) -> &'static [&'static str] {
    match (group, kind) {
        ("apps", "Deployment") => &["annotations"],
        ("apiregistration.k8s.io", "APIService")
        | ("storage.k8s.io", "VolumeAttachment")
        | ("resource.k8s.io", "ResourceClaim") => &[],
        _ => &["labels", "annotations"],
    }
}

/// The rules of a built-in kind.
pub fn rules_for(group: &str, kind: &str) -> Rules {
    let base = Rules {
        generation: GENERATION.contains(&kind),
        status_keeps: status_keeps(group, kind),
        ..Rules::PLAIN
    };
    match (group, kind) {
        ("", "Pod") => Rules {
            default: pod::default,
            create: pod::create,
            validate: pod::validate,
            validate_update: pod::validate_update,
            update_status: pod::update_status,
            ..base
        },
        ("", "PodTemplate") => Rules { default: pod::default_pod_template, ..base },
        ("apps", "Deployment") => Rules {
            default: workloads::default_deployment,
            validate: workloads::validate_deployment,
            validate_update: workloads::update_selector,
            status: || Some(json!({})),
            ..base
        },
        ("apps", "ReplicaSet") => Rules {
            default: workloads::default_replica_set,
            validate: workloads::validate_replica_set,
            validate_update: workloads::update_selector,
            status: || Some(json!({"replicas": 0})),
            ..base
        },
        ("", "ReplicationController") => Rules {
            default: workloads::default_replication_controller,
            validate: workloads::validate_replication_controller,
            status: || Some(json!({"replicas": 0})),
            ..base
        },
        ("apps", "DaemonSet") => Rules {
            default: workloads::default_daemon_set,
            validate: workloads::validate_daemon_set,
            validate_update: workloads::update_selector,
            status: || {
                Some(
                    json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}),
                )
            },
            ..base
        },
        ("apps", "StatefulSet") => Rules {
            default: workloads::default_stateful_set,
            validate: workloads::validate_stateful_set,
            validate_update: workloads::update_stateful_set,
            status: || Some(json!({"replicas": 0, "availableReplicas": 0})),
            ..base
        },
        ("apps", "ControllerRevision") => Rules { validate_update: workloads::update_revision, ..base },
        ("batch", "Job") => Rules {
            default: jobs::default_job,
            create: jobs::create_job,
            validate: jobs::validate_job,
            validate_update: jobs::update_job,
            status: || Some(json!({})),
            ..base
        },
        ("batch", "CronJob") => Rules {
            default: jobs::default_cron_job,
            validate: jobs::validate_cron_job,
            status: || Some(json!({})),
            ..base
        },
        ("", "Service") => Rules {
            // RelaxedServiceNameValidation (KEP-5311), on from 1.36: a digit may come first.
            name: names::dns1123_label,
            default: network::default_service,
            validate: network::validate_service,
            status: || Some(json!({"loadBalancer": {}})),
            ..base
        },
        ("", "Endpoints") => Rules { default: network::default_endpoints, ..base },
        ("discovery.k8s.io", "EndpointSlice") => Rules {
            default: network::default_endpoint_slice,
            validate: network::validate_endpoint_slice,
            validate_update: network::update_endpoint_slice,
            ..base
        },
        ("networking.k8s.io", "Ingress") => Rules {
            validate: network::validate_ingress,
            status: || Some(json!({"loadBalancer": {}})),
            ..base
        },
        ("networking.k8s.io", "NetworkPolicy") => Rules { default: network::default_network_policy, ..base },
        ("networking.k8s.io", "IngressClass") => Rules { default: network::default_ingress_class, ..base },
        ("networking.k8s.io", "IPAddress") => Rules {
            name: addresses::address_name,
            validate: addresses::validate_address,
            validate_update: addresses::update_address,
            ..base
        },
        ("networking.k8s.io", "ServiceCIDR") => {
            let (validate_create, validate_update) = (addresses::validate_range, addresses::update_range);
            Rules { validate_create, validate_update, ..base }
        }
        ("", "ConfigMap") => Rules {
            validate: config::validate_config_map,
            validate_update: config::update_config_map,
            ..base
        },
        ("", "Secret") => Rules {
            default: config::default_secret,
            validate: config::validate_secret,
            validate_update: config::update_secret,
            ..base
        },
        ("", "Namespace") => Rules {
            name: names::dns1123_label,
            default: config::default_namespace,
            create: config::create_namespace,
            update: config::update_namespace,
            status: || Some(json!({"phase": "Active"})),
            ..base
        },
        ("", "Node") => Rules {
            default: config::default_node,
            create: config::create_node,
            validate: config::validate_node,
            validate_update: config::update_node,
            status_on_create: true,
            ..base
        },
        ("", "LimitRange") => Rules { default: config::default_limit_range, ..base },
        ("", "ResourceQuota") => Rules { status: || Some(json!({})), ..base },
        ("policy", "PodDisruptionBudget") => Rules {
            validate: config::validate_pdb,
            status: || {
                Some(
                    json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}),
                )
            },
            ..base
        },
        ("autoscaling", "HorizontalPodAutoscaler") => Rules {
            default: config::default_hpa,
            validate: config::validate_hpa,
            status: || Some(json!({"desiredReplicas": 0})),
            ..base
        },
        ("scheduling.k8s.io", "PriorityClass") => Rules {
            default: config::default_priority_class,
            validate_update: config::update_priority_class,
            ..base
        },
        ("coordination.k8s.io", "Lease") => Rules { validate: config::validate_lease, ..base },
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => Rules {
            default: config::default_mutating_webhooks,
            validate: expressions::webhooks,
            validate_create: expressions::new_webhooks,
            ..base
        },
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => Rules {
            default: config::default_webhooks,
            validate: expressions::webhooks,
            validate_create: expressions::new_webhooks,
            ..base
        },
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => Rules {
            default: config::default_admission_policy,
            validate: expressions::policy,
            validate_create: expressions::new_policy,
            status: || Some(json!({})),
            ..base
        },
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => Rules {
            default: config::default_admission_policy,
            validate: expressions::mutating_policy,
            validate_create: expressions::new_policy,
            ..base
        },
        ("admissionregistration.k8s.io", _) => Rules { default: config::default_admission_policy, ..base },
        ("apiregistration.k8s.io", "APIService") => Rules {
            default: config::default_api_service,
            validate: config::validate_api_service,
            status: || Some(json!({})),
            ..base
        },
        ("apiextensions.k8s.io", "CustomResourceDefinition") => Rules {
            default: crd::default,
            create: crd::create,
            update: crd::update,
            validate: crd::validate,
            validate_create: crd::validate_create,
            validate_update: crd::validate_update,
            status: || {
                Some(
                    json!({"conditions": null, "acceptedNames": {"kind": "", "plural": ""}, "storedVersions": null}),
                )
            },
            ..base
        },
        ("certificates.k8s.io", "CertificateSigningRequest") => Rules {
            default: config::default_csr,
            validate: config::validate_csr,
            validate_update: config::update_csr,
            status: || Some(json!({})),
            ..base
        },
        ("", "PersistentVolume") => Rules {
            default: storage::default_pv,
            validate: storage::validate_pv,
            validate_update: storage::update_pv,
            status: || Some(json!({"phase": "Pending"})),
            ..base
        },
        ("", "PersistentVolumeClaim") => Rules {
            default: storage::default_pvc,
            validate: storage::validate_pvc,
            validate_update: storage::update_pvc,
            status: || Some(json!({"phase": "Pending"})),
            ..base
        },
        ("storage.k8s.io", "StorageClass") => Rules {
            default: storage::default_storage_class,
            validate: storage::validate_storage_class,
            validate_update: storage::update_storage_class,
            ..base
        },
        ("storage.k8s.io", "CSIDriver") => Rules { default: storage::default_csi_driver, ..base },
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => {
            Rules { name: names::path_segment, validate: rbac::validate_role, ..base }
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => Rules {
            name: names::path_segment,
            default: rbac::default_binding,
            validate: rbac::validate_binding,
            validate_update: rbac::update_binding,
            ..base
        },
        _ => base,
    }
}

/// Copies the containers' resources: all that a resize may change.
pub(super) fn copy_resources(to: &mut Value, from: &Value) {
    for list in ["containers", "initContainers"] {
        let source = from["spec"][list].as_array().cloned().unwrap_or_default();
        let Some(items) = to["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        for item in items {
            let Some(new) = source.iter().find(|c| c["name"] == item["name"]) else { continue };
            for f in ["resources", "resizePolicy"] {
                if let Some(v) = new.get(f) {
                    item[f] = v.clone();
                }
            }
        }
    }
}
