//! Parts of other servers' v2 documents in the one document (kube-openapi `pkg/aggregator`): what belongs to their
//! paths is taken over; a definition that has another meaning here gets another name there.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

const PREFIX: &str = "#/definitions/";

/// The paths below `prefix` and every definition that they need; `None` when there are no such paths.
pub(crate) fn part(document: &Value, prefix: &str) -> Option<Value> {
    let within =
        |path: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let paths: Map<String, Value> = document["paths"]
        .as_object()?
        .iter()
        .filter(|(path, _)| within(path))
        .map(|(path, operations)| (path.clone(), operations.clone()))
        .collect();
    if paths.is_empty() {
        return None;
    }
    let mut waiting: Vec<String> = paths.values().flat_map(references).collect();
    let mut definitions = Map::new();
    while let Some(name) = waiting.pop() {
        let Some(definition) = document["definitions"].get(&name) else { continue };
        if !definitions.contains_key(&name) {
            waiting.extend(references(definition));
            definitions.insert(name, definition.clone());
        }
    }
    Some(json!({ "paths": paths, "definitions": definitions }))
}

/// Adds a part. Paths that are there already stay what they are.
pub(crate) fn add(document: &mut Value, mut part: Value) {
    let empty = Map::new();
    let own = document["definitions"].as_object().unwrap_or(&empty);
    let foreign = part["definitions"].as_object().unwrap_or(&empty);
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for (name, definition) in foreign {
        if own.get(name).is_none_or(|known| known == definition) {
            continue;
        }
        let free = |candidate: &String| !own.contains_key(candidate) && !foreign.contains_key(candidate);
        let renamed = (2..).map(|number| format!("{name}_v{number}")).find(free);
        names.extend(renamed.map(|renamed| (name.clone(), renamed)));
    }
    rename(&mut part, &names);
    for section in ["paths", "definitions"] {
        let (Some(from), Some(to)) = (part[section].as_object_mut(), document[section].as_object_mut())
        else {
            continue;
        };
        for (name, value) in std::mem::take(from) {
            let name =
                if section == "definitions" { names.get(&name).cloned().unwrap_or(name) } else { name };
            to.entry(name).or_insert(value);
        }
    }
}

/// The definitions that a value names.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let own = map.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix(PREFIX));
            own.map(str::to_owned).into_iter().chain(map.values().flat_map(references)).collect()
        }
        Value::Array(list) => list.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(renamed) = reference.strip_prefix(PREFIX).and_then(|name| names.get(name))
            {
                *reference = format!("{PREFIX}{renamed}");
            }
            map.values_mut().for_each(|value| rename(value, names));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| rename(value, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> Value {
        json!({ "$ref": format!("{PREFIX}{name}") })
    }

    #[test]
    fn what_is_needed_is_taken_and_what_differs_is_renamed() {
        let other = json!({
            "paths": {
                "/apis/x.io/v1/things": { "get": { "schema": reference("Thing") } },
                "/apis/x.io/v1beta1/things": { "get": { "schema": reference("Old") } },
                "/api/v1/pods": {},
            },
            "definitions": {
                "Thing": { "properties": { "meta": reference("Meta"), "self": reference("Thing"), "same": reference("Same") } },
                "Meta": { "type": "object" }, "Same": { "type": "string" }, "Old": {}, "Unused": {},
            },
        });
        let part = part(&other, "/apis/x.io/v1").expect("paths");
        assert_eq!(part["paths"].as_object().map(Map::len), Some(1));
        assert_eq!(part["definitions"].as_object().map(Map::len), Some(3));
        let mut all = json!({
            "paths": { "/api/v1/pods": { "get": {} } },
            "definitions": { "Meta": { "type": "string" }, "Same": { "type": "string" }, "Meta_v2": {} },
        });
        add(&mut all, part);
        assert_eq!(all["definitions"]["Meta_v3"], json!({ "type": "object" }));
        assert_eq!(all["definitions"]["Meta"], json!({ "type": "string" }));
        let fields = &all["definitions"]["Thing"]["properties"];
        assert_eq!([&fields["meta"], &fields["self"]], [&reference("Meta_v3"), &reference("Thing")]);
        assert_eq!(all["paths"]["/apis/x.io/v1/things"]["get"]["schema"], reference("Thing"));
        assert!(super::part(&other, "/apis/y.io/v1").is_none());
    }
}
