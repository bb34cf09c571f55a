//! Which rules belong to which kind.

use serde_json::{Value, json};

use super::{
    Rules, addresses, autoscaling, certificates, config, crd, endpoint_slice, endpoints, events,
    flow_control, ingress, jobs, limit_range, network, network_policy, nodes, pod, policies, quota, rbac,
    scheduling, service, storage, storage_kinds, volumes, webhooks, workloads,
};
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

/// Kinds that a PUT creates too (`AllowCreateOnUpdate` of upstream's `registry/*/*/strategy.go`).
const CREATED_BY_PUT: &[&str] = &[
    "Endpoints",
    "Event",
    "LimitRange",
    "Service",
    "Lease",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
    "RuntimeClass",
];

/// Kinds whose updates name the version that they are of (`AllowUnconditionalUpdate`).
const VERSIONED: &[&str] = &[
    "APIService",
    "CSIDriver",
    "CSINode",
    "CSIStorageCapacity",
    "CustomResourceDefinition",
    "Lease",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "PodDisruptionBudget",
    "RuntimeClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
    "VolumeAttachment",
];

/// The rules of a built-in kind.
pub fn rules_for(group: &str, kind: &str) -> Rules {
    let base = Rules {
        generation: GENERATION.contains(&kind),
        status_keeps: status_keeps(group, kind),
        create_on_update: CREATED_BY_PUT.contains(&kind),
        update_names_version: VERSIONED.contains(&kind),
        ..Rules::PLAIN
    };
    match (group, kind) {
        ("", "Pod") => Rules {
            default: pod::default,
            create: pod::create,
            validate: pod::validate,
            validate_create: pod::validate_create,
            validate_update: super::pod_update::validate_update,
            update_status: pod::update_status,
            ..base
        },
        ("", "PodTemplate") => {
            Rules { default: pod::default_pod_template, validate: pod::validate_pod_template, ..base }
        }
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
            update: service::prepare_update,
            validate_create: service::validate,
            validate_update: service::update,
            status: || Some(json!({"loadBalancer": {}})),
            ..base
        },
        ("", "Endpoints") => Rules {
            default: network::default_endpoints,
            validate_create: endpoints::validate,
            validate_update: endpoints::update,
            ..base
        },
        ("discovery.k8s.io", "EndpointSlice") => Rules {
            default: network::default_endpoint_slice,
            validate_create: endpoint_slice::validate,
            validate_update: endpoint_slice::update,
            ..base
        },
        ("networking.k8s.io", "Ingress") => Rules {
            validate_create: ingress::validate_create,
            validate_update: ingress::update,
            status: || Some(json!({"loadBalancer": {}})),
            ..base
        },
        ("networking.k8s.io", "NetworkPolicy") => Rules {
            default: network::default_network_policy,
            validate_create: network_policy::validate,
            validate_update: network_policy::update,
            ..base
        },
        ("networking.k8s.io", "IngressClass") => Rules {
            default: network::default_ingress_class,
            validate_create: ingress::validate_class,
            validate_update: ingress::update_class,
            ..base
        },
        ("" | "events.k8s.io", "Event") => {
            Rules { validate_create: events::validate, validate_update: events::update, ..base }
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => Rules {
            default: flow_control::default_schema,
            validate_create: flow_control::validate_schema,
            validate_update: flow_control::update_schema,
            ..base
        },
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => Rules {
            default: flow_control::default_level,
            validate_create: flow_control::validate_level,
            validate_update: flow_control::update_level,
            ..base
        },
        ("networking.k8s.io", "IPAddress") => Rules {
            // One form of an address is one name.
            name: super::ips::canonical_address,
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
            validate_create: config::validate_namespace,
            status: || Some(json!({"phase": "Active"})),
            ..base
        },
        ("", "Node") => Rules {
            default: config::default_node,
            create: config::create_node,
            validate_create: nodes::validate,
            validate_update: nodes::update,
            status_on_create: true,
            ..base
        },
        ("", "LimitRange") => Rules {
            default: config::default_limit_range,
            validate_create: limit_range::validate,
            validate_update: limit_range::update,
            ..base
        },
        ("", "ResourceQuota") => Rules {
            validate_create: quota::validate,
            validate_update: quota::update,
            status: || Some(json!({})),
            ..base
        },
        ("policy", "PodDisruptionBudget") => Rules {
            validate_create: scheduling::validate_budget,
            validate_update: scheduling::update_budget,
            status: || {
                Some(
                    json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}),
                )
            },
            ..base
        },
        ("autoscaling", "HorizontalPodAutoscaler") => Rules {
            default: config::default_hpa,
            validate_create: autoscaling::validate,
            validate_update: autoscaling::update,
            status: || Some(json!({"desiredReplicas": 0})),
            ..base
        },
        ("scheduling.k8s.io", "PriorityClass") => Rules {
            default: config::default_priority_class,
            validate_create: scheduling::validate_priority_class,
            validate_update: scheduling::update_priority_class,
            ..base
        },
        ("coordination.k8s.io", "Lease") => Rules { validate: storage_kinds::validate_lease, ..base },
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => Rules {
            default: config::default_mutating_webhooks,
            validate_create: webhooks::validate,
            validate_update: webhooks::update,
            ..base
        },
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => Rules {
            default: config::default_webhooks,
            validate_create: webhooks::validate,
            validate_update: webhooks::update,
            ..base
        },
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => Rules {
            default: config::default_admission_policy,
            validate_create: policies::validating,
            validate_update: |c, new, old| c.ratchet(policies::validating, new, old),
            status: || Some(json!({})),
            ..base
        },
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => Rules {
            default: config::default_admission_policy,
            validate_create: policies::mutating,
            validate_update: |c, new, old| c.ratchet(policies::mutating, new, old),
            ..base
        },
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => Rules {
            default: config::default_admission_policy,
            validate_create: policies::validating_binding,
            validate_update: |c, new, old| c.ratchet(policies::validating_binding, new, old),
            ..base
        },
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding") => Rules {
            default: config::default_admission_policy,
            validate_create: policies::mutating_binding,
            validate_update: |c, new, old| c.ratchet(policies::mutating_binding, new, old),
            ..base
        },
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
            validate: certificates::conditions,
            validate_create: certificates::validate,
            validate_update: certificates::update,
            status: || Some(json!({})),
            ..base
        },
        ("", "PersistentVolume") => Rules {
            default: storage::default_pv,
            validate_create: volumes::validate_volume,
            validate_update: storage::update_pv,
            status: || Some(json!({"phase": "Pending"})),
            ..base
        },
        ("", "PersistentVolumeClaim") => Rules {
            default: storage::default_pvc,
            validate_create: volumes::validate_claim,
            validate_update: storage::update_pvc,
            status: || Some(json!({"phase": "Pending"})),
            ..base
        },
        ("storage.k8s.io", "StorageClass") => Rules {
            default: storage::default_storage_class,
            validate_create: storage_kinds::validate_class,
            validate_update: storage_kinds::update_class,
            ..base
        },
        ("storage.k8s.io", "VolumeAttributesClass") => Rules {
            validate_create: storage_kinds::validate_attributes_class,
            validate_update: storage_kinds::update_attributes_class,
            ..base
        },
        ("storage.k8s.io", "VolumeAttachment") => Rules {
            validate_create: storage_kinds::validate_attachment,
            validate_update: storage_kinds::update_attachment,
            ..base
        },
        ("storage.k8s.io", "CSIDriver") => Rules {
            default: storage::default_csi_driver,
            validate_create: storage_kinds::validate_driver,
            validate_update: storage_kinds::update_driver,
            ..base
        },
        ("storage.k8s.io", "CSINode") => Rules {
            validate_create: storage_kinds::validate_node,
            validate_update: storage_kinds::update_node,
            ..base
        },
        ("storage.k8s.io", "CSIStorageCapacity") => Rules {
            validate_create: storage_kinds::validate_capacity,
            validate_update: storage_kinds::update_capacity,
            ..base
        },
        ("node.k8s.io", "RuntimeClass") => {
            Rules { validate_create: nodes::validate_runtime, validate_update: nodes::update_runtime, ..base }
        }
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => Rules {
            name: names::path_segment,
            validate_create: rbac::validate_role,
            validate_update: rbac::update_role,
            ..base
        },
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => Rules {
            name: names::path_segment,
            default: rbac::default_binding,
            validate_create: rbac::validate_binding,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    /// What an object is told when it is made, and when it is sent again unchanged.
    fn told(mut obj: Value) -> Vec<String> {
        let (group, version) = crate::object::split_api_version(crate::object::api_version(&obj));
        let kind = crate::object::kind(&obj).to_owned();
        let registry = Registry::builtin();
        let r = registry
            .iter()
            .find(|r| *r.group == *group && *r.version == *version && *r.kind == *kind)
            .unwrap_or_else(|| panic!("{kind}"));
        r.strategy.default(&mut obj);
        r.strategy.prepare_create(&mut obj);
        let mut errors = r.strategy.validate(&obj);
        let mut again = obj.clone();
        r.strategy.prepare_update(&mut again, &obj);
        errors.extend(r.strategy.validate_update(&again, &obj));
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_clusters_are_made_of_is_valid() {
        let meta = json!({"name": "a", "namespace": "b"});
        let cluster = json!({"name": "a"});
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        for obj in [
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"clusterIP": "10.96.0.10", "ports": [
                {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "targetPort": "dns-tcp"}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"type": "ExternalName", "externalName": "a.b"}}),
            json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 6443, "name": "https"}]}]}),
            json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": meta}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4", "endpoints": null, "ports": null}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv6", "ports": [{"port": 80}],
                "endpoints": [{"addresses": ["fd00::1"], "conditions": {"ready": true}, "nodeName": "n", "targetRef": {"kind": "Pod", "name": "p"}}]}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": {"podSelector": {}}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": cluster, "spec": {"controller": "a.b/c"}}),
            json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": {"pods": "4", "count/deployments.apps": 2}}}),
            json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": meta, "spec": {"limits": [{"type": "Container", "default": {"cpu": 1}}]}}),
            json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "system-node-critical"}, "value": 2_000_001_000}),
            json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": meta, "spec": {"maxReplicas": 3,
                "targetCPUUtilizationPercentage": 80, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}}),
            json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta, "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {}},
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}}),
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": {"maxUnavailable": "50%", "selector": {}}}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": cluster, "status": {"capacity": {"cpu": "2", "pods": "110", "hugepages-2Mi": 0}}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": cluster}),
            json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": meta, "template": template}),
            json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": cluster, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": "/x"}, "claimRef": {"name": "c", "namespace": "n"}, "storageClassName": "kedge-hostpath"}}),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": cluster, "provisioner": "kedge.dev/hostpath"}),
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": cluster, "spec": {}}),
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": cluster, "spec": {"drivers": []}}),
            json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": cluster, "handler": "runc"}),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 40}}),
            json!({"apiVersion": "v1", "kind": "Event", "metadata": meta, "involvedObject": {"namespace": "b"}, "reason": "r", "type": "Normal"}),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "system:a"}, "rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "system:a"},
                "roleRef": {"kind": "ClusterRole", "name": "system:a"}, "subjects": [{"kind": "User", "name": "system:kube-scheduler"}]}),
            json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": cluster, "spec": {"priorityLevelConfiguration": {"name": "x"}}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]}}),
            json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration", "metadata": {"name": "exempt"}, "spec": {"type": "Exempt",
                "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}}),
        ] {
            assert_eq!(told(obj.clone()), Vec::<String>::new(), "{obj}");
        }
    }

    #[test]
    fn what_is_hooked_refuses() {
        let meta = json!({"name": "a", "namespace": "b"});
        for (obj, wanted) in [
            (
                json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": {"podSelector": {}, "policyTypes": ["ingress"]}}),
                r#"spec.policyTypes[0]: Unsupported value: "ingress": supported values: "Ingress", "Egress""#,
            ),
            (
                json!({"apiVersion": "v1", "kind": "Event", "metadata": meta, "involvedObject": {"namespace": "c"}}),
                "involvedObject.namespace: Invalid value: \"c\": does not match event.namespace",
            ),
        ] {
            assert_eq!(told(obj), [wanted], "once, for what was there before is not held against an update");
        }
        // The schema's word and the kind's are one.
        let nameless = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta, "roleRef": {"kind": "Role"}});
        let found = told(nameless);
        assert_eq!(found.iter().filter(|e| e.starts_with("roleRef.name")).count(), 2, "{found:?}");
        let orphan = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.0.0.1"},
            "spec": {"parentRef": {"resource": "services"}}});
        assert_eq!(told(orphan), ["spec.parentRef.name: Required value"; 2]);
    }
}
