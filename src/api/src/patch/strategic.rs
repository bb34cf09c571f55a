//! Strategic merge patch, driven by the schema's patch strategies and merge keys
//! (upstream: apimachinery `util/strategicpatch`).
//!
//! A patch is a partial object with directives: `$patch` (replace, delete, merge)
//! in maps and list items, `$retainKeys`, `$deleteFromPrimitiveList/FIELD` and
//! `$setElementOrder/FIELD`.

use serde_json::{Map, Value};

use super::MAX_DEPTH;
use crate::schema::{Cursor, Field, SchemaRef, Shape};
use crate::status::Status;

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

type At<'a> = Option<Cursor<'a>>;

/// Applies a strategic merge patch; only built-in kinds have strategies.
pub fn strategic_merge_patch(schema: &SchemaRef, current: &Value, patch: &Value) -> Result<Value, Status> {
    let Value::Object(changes) = patch else {
        return Err(bad("expected a JSON object".to_string()));
    };
    let original = current.as_object().cloned().unwrap_or_default();
    Ok(Value::Object(merge_map(Some(schema.cursor()), original, changes, 0)?))
}

fn bad(what: String) -> Status {
    Status::bad_request(format!("invalid strategic merge patch: {what}"))
}

fn merge_map(
    at: At<'_>,
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
    depth: usize,
) -> Result<Map<String, Value>, Status> {
    if depth > MAX_DEPTH {
        return Err(bad("nested too deeply".to_string()));
    }
    match patch.get(PATCH).map(|d| d.as_str()) {
        Some(Some("replace")) => return plain(patch),
        Some(Some("delete")) => return Ok(Map::new()),
        Some(Some("merge")) | None => {}
        other => {
            return Err(bad(format!("invalid value for $patch: {}", other.flatten().unwrap_or("no string"))));
        }
    }
    if let Some(keep) = patch.get(RETAIN) {
        let Value::Array(keys) = keep else { return Err(bad("$retainKeys must be a list".to_string())) };
        for name in patch.keys().filter(|k| !is_directive(k)) {
            if !patch[name].is_null() && !keys.iter().any(|k| k == name) {
                return Err(bad(format!("field {name} is in the patch but not in $retainKeys")));
            }
        }
        original.retain(|name, _| keys.iter().any(|k| k == name));
    }
    for (name, change) in patch {
        if name == PATCH || name == RETAIN || name.starts_with(ORDER_PREFIX) {
            continue;
        }
        if let Some(target) = name.strip_prefix(DELETE_PREFIX) {
            let Value::Array(gone) = change else { return Err(bad(format!("{name} must be a list"))) };
            // With an addition to the same list the merge below drops them.
            if !patch.contains_key(target)
                && let Some(Value::Array(list)) = original.get_mut(target)
            {
                list.retain(|v| !gone.contains(v));
                reorder(list, patch.get(&format!("{ORDER_PREFIX}{target}")), None);
            }
            continue;
        }
        if change.is_null() {
            original.remove(name);
            continue;
        }
        let (field, child) = match at.and_then(|a| a.field(name)) {
            Some((f, c)) => (Some(f), Some(c)),
            None => (None, at.and_then(|a| a.item())),
        };
        let merged = match (original.remove(name), change) {
            (Some(Value::Object(o)), Value::Object(p)) if !replaces(field) => {
                let deleted = p.get(PATCH).and_then(Value::as_str) == Some("delete");
                let merged = merge_map(child, o, p, depth + 1)?;
                if deleted && merged.is_empty() {
                    continue;
                }
                Value::Object(merged)
            }
            (Some(Value::Array(o)), Value::Array(p)) if field.is_some_and(|f| f.patch.merge) => {
                let gone = patch.get(&format!("{DELETE_PREFIX}{name}")).and_then(Value::as_array);
                let order = patch.get(&format!("{ORDER_PREFIX}{name}"));
                Value::Array(merge_list(child, field, o, p, gone, order, depth)?)
            }
            // A fresh merge list still has directives to carry out.
            (None, Value::Array(p)) if field.is_some_and(|f| f.patch.merge) => {
                Value::Array(merge_list(child, field, Vec::new(), p, None, None, depth)?)
            }
            (_, Value::Object(p)) => {
                if p.get(PATCH).and_then(Value::as_str) == Some("delete") {
                    continue;
                }
                Value::Object(merge_map(child, Map::new(), p, depth + 1)?)
            }
            (_, other) => clean(other)?,
        };
        original.insert(name.clone(), merged);
    }
    // An order without a change of the list reorders what is there.
    for (name, order) in patch {
        if let Some(target) = name.strip_prefix(ORDER_PREFIX)
            && !patch.contains_key(target)
            && let Some(Value::Array(list)) = original.get_mut(target)
        {
            let key = at.and_then(|a| a.field(target)).and_then(|(f, _)| f.merge_key.as_deref());
            reorder(list, Some(order), key);
        }
    }
    Ok(original)
}

fn replaces(field: Option<&Field>) -> bool {
    field.is_some_and(|f| f.patch.replace)
}

/// A replacement: its directive is no part of the object.
fn plain(patch: &Map<String, Value>) -> Result<Map<String, Value>, Status> {
    let mut out = Map::new();
    for (k, v) in patch.iter().filter(|(k, v)| !is_directive(k) && !v.is_null()) {
        out.insert(k.clone(), clean(v)?);
    }
    Ok(out)
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN || key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX)
}

/// A value without directives and nulls.
fn clean(v: &Value) -> Result<Value, Status> {
    Ok(match v {
        Value::Object(m) => Value::Object(plain(m)?),
        Value::Array(a) => Value::Array(a.iter().map(clean).collect::<Result<_, _>>()?),
        other => other.clone(),
    })
}

fn merge_list(
    at: At<'_>,
    field: Option<&Field>,
    original: Vec<Value>,
    patch: &[Value],
    gone: Option<&Vec<Value>>,
    order: Option<&Value>,
    depth: usize,
) -> Result<Vec<Value>, Status> {
    let item = at.and_then(|a| a.item());
    let key = field.and_then(|f| f.merge_key.as_deref());
    let of_objects = item
        .map_or_else(|| key.is_some(), |i| matches!(i.node.shape, Shape::Object | Shape::Map | Shape::Any));
    let Some(key) = key.filter(|_| of_objects) else {
        // A set of scalars: what is new is appended.
        let mut out = original;
        out.retain(|v| !gone.is_some_and(|g| g.contains(v)));
        for v in patch {
            if !out.contains(v) {
                out.push(v.clone());
            }
        }
        reorder(&mut out, order, None);
        return Ok(out);
    };
    if patch.iter().any(|p| directive(p) == Some("replace")) {
        let rest = patch.iter().filter(|p| p.get(PATCH).is_none());
        return rest.map(clean).collect();
    }
    let before: Vec<Value> = original.iter().filter_map(|o| o.get(key).cloned()).collect();
    let mut out = original;
    for p in patch {
        let Value::Object(change) = p else {
            return Err(bad(format!("a list merged by {key} has an item that is no object")));
        };
        let Some(id) = change.get(key) else {
            return Err(bad(format!("map: {p} does not contain declared merge key: {key}")));
        };
        let place = out.iter().position(|o| o.get(key) == Some(id));
        match (directive(p), place) {
            (Some("delete"), _) => out.retain(|o| o.get(key) != Some(id)),
            (None | Some("merge"), Some(i)) => {
                let old = match out[i].take() {
                    Value::Object(m) => m,
                    _ => Map::new(),
                };
                out[i] = Value::Object(merge_map(item, old, change, depth + 1)?);
            }
            (None | Some("merge"), None) => {
                out.push(Value::Object(merge_map(item, Map::new(), change, depth + 1)?));
            }
            (Some(other), _) => return Err(bad(format!("unrecognized type: {other}"))),
        }
    }
    match order {
        Some(_) => reorder(&mut out, order, Some(key)),
        None => out = patch_order(out, patch, &before, key),
    }
    Ok(out)
}

/// Without an order of its own, the patch's items keep the patch's order and come before what only the
/// server has, unless the server had both the other way round (upstream's `normalizeElementOrder`).
fn patch_order(list: Vec<Value>, patch: &[Value], before: &[Value], key: &str) -> Vec<Value> {
    let named: Vec<&Value> = patch.iter().filter_map(|p| p.get(key)).collect();
    let rank = |v: &Value| v.get(key).and_then(|id| named.iter().position(|n| *n == id));
    let place = |v: &Value| v.get(key).and_then(|id| before.iter().position(|b| b == id));
    let (mut ours, theirs): (Vec<Value>, Vec<Value>) = list.into_iter().partition(|v| rank(v).is_some());
    ours.sort_by_key(|v| rank(v));
    let mut out = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.into_iter().peekable(), theirs.into_iter().peekable());
    loop {
        let server_first = match (theirs.peek(), ours.peek()) {
            (Some(server), Some(patched)) => {
                matches!((place(server), place(patched)), (Some(s), Some(p)) if s < p)
            }
            (server, _) => server.is_some(),
        };
        match if server_first { theirs.next() } else { ours.next() } {
            Some(item) => out.push(item),
            None => return out,
        }
    }
}

fn directive(v: &Value) -> Option<&str> {
    v.get(PATCH).and_then(Value::as_str)
}

/// Puts the items named by `order` into that order; the others keep their place
/// relative to the item before them.
fn reorder(list: &mut Vec<Value>, order: Option<&Value>, key: Option<&str>) {
    let Some(Value::Array(order)) = order else { return };
    let id = |v: &Value| -> Option<Value> {
        match key {
            Some(k) => v.get(k).cloned(),
            None => Some(v.clone()),
        }
    };
    let wanted: Vec<Value> = order.iter().filter_map(id).collect();
    let rank = |v: &Value| id(v).and_then(|i| wanted.iter().position(|w| *w == i));
    // Server-only items follow the last ordered item that stood before them.
    let mut ranked: Vec<(usize, usize, Value)> = Vec::with_capacity(list.len());
    let mut last = 0;
    for (i, v) in std::mem::take(list).into_iter().enumerate() {
        match rank(&v) {
            Some(r) => {
                last = 2 * r + 1;
                ranked.push((last, 0, v));
            }
            None => ranked.push((if last == 0 { 0 } else { last + 1 }, i, v)),
        }
    }
    ranked.sort_by_key(|(r, i, _)| (*r, *i));
    *list = ranked.into_iter().map(|(_, _, v)| v).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SchemaSet;
    use serde_json::json;

    fn run(kind: &str, current: &Value, patch: &Value) -> Value {
        let group = if kind == "Deployment" { "apps" } else { "" };
        let schema = SchemaSet::builtin().by_gvk(group, "v1", kind).unwrap();
        strategic_merge_patch(&schema, current, patch).unwrap()
    }

    fn pod(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn lists_merge_by_key() {
        let current =
            pod(json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]));
        let cases = [
            (
                pod(json!([{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}])),
                pod(
                    json!([{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]},
                    {"name": "b"}]),
                ),
            ),
            (pod(json!([{"name": "a", "$patch": "delete"}])), pod(json!([{"name": "b"}]))),
            (
                pod(json!([{"name": "c"}])),
                pod(
                    json!([{"name": "c"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]),
                ),
            ),
            (pod(json!([{"name": "c"}, {"$patch": "replace"}])), pod(json!([{"name": "c"}]))),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
                    "containers": [{"name": "a", "env": null}]}}),
                pod(json!([{"name": "b"}, {"name": "a", "image": "1"}])),
            ),
        ];
        for (patch, want) in cases {
            let got = run("Pod", &current, &patch);
            assert_eq!(got, want, "{patch}");
            assert_eq!(run("Pod", &got, &patch), want, "again: {patch}");
        }
    }

    #[test]
    fn maps_and_directives() {
        let current = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]}, "spec": {"strategy":
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"metadata": {"labels": {"a": null, "c": "3"}, "$deleteFromPrimitiveList/finalizers": ["x"]},
            "spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            run("Deployment", &current, &patch),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}, "finalizers": ["y"]}, "spec": {"strategy": {"type": "Recreate"}}})
        );
        let patch = json!({"metadata": {"labels": {"$patch": "replace", "z": "1"}, "finalizers": ["w"]}});
        let got = run("Deployment", &current, &patch);
        assert_eq!(got["metadata"], json!({"labels": {"z": "1"}, "finalizers": ["x", "y", "w"]}));
    }

    #[test]
    fn refusals() {
        let schema = SchemaSet::builtin().by_gvk("", "v1", "Pod").unwrap();
        for patch in [json!([]), pod(json!([{"image": "x"}])), json!({"spec": {"$patch": "explode"}})] {
            let current = pod(json!([{"name": "a"}]));
            assert_eq!(strategic_merge_patch(&schema, &current, &patch).unwrap_err().code, 400, "{patch}");
        }
    }
}
