//! Whole objects: bodies, what the rules of their kinds make of them, custom resources.

use std::sync::{Arc, OnceLock};

use kedge_api::crd;
use kedge_api::decode::{FieldValidation, check_schema, decode};
use kedge_api::registry::{Registry, Resource};
use kedge_api::{limits, protobuf as proto, quota, table};
use serde_json::{Value, json};

use super::bytes;
use crate::shape::{self, Source};

fn resources() -> &'static [Arc<Resource>] {
    static RESOURCES: OnceLock<Vec<Arc<Resource>>> = OnceLock::new();
    RESOURCES.get_or_init(|| Registry::builtin().iter().cloned().collect())
}

/// All that is done with an object of a kind between its arrival and the store.
fn admit(resource: &Resource, mut object: Value, mut other: Value) {
    let Ok(_) = check_schema(&mut object, resource, FieldValidation::Warn) else { return };
    let Ok(warnings) = check_schema(&mut object, resource, FieldValidation::Strict) else {
        panic!("what was pruned is refused: {object}")
    };
    assert!(warnings.is_empty());
    let strategy = &resource.strategy;
    strategy.default(&mut object);
    let mut again = object.clone();
    strategy.default(&mut again);
    assert_eq!(again, object, "defaults twice");
    strategy.prepare_create(&mut object);
    let faults = strategy.validate(&object);
    for fault in &faults {
        assert!(!fault.to_string().is_empty());
    }
    let _ = strategy.warnings(&object);
    let _ = table::cells(resource, &object, jiff_now());
    let _ = table::partial_object_metadata(&object);
    let _ = quota::usage(&resource.group, &resource.plural, &object, jiff_now());
    if resource.kind == "LimitRange" {
        let mut pod = json!({ "spec": { "containers": [{ "name": "c" }] } });
        limits::default_pod(&object, &mut pod);
        let _ = limits::validate_pod(&object, &pod);
    }
    if check_schema(&mut other, resource, FieldValidation::Warn).is_ok() {
        strategy.default(&mut other);
        strategy.prepare_update(&mut other, &object);
        let _ = strategy.validate_update(&other, &object);
        for subresource in &resource.subresources {
            let mut changed = other.clone();
            strategy.prepare_subresource(&subresource.name, &mut changed, &object);
            let _ = strategy.validate_subresource(&subresource.name, &changed, &object);
        }
    }
    if let Ok(stored) = resource.to_storage(object) {
        let _ = resource.from_storage(stored);
    }
}

fn jiff_now() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

/// An object of any kind that its schema allows.
pub(super) fn object(data: &[u8]) {
    let mut source = Source(data);
    let resources = resources();
    let resource = &resources[source.below(resources.len())];
    let make = |source: &mut Source<'_>| {
        let wild = source.byte() < 40;
        let mut object = shape::value(resource.schema.cursor(), source, 0, wild);
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".to_owned(), resource.api_version().into());
            map.insert("kind".to_owned(), resource.kind.clone().into());
            map.entry("metadata").or_insert_with(|| json!({ "name": "a" }));
        }
        object
    };
    let (first, second) = (make(&mut source), make(&mut source));
    admit(resource, first, second);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::patches::seeds()
}

/// The body of a request in JSON; the first byte chooses the kind.
pub(super) fn text(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let resources = resources();
    let resource = &resources[usize::from(*kind) % resources.len()];
    for mode in [FieldValidation::Ignore, FieldValidation::Warn, FieldValidation::Strict] {
        let Ok((value, warnings)) = decode(body, "application/json", resource, mode) else { continue };
        assert!(warnings.len() <= 101);
        let written = value.to_string();
        let again = decode(written.as_bytes(), "application/json", resource, FieldValidation::Strict);
        let again = again.map(|(value, _)| without_floats(value));
        assert_eq!(again.ok(), Some(without_floats(value)), "{written}");
    }
}

pub(super) fn text_seeds() -> Vec<Vec<u8>> {
    let bodies = bytes(&[
        r#"{"metadata":{"name":"a","labels":{"x":"y"}},"spec":{"replicas":2,"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1.5"}}}]},"data":{"a":"b"}}"#,
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"creationTimestamp":"2024-01-01T00:00:00Z"},"spec":{"unknown":1,"unknown":2}}"#,
    ]);
    let mut seeds = Vec::new();
    for kind in (0..=80_u8).step_by(5) {
        for body in &bodies {
            seeds.push([&[kind][..], body.as_slice()].concat());
        }
    }
    seeds
}

/// The body of a request in protobuf.
pub(super) fn protobuf(data: &[u8]) {
    if let Ok(value) = proto::decode(data) {
        let written = value.to_string();
        assert!(serde_json::from_str::<Value>(&written).is_ok(), "{written}");
    }
}

/// Floats may lose their last digit when they are read.
fn without_floats(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => Value::Null,
        Value::Array(list) => list.into_iter().map(without_floats).collect(),
        Value::Object(map) => map.into_iter().map(|(name, value)| (name, without_floats(value))).collect(),
        other => other,
    }
}

/// Bodies of a few kinds: an envelope, metadata, and fields of every wire type.
pub(super) fn protobuf_seeds() -> Vec<Vec<u8>> {
    let field = |number: u8, bytes: &[u8]| {
        let mut out = vec![(number << 3) | 2, bytes.len() as u8];
        out.extend(bytes);
        out
    };
    let metadata = [
        field(1, b"a"),
        field(3, b"default"),
        vec![0x38, 5],
        field(11, &[field(1, b"k"), field(2, b"v")].concat()),
    ]
    .concat();
    let container = [field(1, b"c"), field(2, b"image"), field(3, b"sh"), field(6, &[0x18, 80])].concat();
    let objects = [
        ("v1", "Pod", [field(1, &metadata), field(2, &field(2, &container))].concat()),
        (
            "v1",
            "ConfigMap",
            [field(1, &metadata), field(2, &[field(1, b"x"), field(2, b"y")].concat())].concat(),
        ),
        ("apps/v1", "Deployment", [field(1, &metadata), field(2, &[0x08, 3])].concat()),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition", field(1, &metadata)),
    ];
    objects
        .iter()
        .map(|(version, kind, raw)| {
            let types = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
            [b"k8s\0".to_vec(), field(1, &types), field(2, raw)].concat()
        })
        .collect()
}

/// A CustomResourceDefinition, and objects of what it defines.
pub(super) fn custom_resource(data: &[u8]) {
    static DEFINITIONS: OnceLock<Option<Arc<Resource>>> = OnceLock::new();
    let definitions = DEFINITIONS
        .get_or_init(|| Registry::builtin().find("apiextensions.k8s.io", "v1", "customresourcedefinitions"));
    let definitions = definitions.as_ref().expect("a built-in kind");
    let mut source = Source(data);
    let scope = ["Namespaced", "Cluster"][source.below(2)];
    let mut version = json!({
        "name": "v1", "served": true, "storage": true,
        "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": schema(&mut source, 0) } } },
    });
    if source.byte() < 80 {
        version["subresources"] = json!({ "status": {}, "scale": {
            "specReplicasPath": ".spec.a", "statusReplicasPath": ".status.b", "labelSelectorPath": ".status.c",
        }});
    }
    if source.byte() < 80 {
        let path = [".spec.a", ".spec.b[*]", ".metadata.creationTimestamp", "{.x}"][source.below(4)];
        let kind = ["string", "integer", "date", "number", "boolean"][source.below(5)];
        version["additionalPrinterColumns"] = json!([{ "name": "A", "type": kind, "jsonPath": path }]);
    }
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "things.example.com" },
        "spec": {
            "group": "example.com", "scope": scope,
            "names": { "plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList" },
            "versions": [version],
        },
    });
    if check_schema(&mut definition, definitions, FieldValidation::Warn).is_err() {
        return;
    }
    definitions.strategy.default(&mut definition);
    definitions.strategy.prepare_create(&mut definition);
    if !definitions.strategy.validate(&definition).is_empty() {
        return;
    }
    let _ = definitions.strategy.warnings(&definition);
    let _ = crd::naming(&definition, &[]);
    definition["status"] = json!({ "conditions": [{ "type": "Established", "status": "True" }] });
    for row in crd::rows(&definition) {
        let make = |source: &mut Source<'_>| {
            let spec = if source.byte() < 128 {
                shape::any(source, 0)
            } else {
                row.schema
                    .field("spec")
                    .map_or(Value::Null, |spec| shape::value(spec.cursor(), source, 0, true))
            };
            json!({ "apiVersion": "example.com/v1", "kind": "Thing", "metadata": { "name": "a" }, "spec": spec })
        };
        let (first, second) = (make(&mut source), make(&mut source));
        admit(&row, first, second);
    }
}

/// A structural schema, mostly.
fn schema(source: &mut Source<'_>, depth: usize) -> Value {
    let kinds = ["object", "array", "string", "integer", "number", "boolean"];
    let kind = kinds[if depth > 4 { 2 + source.below(4) } else { source.below(6) }];
    let mut schema = json!({ "type": kind });
    match kind {
        "object" if source.byte() < 60 => {
            schema["additionalProperties"] = self::schema(source, depth + 1);
        }
        "object" => {
            for name in ["a", "b", "c", "d-e"].iter().take(source.below(5)) {
                schema["properties"][*name] = self::schema(source, depth + 1);
            }
            if source.byte() < 40 {
                schema["x-kubernetes-preserve-unknown-fields"] = json!(true);
            }
        }
        "array" => {
            schema["items"] = self::schema(source, depth + 1);
            match source.below(6) {
                0 => schema["x-kubernetes-list-type"] = json!("set"),
                1 => {
                    schema["x-kubernetes-list-type"] = json!("map");
                    schema["x-kubernetes-list-map-keys"] = json!(["a"]);
                    schema["items"]["required"] = json!(["a"]);
                }
                2 => schema["uniqueItems"] = json!(true),
                _ => {}
            }
            schema["maxItems"] = json!(source.below(9));
        }
        "string" => {
            let formats = ["date-time", "byte", "ipv4", "uuid", "duration", "email", "date", "cidr", "x"];
            schema["format"] = json!(formats[source.below(9)]);
            if source.byte() < 60 {
                schema["pattern"] = json!(["^a+$", "(", "\\d{3}", "[^x]"][source.below(4)]);
            }
        }
        _ => {
            schema["minimum"] = json!(source.below(9));
            schema["multipleOf"] = [json!(0), json!(2), json!(0.1), json!(-1)][source.below(4)].clone();
        }
    }
    match source.below(12) {
        0 => schema["default"] = shape::any(source, 4),
        1 => schema["nullable"] = json!(true),
        2 => schema["enum"] = json!(["a", 1, null]),
        3 => {
            schema["anyOf"] =
                json!([{ "required": ["a"] }, { "minLength": 2 }, { "not": { "enum": ["b"] } }]);
        }
        4 => schema["x-kubernetes-int-or-string"] = json!(true),
        5 => schema["x-kubernetes-embedded-resource"] = json!(true),
        6 => {
            let rules = [
                "self == oldSelf",
                "self.size() > 2",
                "self.a == self.b",
                "self.all(x, x != self)",
                "1 / 0 > 1",
            ];
            schema["x-kubernetes-validations"] = json!([{ "rule": rules[source.below(5)], "message": "m" }]);
        }
        7 => schema["x-kubernetes-map-type"] = json!("atomic"),
        _ => {}
    }
    schema
}
