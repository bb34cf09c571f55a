//! Ownership and apply, from the outside.

use super::*;
use crate::schema::SchemaSet;
use serde_json::json;

fn schema(kind: &str) -> SchemaRef {
    let group = if kind == "Deployment" { "apps" } else { "" };
    SchemaSet::builtin().by_gvk(group, "v1", kind).unwrap()
}

fn manager(name: &str, time: &str) -> Manager {
    Manager {
        name: name.into(),
        api_version: "v1".into(),
        time: time.into(),
        subresource: String::new(),
        reset: &["status"],
    }
}

fn cm(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

fn owners(v: &Value) -> Vec<(String, Value)> {
    object::managed_fields(v)
        .iter()
        .map(|e| (e["manager"].as_str().unwrap().to_string(), e["fieldsV1"].clone()))
        .collect()
}

#[test]
fn create_and_update_record_changes() {
    let s = schema("ConfigMap");
    let mut a = cm(json!({"x": "1", "y": "2"}));
    a["metadata"]["labels"] = json!({"l": "m"});
    track_update(&s, None, &mut a, &manager("one", "t1"));
    assert_eq!(
        owners(&a),
        [(
            "one".to_string(),
            json!({"f:data": {".": {}, "f:x": {}, "f:y": {}}, "f:metadata": {"f:labels": {".": {}, "f:l": {}}}})
        )]
    );
    let mut b = a.clone();
    b["data"] = json!({"x": "9", "z": "3"});
    track_update(&s, Some(&a), &mut b, &manager("two", "t2"));
    assert_eq!(
        owners(&b),
        [
            ("one".to_string(), json!({"f:data": {}, "f:metadata": {"f:labels": {".": {}, "f:l": {}}}})),
            ("two".to_string(), json!({"f:data": {"f:x": {}, "f:z": {}}})),
        ]
    );
    // A write that changes nothing keeps the entries and their times.
    let mut c = b.clone();
    track_update(&s, Some(&b), &mut c, &manager("three", "t3"));
    assert_eq!(c, b);
    // A client that leaves managedFields out keeps them as well.
    object::metadata_mut(&mut c).remove("managedFields");
    track_update(&s, Some(&b), &mut c, &manager("three", "t3"));
    assert_eq!(c, b);
}

#[test]
fn apply_twice_is_the_same() {
    let s = schema("ConfigMap");
    let first = apply(&s, None, &cm(json!({"x": "1"})), &manager("m", "t1"), false).unwrap();
    assert_eq!(owners(&first), [("m".to_string(), json!({"f:data": {"f:x": {}}}))]);
    let again = apply(&s, Some(&first), &cm(json!({"x": "1"})), &manager("m", "t2"), false).unwrap();
    assert_eq!(again, first);
}

#[test]
fn apply_removes_what_it_no_longer_names() {
    let s = schema("ConfigMap");
    let live = apply(&s, None, &cm(json!({"x": "1", "y": "2"})), &manager("m", "t1"), false).unwrap();
    let live = apply(&s, Some(&live), &cm(json!({"y": "2", "z": "3"})), &manager("n", "t2"), false).unwrap();
    assert_eq!(live["data"], json!({"x": "1", "y": "2", "z": "3"}));
    // y is shared with n, x is m's alone.
    let live = apply(&s, Some(&live), &cm(json!({})), &manager("m", "t3"), false).unwrap();
    assert_eq!(live["data"], json!({"y": "2", "z": "3"}));
}

#[test]
fn conflicts_name_the_owner() {
    let s = schema("Deployment");
    let d = |n: i32| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": n}});
    let m = |n: &str, t: &str| Manager { api_version: "apps/v1".into(), ..manager(n, t) };
    let mut live = d(1);
    track_update(&s, None, &mut live, &m("x", "t1"));
    let e = apply(&s, Some(&live), &d(2), &m("y", "t2"), false).unwrap_err();
    assert_eq!(e.code, 409);
    assert_eq!(
        e.message,
        r#"Apply failed with 1 conflict: conflict with "x" using apps/v1 at t1: .spec.replicas"#
    );
    let cause = &e.details.unwrap().causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("FieldManagerConflict", ".spec.replicas"));
    let forced = apply(&s, Some(&live), &d(2), &m("y", "t2"), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(owners(&forced), [("y".to_string(), json!({"f:spec": {"f:replicas": {}}}))]);
    // Agreeing is no conflict and makes both owners.
    let shared = apply(&s, Some(&live), &d(1), &m("y", "t2"), false).unwrap();
    assert_eq!(owners(&shared).len(), 2);
}

#[test]
fn lists_by_key_and_atomic() {
    let s = schema("Pod");
    let pod = |c: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": c}});
    let live = apply(
        &s,
        None,
        &pod(json!([{"name": "a", "image": "1", "args": ["x"]}])),
        &manager("m", "t1"),
        false,
    )
    .unwrap();
    let live = apply(&s, Some(&live), &pod(json!([{"name": "b", "image": "2"}])), &manager("n", "t2"), false)
        .unwrap();
    assert_eq!(
        live["spec"]["containers"],
        json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}])
    );
    assert_eq!(
        owners(&live)[0].1,
        json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:args": {}, "f:image": {}, "f:name": {}}}}})
    );
    let live = apply(&s, Some(&live), &pod(json!([{"name": "a", "image": "1"}])), &manager("m", "t3"), false)
        .unwrap();
    assert_eq!(live["spec"]["containers"][0], json!({"name": "a", "image": "1"}));
    let live = apply(&s, Some(&live), &pod(json!([])), &manager("m", "t4"), false).unwrap();
    assert_eq!(live["spec"]["containers"], json!([{"name": "b", "image": "2"}]));
}

/// A small generator, so that failures repeat.
struct Rng(u64);
impl Rng {
    fn next(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

#[test]
fn properties_of_apply() {
    let s = schema("ConfigMap");
    for seed in 0..300 {
        let mut r = Rng(seed);
        let mut live: Option<Value> = None;
        for step in 0..8 {
            let mut data = serde_json::Map::new();
            for k in ["a", "b", "c"] {
                if r.next(2) == 0 {
                    data.insert(k.into(), r.next(3).to_string().into());
                }
            }
            let who = manager(["m", "n", "o"][r.next(3) as usize], &format!("t{step}"));
            let config = cm(Value::Object(data.clone()));
            let next = apply(&s, live.as_ref(), &config, &who, true).unwrap();
            // What was applied is there, and applying it again changes nothing.
            for (k, v) in &data {
                assert_eq!(next["data"].get(k), Some(v), "seed {seed}");
            }
            let again = apply(&s, Some(&next), &config, &who, false).unwrap();
            assert_eq!(again, next, "seed {seed} step {step}");
            // Every field has an owner.
            let sets = decode_entries(object::managed_fields(&next)).unwrap();
            for k in next["data"].as_object().into_iter().flatten().map(|(k, _)| k) {
                let owned = sets.iter().any(|e| e.set.paths().contains(&format!(".data.{k}")));
                assert!(owned, "seed {seed}: {k} has no owner");
            }
            live = Some(next);
        }
    }
}

#[test]
fn the_last_metadata_that_was_applied_goes_and_the_name_stays() {
    let s = schema("ConfigMap");
    let mut first = cm(json!({"x": "1"}));
    first["metadata"]["finalizers"] = json!(["a.b/c"]);
    let live = apply(&s, None, &first, &manager("one", "t1"), false).unwrap();
    let second = apply(&s, Some(&live), &cm(json!({"x": "1"})), &manager("one", "t2"), false).unwrap();
    assert_eq!(second["metadata"]["name"], "a");
    assert!(second["metadata"].get("finalizers").is_none_or(|list| *list == json!([])), "{second}");
}
