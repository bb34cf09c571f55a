//! Reads the message back with a table of its own and compares it with the JSON form.

use kedge_api::registry::Registry;
use serde_json::json;

use super::*;

/// What a field of a message is in the JSON form.
#[derive(Clone, Copy)]
enum Is {
    Text(&'static str),
    Texts(&'static str),
    Flag(&'static str),
    One(&'static str, &'static str),
    Many(&'static str, &'static str),
    /// Name and value pairs, which are the object's own.
    Pairs(&'static str),
    Any(&'static str),
    Anys(&'static str),
    /// Nothing but a wrapping of another message.
    Wraps(&'static str),
    /// A list of one text is that text.
    Kind,
}

fn field(message: &str, number: u64) -> Is {
    use Is::*;
    match (message, number) {
        ("Document", 1) => Text("swagger"),
        ("Document", 2) => One("info", "Info"),
        ("Document", 8) => One("paths", "Paths"),
        ("Document", 9) => One("definitions", "Definitions"),
        ("Info", 1) => Text("title"),
        ("Info", 2) => Text("version"),
        ("Paths", 2) => Pairs("PathItem"),
        ("Definitions" | "Properties", 1) => Pairs("Schema"),
        ("PathItem", 2) => One("get", "Operation"),
        ("PathItem", 3) => One("put", "Operation"),
        ("PathItem", 4) => One("post", "Operation"),
        ("PathItem", 5) => One("delete", "Operation"),
        ("PathItem", 8) => One("patch", "Operation"),
        ("Operation", 5) => Text("operationId"),
        ("Operation", 7) => Texts("consumes"),
        ("Operation", 8) => Many("parameters", "ParametersItem"),
        ("Operation", 9) => One("responses", "Responses"),
        ("Operation", 13) | ("Schema", 31) => Pairs("Any"),
        ("ParametersItem", 1) => Wraps("Parameter"),
        ("Parameter", 1) => Wraps("BodyParameter"),
        ("Parameter", 2) => Wraps("NonBodyParameter"),
        ("NonBodyParameter", 3) => Wraps("Query"),
        ("BodyParameter", 2) => Text("name"),
        ("BodyParameter", 3) => Text("in"),
        ("BodyParameter", 4) => Flag("required"),
        ("BodyParameter", 5) => One("schema", "Schema"),
        ("Query", 2) => Text("in"),
        ("Query", 4) => Text("name"),
        ("Query", 6) => Text("type"),
        ("Query", 20) => Flag("uniqueItems"),
        ("Responses", 1) => Pairs("ResponseValue"),
        ("ResponseValue", 1) => Wraps("Response"),
        ("Response", 1) => Text("description"),
        ("Response", 2) => One("schema", "SchemaItem"),
        ("SchemaItem" | "ItemsItem" | "AdditionalPropertiesItem", 1) => Wraps("Schema"),
        ("Schema", 1) => Text("$ref"),
        ("Schema", 2) => Text("format"),
        ("Schema", 4) => Text("description"),
        ("Schema", 5) => Any("default"),
        ("Schema", 19) => Texts("required"),
        ("Schema", 20) => Anys("enum"),
        ("Schema", 21) => One("additionalProperties", "AdditionalPropertiesItem"),
        ("Schema", 22) => Kind,
        ("Schema", 23) => One("items", "ItemsItem"),
        ("Schema", 25) => One("properties", "Properties"),
        _ => panic!("{message} has no field {number} that we write"),
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// The fields of a message: numbers, and bytes or a number's.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = varint(&mut bytes);
        match key & 7 {
            0 => list.push((key >> 3, vec![u8::try_from(length).expect("a flag")])),
            2 => {
                let (value, rest) = bytes.split_at(usize::try_from(length).expect("short"));
                list.push((key >> 3, value.to_vec()));
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
    list
}

fn read(message: &str, bytes: &[u8]) -> Value {
    if message == "Any" {
        let [(2, text)] = &fields(bytes)[..] else { panic!("an Any has a text") };
        return serde_saphyr::from_str(std::str::from_utf8(text).expect("text")).expect("YAML");
    }
    let mut object = Map::new();
    let text = |bytes: Vec<u8>| Value::String(String::from_utf8(bytes).expect("text"));
    for (number, bytes) in fields(bytes) {
        let mut push = |key: &str, value: Value| {
            let list = object.entry(key).or_insert_with(|| json!([]));
            list.as_array_mut().expect("a list").push(value);
        };
        match field(message, number) {
            Is::Text(key) => drop(object.insert(key.into(), text(bytes))),
            Is::Texts(key) => push(key, text(bytes)),
            Is::Flag(key) => drop(object.insert(key.into(), (bytes == [1]).into())),
            Is::One(key, kind) => drop(object.insert(key.into(), read(kind, &bytes))),
            Is::Many(key, kind) => push(key, read(kind, &bytes)),
            Is::Any(key) => drop(object.insert(key.into(), read("Any", &bytes))),
            Is::Anys(key) => push(key, read("Any", &bytes)),
            Is::Wraps(kind) => return read(kind, &bytes),
            Is::Kind => {
                let [(1, kind)] = &fields(&bytes)[..] else { panic!("one type") };
                object.insert("type".into(), text(kind.clone()));
            }
            Is::Pairs(kind) => {
                let [(1, name), (2, value)] = &fields(&bytes)[..] else { panic!("a pair") };
                let name = String::from_utf8(name.clone()).expect("text");
                assert!(object.insert(name, read(kind, value)).is_none(), "a name twice");
            }
        }
    }
    Value::Object(object)
}

/// The JSON form without what protobuf does not tell from nothing.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, value)| !(*name == "parameters" && **value == json!([])))
            .map(|(name, value)| (name.clone(), normal(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(normal).collect(),
        other => other.clone(),
    }
}

#[test]
fn protobuf_says_what_json_says() {
    let registry = Registry::builtin();
    let json =
        crate::v2_document(registry.iter().map(|resource| &**resource), &[[0_u8; 0]; 0], "v1.36.0", &|_| {
            None
        })
        .expect("document");
    let read = read("Document", &document(&json));
    let expected = normal(&json);
    for part in ["swagger", "info"] {
        assert_eq!(read[part], expected[part]);
    }
    for part in ["paths", "definitions"] {
        let (read, expected) = (read[part].as_object(), expected[part].as_object().expect("object"));
        for (name, expected) in expected {
            assert_eq!(read.expect("object").get(name), Some(expected), "{part} {name}");
        }
        assert_eq!(read.map(Map::len), Some(expected.len()));
    }
}

#[test]
fn extensions_are_yaml_in_gnostics_style() {
    let cases = [
        (json!("name"), "name\n"),
        (json!("merge,retainKeys"), "\"merge,retainKeys\"\n"),
        (json!(true), "true\n"),
        (json!("true"), "\"true\"\n"),
        (json!(""), "\"\"\n"),
        (json!("8080"), "\"8080\"\n"),
        (json!({}), "{}\n"),
        (json!(["ip", "port"]), "- ip\n- port\n"),
        (
            json!([{ "group": "", "version": "v1", "kind": "Pod" }, { "group": "apps", "kind": "Scale" }]),
            "- group: \"\"\n  kind: Pod\n  version: v1\n- group: apps\n  kind: Scale\n",
        ),
        (
            json!({ "group": "apps", "deep": { "list": [1, [2, { "a": null }], []], "map": {} } }),
            "deep:\n  list:\n    - 1\n    - - 2\n      - a: null\n    - []\n  map: {}\ngroup: apps\n",
        ),
    ];
    for (value, expected) in cases {
        let mut text = String::new();
        yaml(&mut text, &value, 0);
        assert_eq!(text, expected);
        assert_eq!(serde_saphyr::from_str::<Value>(&text).expect("YAML"), value, "{text}");
    }
}
