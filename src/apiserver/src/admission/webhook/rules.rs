//! Which requests a webhook wants to see (`apiserver/pkg/admission/plugin/webhook/predicates`).

use std::sync::Arc;

use kedge_api::object;
use kedge_api::registry::Resource;
use kedge_api::selector::LabelSelector;
use kedge_base::Order as _;
use serde_json::Value;

use super::super::{Operation, Request};
use crate::conversion;
use crate::state::State;
use crate::verbs::read;

/// One `rules` entry.
#[derive(Debug, Default)]
pub(in crate::admission) struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn lists(list: &[String], wanted: &str) -> bool {
    list.iter().any(|own| own == "*" || own == wanted)
}

impl Rule {
    pub(in crate::admission) fn new(value: &Value) -> Self {
        Self {
            operations: strings(&value["operations"]),
            groups: strings(&value["apiGroups"]),
            versions: strings(&value["apiVersions"]),
            resources: strings(&value["resources"]),
            scope: value["scope"].as_str().unwrap_or("*").to_owned(),
        }
    }

    pub(in crate::admission) fn matches(
        &self,
        resource: &Resource,
        subresource: &str,
        operation: Operation,
        namespaced: bool,
    ) -> bool {
        lists(&self.operations, operation.as_str())
            && lists(&self.groups, &resource.group)
            && lists(&self.versions, &resource.version)
            && match self.scope.as_str() {
                "Namespaced" => namespaced,
                "Cluster" => !namespaced,
                _ => true,
            }
            && self.resources.iter().any(|own| {
                let (name, part) = own.split_once('/').unwrap_or((own, ""));
                (name == "*" || *name == *resource.plural)
                    && (part == subresource || (part == "*" && own.contains('/')))
            })
    }
}

/// Whose objects a webhook wants to see.
pub(in crate::admission) struct Selectors {
    namespace: LabelSelector,
    object: LabelSelector,
}

impl Selectors {
    /// A selector that cannot be read selects nothing.
    pub(in crate::admission) fn new(webhook: &Value) -> Self {
        let read = |field: &str| match &webhook[field] {
            Value::Null => LabelSelector::everything(),
            selector => LabelSelector::from_object(selector).unwrap_or_else(|_| LabelSelector::nothing()),
        };
        Self { namespace: read("namespaceSelector"), object: read("objectSelector") }
    }

    pub(in crate::admission) fn matches(&self, request: &Request<'_>, value: &Value) -> bool {
        self.in_namespace(request, value)
            && (self.object.is_everything()
                || (request.operation != Operation::Delete && self.object.matches_object(value))
                || request.old.is_some_and(|old| self.object.matches_object(old)))
    }

    fn in_namespace(&self, request: &Request<'_>, value: &Value) -> bool {
        if self.namespace.is_everything() {
            return true;
        }
        if request.is("", "namespaces") {
            let own =
                if request.operation == Operation::Delete { request.old.unwrap_or(value) } else { value };
            return self.namespace.matches_object(own);
        }
        if request.namespace.is_empty() {
            return true;
        }
        let stored = request.state.cache.bucket("namespaces").get(&format!("/{}", request.namespace));
        stored.is_some_and(|stored| self.namespace.matches(|key| stored.extracted.label(key)))
    }
}

/// The resource in the version that a webhook wants to see: the request's own, or with matchPolicy
/// "Equivalent" another one of the same objects.
pub(in crate::admission) fn version_for(
    rules: &[Rule],
    equivalent: bool,
    request: &Request<'_>,
) -> Option<Arc<Resource>> {
    let namespaced = !request.namespace.is_empty() && !request.is("", "namespaces");
    let matches = |resource: &Resource| {
        rules.iter().any(|rule| rule.matches(resource, request.subresource, request.operation, namespaced))
    };
    if matches(request.resource) {
        return Some(request.resource.clone());
    }
    if !equivalent {
        return None;
    }
    let registry = request.state.registry.read();
    registry
        .iter()
        .find(|other| {
            other.storage_key == request.resource.storage_key
                && other.api_version() != request.resource.api_version()
                && matches(other)
        })
        .cloned()
}

/// The object in another version of its resource.
pub(in crate::admission) async fn converted(
    state: &Arc<State>,
    from: &Resource,
    to: &Resource,
    value: &Value,
) -> Result<Value, kedge_api::status::Status> {
    if from.api_version() == to.api_version() || !value.is_object() {
        return Ok(value.clone());
    }
    if to.conversion.is_some() {
        return conversion::from_storage(state, to, value.clone()).await;
    }
    to.from_storage(from.to_storage(value.clone())?)
}

/// The cached configurations of one kind, by name.
pub(in crate::admission) fn configurations(state: &crate::state::State, storage_key: &str) -> Vec<Value> {
    let objects = state.cache.bucket(storage_key).objects();
    let mut all: Vec<Value> = objects.values().filter_map(|stored| read::parse(&stored.bytes).ok()).collect();
    all.order_by(|a, b| object::name(a).cmp(object::name(b)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_api::registry::Registry;
    use serde_json::json;

    #[test]
    fn rules() {
        let registry = Registry::builtin();
        let pods = registry.find("", "v1", "pods").expect("built in");
        let deployments = registry.find("apps", "v1", "deployments").expect("built in");
        let rule = |resources: Value| {
            Rule::new(
                &json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": resources}),
            )
        };
        let check = |rule: &Rule, resource: &Resource, part: &str, operation| {
            rule.matches(resource, part, operation, true)
        };
        for (resources, part, expected) in [
            (json!(["pods"]), "", true),
            (json!(["pods"]), "status", false),
            (json!(["pods/*"]), "status", true),
            (json!(["*"]), "", true),
            (json!(["*"]), "status", false),
            (json!(["*/status"]), "status", true),
            (json!(["services"]), "", false),
        ] {
            assert_eq!(
                check(&rule(resources.clone()), &pods, part, Operation::Create),
                expected,
                "{resources}"
            );
        }
        assert!(!check(&rule(json!(["*"])), &deployments, "", Operation::Create));
        assert!(!check(&rule(json!(["*"])), &pods, "", Operation::Delete));
        let mut cluster = rule(json!(["*"]));
        cluster.scope = "Cluster".to_owned();
        assert!(!cluster.matches(&pods, "", Operation::Create, true));
    }
}
