//! What kinds the API server serves: for controllers that treat all kinds alike.

use kube::discovery::{ApiResource, Discovery, Scope};

/// One resource at its preferred version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) api: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Served {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|served| served == verb)
    }

    /// The API of this resource in a namespace, or of the whole cluster.
    pub(crate) fn in_namespace(
        &self,
        client: &kube::Client,
        namespace: &str,
    ) -> kube::Api<kube::api::DynamicObject> {
        if self.namespaced && !namespace.is_empty() {
            kube::Api::namespaced_with(client.clone(), namespace, &self.api)
        } else {
            kube::Api::all_with(client.clone(), &self.api)
        }
    }
}

/// Everything served, and the group versions of which nothing is known at the moment (an
/// aggregated API server that does not answer).
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    pub(crate) resources: Vec<Served>,
    pub(crate) failed: Vec<String>,
}

/// Ask for everything: two requests where the server knows aggregated discovery.
pub(crate) async fn discover(client: &kube::Client) -> Result<Discovered, kube::Error> {
    let groups = client.list_api_groups_aggregated().await;
    let core = client.list_core_api_versions_aggregated().await;
    let (Ok(groups), Ok(core)) = (groups, core) else { return discover_plainly(client).await };
    if core.items.is_empty() {
        return discover_plainly(client).await;
    }
    let mut found = Discovered::default();
    for group in core.items.into_iter().chain(groups.items) {
        let name = group.metadata.and_then(|meta| meta.name).unwrap_or_default();
        // The preferred version is the first; a resource counts once, at the first that has it.
        for version in group.versions {
            let number = version.version.unwrap_or_default();
            let api_version = if name.is_empty() { number.clone() } else { format!("{name}/{number}") };
            if version.freshness.as_deref() == Some("Stale") {
                found.failed.push(api_version.clone());
            }
            for resource in version.resources {
                let plural = resource.resource.unwrap_or_default();
                if found.resources.iter().any(|r| r.api.group == name && r.api.plural == plural) {
                    continue;
                }
                let kind = resource.response_kind.and_then(|kind| kind.kind).unwrap_or_default();
                found.resources.push(Served {
                    namespaced: resource.scope.as_deref() == Some("Namespaced"),
                    verbs: resource.verbs,
                    api: ApiResource {
                        group: name.clone(),
                        version: number.clone(),
                        api_version: api_version.clone(),
                        kind,
                        plural,
                    },
                });
            }
        }
    }
    Ok(found)
}

async fn discover_plainly(client: &kube::Client) -> Result<Discovered, kube::Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut found = Discovered::default();
    for group in discovery.groups() {
        for (api, capabilities) in group.resources_by_stability() {
            found.resources.push(Served {
                api,
                namespaced: capabilities.scope == Scope::Namespaced,
                verbs: capabilities.operations,
            });
        }
    }
    Ok(found)
}
