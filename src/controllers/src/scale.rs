//! The scale subresource of whatever has one.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::ReplicationController;
use kedge_client::Error;
use kube::Api;
use kube::api::DynamicObject;
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;

/// The API of a kind; custom ones are looked up.
pub(crate) async fn api_of(
    client: &kube::Client,
    api_version: &str,
    kind: &str,
    namespace: &str,
) -> Result<(Api<DynamicObject>, ApiResource), Error> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = match (group, kind) {
        ("apps", "Deployment") => ApiResource::erase::<Deployment>(&()),
        ("apps", "ReplicaSet") => ApiResource::erase::<ReplicaSet>(&()),
        ("apps", "StatefulSet") => ApiResource::erase::<StatefulSet>(&()),
        ("", "ReplicationController") => ApiResource::erase::<ReplicationController>(&()),
        _ => {
            let wanted = GroupVersionKind::gvk(group, version, kind);
            kube::discovery::pinned_kind(client, &wanted)
                .await
                .map_err(|error| match error {
                    kube::Error::Discovery(_) => {
                        Error::other(format!("no matches for kind \"{kind}\" in group \"{group}\""))
                    }
                    error => error.into(),
                })?
                .0
        }
    };
    Ok((Api::namespaced_with(client.clone(), namespace, &resource), resource))
}

/// What the subresource says.
pub(crate) async fn scale_of(api: &Api<DynamicObject>, name: &str) -> Result<Scale, Error> {
    Ok(api.get_scale(name).await?)
}
