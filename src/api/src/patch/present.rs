//! What Go writes though it is empty: structs that are no pointers. Upstream's JSON patches are applied to Go's JSON,
//! so `add /status/allocation` works on an object that has no status yet.

use serde_json::{Map, Value};

use crate::schema::{Cursor, SchemaRef, Shape};

/// Whether Go always writes this field of this type.
fn is_always_written(at: Cursor<'_>, field: &str) -> bool {
    let owner = at.node.short_name();
    match field {
        "metadata" | "spec" | "status" | "jobTemplate" | "strategy" | "updateStrategy" => true,
        // A ReplicationController's is a pointer.
        "template" => owner != "ReplicationControllerSpec" && owner.ends_with("Spec"),
        "resources" => {
            matches!(owner, "Container" | "EphemeralContainer" | "PersistentVolumeClaimSpec")
        }
        "loadBalancer" => matches!(owner, "ServiceStatus" | "IngressStatus"),
        "daemonEndpoints" | "nodeInfo" => owner == "NodeStatus",
        "devices" => owner == "ResourceClaimSpec",
        _ => false,
    }
}

/// Puts in the empty objects that Go writes.
pub(super) fn fill(schema: &SchemaRef, value: &mut Value) {
    walk(schema.cursor(), value, &mut |at, map| {
        for field in &at.node.fields {
            let is_struct = at.field(&field.name).is_some_and(|(_, to)| to.node.shape == Shape::Object);
            if is_struct && is_always_written(at, &field.name) && !map.contains_key(field.name.as_ref()) {
                map.insert(field.name.to_string(), Value::Object(Map::new()));
            }
        }
    });
}

fn walk(at: Cursor<'_>, value: &mut Value, visit: &mut impl FnMut(Cursor<'_>, &mut Map<String, Value>)) {
    match value {
        Value::Object(map) if at.node.shape == Shape::Object => {
            visit(at, map);
            for (name, value) in map.iter_mut() {
                if let Some((_, child)) = at.field(name) {
                    walk(child, value, visit);
                }
            }
        }
        Value::Array(items) => {
            let Some(item_at) = at.item() else { return };
            for item in items {
                walk(item_at, item, visit);
            }
        }
        _ => {}
    }
}

/// Takes out again what is still empty and was not there before.
pub(super) fn strip(schema: &SchemaRef, value: &mut Value, before: &Value) {
    empty_again(schema.cursor(), value, before);
}

fn empty_again(at: Cursor<'_>, value: &mut Value, before: &Value) {
    match value {
        Value::Object(map) if at.node.shape == Shape::Object => {
            for (name, value) in map.iter_mut() {
                if let Some((_, child)) = at.field(name) {
                    empty_again(child, value, &before[name.as_str()]);
                }
            }
            map.retain(|name, value| {
                let is_empty = value.as_object().is_some_and(Map::is_empty);
                !is_empty || before.get(name).is_some() || !is_always_written(at, name)
            });
        }
        Value::Array(items) => {
            let Some(item_at) = at.item() else { return };
            for (i, item) in items.iter_mut().enumerate() {
                empty_again(item_at, item, &before[i]);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::json_patch_of;
    use crate::schema::SchemaSet;
    use serde_json::json;

    #[test]
    fn what_go_writes_is_there_to_patch() {
        let set = SchemaSet::builtin();
        let claim = set.by_gvk("resource.k8s.io", "v1", "ResourceClaim").unwrap();
        let old = json!({ "metadata": { "name": "a" }, "spec": {} });
        let patched = |schema: &SchemaRef, old: &Value, patch: Value| {
            json_patch_of(schema, old, patch.to_string().as_bytes())
        };
        let add = |path: &str, value: Value| json!([{ "op": "add", "path": path, "value": value }]);
        assert_eq!(
            patched(&claim, &old, add("/status/allocation", json!({}))).unwrap(),
            json!({ "metadata": { "name": "a" }, "spec": {}, "status": { "allocation": {} } })
        );
        let deployment = set.by_gvk("apps", "v1", "Deployment").unwrap();
        let old = json!({ "metadata": { "name": "a" },
            "spec": { "template": { "spec": { "containers": [{ "name": "c" }, { "name": "d", "resources": {} }] } } } });
        let path = "/spec/template/spec/containers/0/resources/limits";
        let new = patched(&deployment, &old, add(path, json!({ "cpu": "1" }))).unwrap();
        let mut wanted = old.clone();
        wanted["spec"]["template"]["spec"]["containers"][0]["resources"] =
            json!({ "limits": { "cpu": "1" } });
        assert_eq!(new, wanted);
        let same = patched(&deployment, &old, json!([{ "op": "test", "path": "/status", "value": {} }]));
        assert_eq!(same.unwrap(), old);
        assert!(patched(&deployment, &old, add("/spec/paused/x", json!(1))).is_err());
    }

    #[test]
    fn definitions_of_ones_own_have_no_such_fields() {
        let schema = SchemaRef::untyped();
        let add = br#"[{"op":"add","path":"/status/a","value":1}]"#;
        assert!(json_patch_of(&schema, &json!({ "metadata": {} }), add).is_err());
    }
}
