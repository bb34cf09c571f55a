//! Manifests with the arguments put in: `${name}` is replaced by the value of the argument `name` or of
//! one of the cluster's own names; `$$` stands for `$` itself. An unknown name is an error.
//!
//! A document of which a comment line says `# when: name` is left out when that value is empty or `false`.

use std::collections::BTreeMap;

use kedge_base::Order as _;
use kube::api::DynamicObject;
use serde::de::IgnoredAny;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::check::Check;
use crate::definition::Addon;
use crate::error::Error;

/// The values of arguments and of the cluster (`cluster_dns`, `version`, ...).
pub(crate) fn with_cluster(
    arguments: &BTreeMap<String, String>,
    cluster: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut values = cluster.clone();
    // Only defaults may name the cluster's values: what a user gives has no `$`.
    let filled = |value: &String| replace(value, cluster).unwrap_or_else(|_| value.clone());
    values.extend(arguments.iter().map(|(key, value)| (key.clone(), filled(value))));
    values
}

/// All objects of an addon in the order in which they are applied.
pub(crate) fn objects(addon: &Addon, values: &BTreeMap<String, String>) -> Result<Vec<DynamicObject>, Error> {
    let mut objects = Vec::new();
    for (file, text) in &addon.manifests {
        let invalid = |what: String| Error::Definition { place: format!("{}/{file}", addon.name), what };
        for document in documents(text) {
            if left_out(&document, values) {
                continue;
            }
            let text = replace(&document, values).map_err(invalid)?;
            objects.extend(parse(&text).map_err(invalid)?);
        }
    }
    objects.order_by_key(order);
    Ok(objects)
}

/// What must be so, of an addon with these values.
pub(crate) fn checks(addon: &Addon, values: &BTreeMap<String, String>) -> Result<Vec<Check>, Error> {
    let invalid =
        |what: String| Error::Definition { place: addon.name.clone(), what: format!("health: {what}") };
    addon.health.iter().map(|check| check.filled(values).map_err(invalid)).collect()
}

/// Differs when anything differs that would be applied.
pub(crate) fn digest(objects: &[DynamicObject]) -> String {
    let mut hash = Sha256::new();
    for object in objects {
        // What came from YAML can be written as JSON.
        hash.update(serde_json::to_vec(object).unwrap_or_default());
        hash.update([0]);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The objects of a file that nothing is put into: YAML documents or JSON; lists stand for their items.
pub(crate) fn plain(text: &str) -> Result<Vec<DynamicObject>, String> {
    let mut objects = Vec::new();
    for document in documents(text) {
        objects.extend(parse(&document)?);
    }
    objects.order_by_key(order);
    Ok(objects)
}

/// One document; an empty one is nothing.
fn parse(text: &str) -> Result<Vec<DynamicObject>, String> {
    let is_json = text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok();
    let value: Value = if is_json {
        // JSON may be indented with tabs, YAML may not.
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?
    };
    let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    let items = match value {
        Value::Null => Vec::new(),
        Value::Object(mut list) if is_list && list.get("items").is_some_and(Value::is_array) => {
            match list.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        value => vec![value],
    };
    items.into_iter().map(|item| serde_json::from_value(item).map_err(|error| error.to_string())).collect()
}

/// YAML documents are parted by lines that begin with `---`.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        let rest = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if let Some(rest) = rest {
            documents.push(format!("{}\n", rest.trim()));
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents.retain(|document| {
        document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    });
    documents
}

fn left_out(document: &str, values: &BTreeMap<String, String>) -> bool {
    document
        .lines()
        .filter_map(|line| line.strip_prefix("# when:"))
        .any(|name| values.get(name.trim()).is_none_or(|value| matches!(value.as_str(), "" | "false" | "0")))
}

pub(crate) fn replace(text: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let tail = &rest[at..];
        if let Some(after) = tail.strip_prefix("$$") {
            result.push('$');
            rest = after;
        } else if let Some(named) = tail.strip_prefix("${") {
            let (name, after) = named.split_once('}').ok_or("a ${ has no }")?;
            result.push_str(values.get(name).ok_or_else(|| format!("${{{name}}} is no argument"))?);
            rest = after;
        } else {
            result.push('$');
            rest = &tail[1..];
        }
    }
    result.push_str(rest);
    Ok(result)
}

/// What others need comes first, as Helm orders kinds.
fn order(object: &DynamicObject) -> u8 {
    match object.types.as_ref().map_or("", |types| types.kind.as_str()) {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        "PriorityClass" | "StorageClass" | "ServiceAccount" | "Secret" | "ConfigMap" => 2,
        "ClusterRole" | "Role" => 3,
        "ClusterRoleBinding" | "RoleBinding" => 4,
        "Service" => 5,
        "APIService" | "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => 8,
        _ => 6,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every name that manifests may use beside their addon's arguments.
    pub(crate) fn cluster() -> BTreeMap<String, String> {
        crate::manager::Cluster {
            version: "0.0.0".to_owned(),
            cluster_dns: "10.96.0.10".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            data_dir: "/var/lib/kedge".to_owned(),
        }
        .values()
    }

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn names_are_replaced_and_unknown_ones_refused() {
        let known = values(&[("a", "1"), ("b", "")]);
        assert_eq!(replace("x ${a}${b}y $(HOME) $${a}", &known).unwrap(), "x 1y $(HOME) ${a}");
        assert!(replace("${c}", &known).unwrap_err().contains("${c} is no argument"));
        assert!(replace("${a", &known).is_err());
    }

    #[test]
    fn documents_are_ordered_and_may_be_left_out() {
        let text = "# only a comment\n---\nkind: Deployment\napiVersion: apps/v1\nmetadata: {name: d}\n---\n\
                    kind: Namespace\napiVersion: v1\nmetadata: {name: n}\n---\n# when: extra\nkind: Pod\n\
                    apiVersion: v1\nmetadata: {name: '${extra}'}\n";
        let addon = Addon::parse(
            "test",
            "name: t\nversion: '1'\ndescription: d\narguments: [{name: extra, default: ''}]\n",
            vec![("m.yaml".to_owned(), text.to_owned())],
        )
        .unwrap();
        let kinds = |values: &BTreeMap<String, String>| -> Vec<String> {
            objects(&addon, values).unwrap().into_iter().map(|o| o.types.unwrap().kind).collect()
        };
        assert_eq!(kinds(&values(&[("extra", "")])), ["Namespace", "Deployment"]);
        assert_eq!(kinds(&values(&[("extra", "p")])), ["Namespace", "Deployment", "Pod"]);
    }
}
