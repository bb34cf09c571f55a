//! Takes the descriptions of types and fields out of k8s-openapi and packs them, so that
//! `kubectl explain` has them without the program carrying a parsed copy.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value};

/// Every kind; the types they are made of follow by themselves.
fn roots(generator: &mut schemars::SchemaGenerator) {
    generator.subschema_for::<k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy>();
    generator.subschema_for::<k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicyBinding>();
    generator.subschema_for::<k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration>();
    generator.subschema_for::<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy>();
    generator
        .subschema_for::<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding>();
    generator.subschema_for::<k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration>();
    generator.subschema_for::<k8s_openapi::api::admissionregistration::v1alpha1::MutatingAdmissionPolicy>();
    generator
        .subschema_for::<k8s_openapi::api::admissionregistration::v1alpha1::MutatingAdmissionPolicyBinding>();
    generator.subschema_for::<k8s_openapi::api::admissionregistration::v1beta1::MutatingAdmissionPolicy>();
    generator
        .subschema_for::<k8s_openapi::api::admissionregistration::v1beta1::MutatingAdmissionPolicyBinding>();
    generator.subschema_for::<k8s_openapi::api::apiserverinternal::v1alpha1::StorageVersion>();
    generator.subschema_for::<k8s_openapi::api::apps::v1::ControllerRevision>();
    generator.subschema_for::<k8s_openapi::api::apps::v1::DaemonSet>();
    generator.subschema_for::<k8s_openapi::api::apps::v1::Deployment>();
    generator.subschema_for::<k8s_openapi::api::apps::v1::ReplicaSet>();
    generator.subschema_for::<k8s_openapi::api::apps::v1::StatefulSet>();
    generator.subschema_for::<k8s_openapi::api::authentication::v1::SelfSubjectReview>();
    generator.subschema_for::<k8s_openapi::api::authentication::v1::TokenRequest>();
    generator.subschema_for::<k8s_openapi::api::authentication::v1::TokenReview>();
    generator.subschema_for::<k8s_openapi::api::authorization::v1::LocalSubjectAccessReview>();
    generator.subschema_for::<k8s_openapi::api::authorization::v1::SelfSubjectAccessReview>();
    generator.subschema_for::<k8s_openapi::api::authorization::v1::SelfSubjectRulesReview>();
    generator.subschema_for::<k8s_openapi::api::authorization::v1::SubjectAccessReview>();
    generator.subschema_for::<k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler>();
    generator.subschema_for::<k8s_openapi::api::autoscaling::v1::Scale>();
    generator.subschema_for::<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>();
    generator.subschema_for::<k8s_openapi::api::batch::v1::CronJob>();
    generator.subschema_for::<k8s_openapi::api::batch::v1::Job>();
    generator.subschema_for::<k8s_openapi::api::certificates::v1::CertificateSigningRequest>();
    generator.subschema_for::<k8s_openapi::api::certificates::v1alpha1::ClusterTrustBundle>();
    generator.subschema_for::<k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle>();
    generator.subschema_for::<k8s_openapi::api::certificates::v1beta1::PodCertificateRequest>();
    generator.subschema_for::<k8s_openapi::api::coordination::v1::Lease>();
    generator.subschema_for::<k8s_openapi::api::coordination::v1alpha2::LeaseCandidate>();
    generator.subschema_for::<k8s_openapi::api::coordination::v1beta1::LeaseCandidate>();
    generator.subschema_for::<k8s_openapi::api::core::v1::Binding>();
    generator.subschema_for::<k8s_openapi::api::core::v1::ComponentStatus>();
    generator.subschema_for::<k8s_openapi::api::core::v1::ConfigMap>();
    generator.subschema_for::<k8s_openapi::api::core::v1::Endpoints>();
    generator.subschema_for::<k8s_openapi::api::core::v1::Event>();
    generator.subschema_for::<k8s_openapi::api::core::v1::LimitRange>();
    generator.subschema_for::<k8s_openapi::api::core::v1::Namespace>();
    generator.subschema_for::<k8s_openapi::api::core::v1::Node>();
    generator.subschema_for::<k8s_openapi::api::core::v1::PersistentVolume>();
    generator.subschema_for::<k8s_openapi::api::core::v1::PersistentVolumeClaim>();
    generator.subschema_for::<k8s_openapi::api::core::v1::Pod>();
    generator.subschema_for::<k8s_openapi::api::core::v1::PodTemplate>();
    generator.subschema_for::<k8s_openapi::api::core::v1::ReplicationController>();
    generator.subschema_for::<k8s_openapi::api::core::v1::ResourceQuota>();
    generator.subschema_for::<k8s_openapi::api::core::v1::Secret>();
    generator.subschema_for::<k8s_openapi::api::core::v1::Service>();
    generator.subschema_for::<k8s_openapi::api::core::v1::ServiceAccount>();
    generator.subschema_for::<k8s_openapi::api::discovery::v1::EndpointSlice>();
    generator.subschema_for::<k8s_openapi::api::events::v1::Event>();
    generator.subschema_for::<k8s_openapi::api::flowcontrol::v1::FlowSchema>();
    generator.subschema_for::<k8s_openapi::api::flowcontrol::v1::PriorityLevelConfiguration>();
    generator.subschema_for::<k8s_openapi::api::networking::v1::IPAddress>();
    generator.subschema_for::<k8s_openapi::api::networking::v1::Ingress>();
    generator.subschema_for::<k8s_openapi::api::networking::v1::IngressClass>();
    generator.subschema_for::<k8s_openapi::api::networking::v1::NetworkPolicy>();
    generator.subschema_for::<k8s_openapi::api::networking::v1::ServiceCIDR>();
    generator.subschema_for::<k8s_openapi::api::networking::v1beta1::IPAddress>();
    generator.subschema_for::<k8s_openapi::api::networking::v1beta1::ServiceCIDR>();
    generator.subschema_for::<k8s_openapi::api::node::v1::RuntimeClass>();
    generator.subschema_for::<k8s_openapi::api::policy::v1::Eviction>();
    generator.subschema_for::<k8s_openapi::api::policy::v1::PodDisruptionBudget>();
    generator.subschema_for::<k8s_openapi::api::rbac::v1::ClusterRole>();
    generator.subschema_for::<k8s_openapi::api::rbac::v1::ClusterRoleBinding>();
    generator.subschema_for::<k8s_openapi::api::rbac::v1::Role>();
    generator.subschema_for::<k8s_openapi::api::rbac::v1::RoleBinding>();
    generator.subschema_for::<k8s_openapi::api::resource::v1::DeviceClass>();
    generator.subschema_for::<k8s_openapi::api::resource::v1::ResourceClaim>();
    generator.subschema_for::<k8s_openapi::api::resource::v1::ResourceClaimTemplate>();
    generator.subschema_for::<k8s_openapi::api::resource::v1::ResourceSlice>();
    generator.subschema_for::<k8s_openapi::api::resource::v1alpha3::DeviceTaintRule>();
    generator.subschema_for::<k8s_openapi::api::resource::v1alpha3::ResourcePoolStatusRequest>();
    generator.subschema_for::<k8s_openapi::api::resource::v1beta1::DeviceClass>();
    generator.subschema_for::<k8s_openapi::api::resource::v1beta1::ResourceClaim>();
    generator.subschema_for::<k8s_openapi::api::resource::v1beta1::ResourceClaimTemplate>();
    generator.subschema_for::<k8s_openapi::api::resource::v1beta1::ResourceSlice>();
    generator.subschema_for::<k8s_openapi::api::resource::v1beta2::DeviceClass>();
    generator.subschema_for::<k8s_openapi::api::resource::v1beta2::DeviceTaintRule>();
    generator.subschema_for::<k8s_openapi::api::resource::v1beta2::ResourceClaim>();
    generator.subschema_for::<k8s_openapi::api::resource::v1beta2::ResourceClaimTemplate>();
    generator.subschema_for::<k8s_openapi::api::resource::v1beta2::ResourceSlice>();
    generator.subschema_for::<k8s_openapi::api::scheduling::v1::PriorityClass>();
    generator.subschema_for::<k8s_openapi::api::scheduling::v1alpha2::PodGroup>();
    generator.subschema_for::<k8s_openapi::api::scheduling::v1alpha2::Workload>();
    generator.subschema_for::<k8s_openapi::api::storage::v1::CSIDriver>();
    generator.subschema_for::<k8s_openapi::api::storage::v1::CSINode>();
    generator.subschema_for::<k8s_openapi::api::storage::v1::CSIStorageCapacity>();
    generator.subschema_for::<k8s_openapi::api::storage::v1::StorageClass>();
    generator.subschema_for::<k8s_openapi::api::storage::v1::VolumeAttachment>();
    generator.subschema_for::<k8s_openapi::api::storage::v1::VolumeAttributesClass>();
    generator.subschema_for::<k8s_openapi::api::storage::v1beta1::VolumeAttributesClass>();
    generator.subschema_for::<k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration>();
    generator.subschema_for::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>();
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup>();
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::APIVersions>();
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions>();
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Status>();
    generator.subschema_for::<k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService>();
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut generator = schemars::SchemaGenerator::default();
    roots(&mut generator);
    let mut types = Map::new();
    for (name, schema) in generator.definitions() {
        let mut texts = Map::new();
        if let Some(text) = schema.get("description") {
            texts.insert(String::new(), text.clone());
        }
        for (field, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if let Some(text) = schema.get("description") {
                texts.insert(field.clone(), text.clone());
            }
        }
        types.insert(name.clone(), Value::Object(texts));
    }
    assert!(types.len() > 500, "k8s-openapi gave {} types only", types.len());
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let file =
        std::fs::File::create(Path::new(&out).join("descriptions.json.gz")).expect("create the packed file");
    // Versions of a type side by side: their texts are mostly the same, and gzip does not look far back.
    let mut types: Vec<(String, Value)> = types.into_iter().collect();
    types.sort_by_cached_key(|(name, _)| (name.rsplit('.').next().map(str::to_owned), name.clone()));
    let types: Vec<String> = types.iter().map(|(name, texts)| format!("{name:?}:{texts}")).collect();
    let mut gzip = GzEncoder::new(file, Compression::best());
    write!(gzip, "{{{}}}", types.join(",")).expect("write the packed file");
    gzip.finish().expect("finish the packed file");
}
