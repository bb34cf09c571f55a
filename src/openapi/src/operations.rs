//! Paths and operations of a resource.

use kedge_api::registry::Resource;
use serde_json::{Map, Value, json};

use crate::schema::{Dialect, definition_name};

pub(crate) fn add_paths(resource: &Resource, dialect: Dialect, paths: &mut Map<String, Value>) {
    let base = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    let has = |verb: &str| resource.verbs.iter().any(|known| *known == verb);
    let scoped = if resource.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        format!("{base}/{}", resource.plural)
    };
    let operations = |list: &[(&str, &str, &str)]| {
        let mut item = Map::new();
        for (verb, method, action) in list {
            if has(verb) {
                item.insert((*method).to_owned(), operation(resource, dialect, verb, action));
            }
        }
        if !item.is_empty() {
            item.insert("parameters".to_owned(), json!([]));
        }
        item
    };
    let mut add = |path: String, item: Map<String, Value>| {
        if !item.is_empty() {
            paths.insert(path, Value::Object(item));
        }
    };
    let collection = [
        ("list", "get", "list"),
        ("create", "post", "post"),
        ("deletecollection", "delete", "deletecollection"),
    ];
    add(scoped.clone(), operations(&collection));
    if resource.namespaced {
        add(format!("{base}/{}", resource.plural), operations(&[("list", "get", "list")]));
    }
    let single = [
        ("get", "get", "get"),
        ("update", "put", "put"),
        ("patch", "patch", "patch"),
        ("delete", "delete", "delete"),
    ];
    add(format!("{scoped}/{{name}}"), operations(&single));
    for sub in &resource.subresources {
        let mut item = Map::new();
        for (verb, method) in [("get", "get"), ("update", "put"), ("patch", "patch"), ("create", "post")] {
            if sub.verbs.iter().any(|known| *known == verb) {
                let mut operation = operation(resource, dialect, verb, method);
                operation["x-kubernetes-group-version-kind"] =
                    json!({ "group": sub.group, "version": sub.version, "kind": sub.kind });
                item.insert(method.to_owned(), operation);
            }
        }
        add(format!("{scoped}/{{name}}/{}", sub.name), item);
    }
}

fn operation(resource: &Resource, dialect: Dialect, verb: &str, action: &str) -> Value {
    let definition = definition_name(resource);
    let shown = if verb == "list" { format!("{definition}List") } else { definition };
    let reference = json!({ "$ref": dialect.reference(&shown) });
    let writes = matches!(verb, "create" | "update" | "patch");
    let mut names: Vec<&str> = match verb {
        "list" | "deletecollection" => vec![
            "allowWatchBookmarks",
            "continue",
            "fieldSelector",
            "labelSelector",
            "limit",
            "resourceVersion",
            "resourceVersionMatch",
            "sendInitialEvents",
            "timeoutSeconds",
            "watch",
        ],
        "delete" => vec!["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"],
        _ if writes => vec!["dryRun", "fieldManager", "fieldValidation"],
        _ => Vec::new(),
    };
    if verb == "patch" {
        names.push("force");
    }
    let boolean = ["allowWatchBookmarks", "sendInitialEvents", "watch", "force", "orphanDependents"];
    let integer = ["limit", "timeoutSeconds", "gracePeriodSeconds"];
    let parameters: Vec<Value> = names
        .iter()
        .map(|name| {
            let kind = if boolean.contains(name) {
                "boolean"
            } else if integer.contains(name) {
                "integer"
            } else {
                "string"
            };
            match dialect {
                Dialect::V3 => {
                    json!({ "name": name, "in": "query", "schema": { "type": kind, "uniqueItems": true } })
                }
                Dialect::V2 => json!({ "name": name, "in": "query", "type": kind, "uniqueItems": true }),
            }
        })
        .collect();
    let patches = [
        "application/apply-patch+yaml",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    let strategic = !resource.custom;
    let patches: Vec<&str> =
        patches.into_iter().filter(|kind| strategic || !kind.contains("strategic")).collect();
    let mut operation = json!({
        "operationId": format!("{action}{}{}{}", resource.group, resource.version, resource.kind),
        "parameters": parameters,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind":
            { "group": resource.group, "version": resource.version, "kind": resource.kind },
    });
    match dialect {
        Dialect::V3 => {
            operation["responses"] = json!({ "200": { "description": "OK", "content": { "application/json": { "schema": reference } } } });
            if verb == "patch" {
                let content: Map<String, Value> = patches
                    .iter()
                    .map(|kind| ((*kind).to_owned(), json!({ "schema": { "type": "object" } })))
                    .collect();
                operation["requestBody"] = json!({ "content": content, "required": true });
            } else if writes {
                operation["requestBody"] =
                    json!({ "content": { "*/*": { "schema": reference } }, "required": true });
            }
        }
        Dialect::V2 => {
            operation["responses"] = json!({ "200": { "description": "OK", "schema": reference } });
            if verb == "patch" {
                operation["consumes"] = json!(patches);
            }
            if writes {
                let schema = if verb == "patch" { json!({ "type": "object" }) } else { reference };
                if let Some(list) = operation["parameters"].as_array_mut() {
                    list.push(json!({ "name": "body", "in": "body", "required": true, "schema": schema }));
                }
            }
        }
    }
    operation
}
