//! Server-side printing: the columns and cells of a `meta.k8s.io/v1` Table, as
//! upstream's `printers/internalversion`. A CRD brings its own columns.

mod duration;
mod json_path;
mod kinds;
mod pod;
mod rows;
mod values;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object;
use crate::registry::Resource;

pub use duration::{age, human_duration};
pub use json_path::JsonPath;

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `boolean`, `number` or `date`.
    pub kind: String,
    pub format: String,
    pub description: String,
    /// 0 is always shown, 1 only by `-o wide`.
    pub priority: i32,
}

impl Column {
    pub fn to_value(&self) -> Value {
        json!({"name": self.name, "type": self.kind, "format": self.format,
            "description": self.description, "priority": self.priority})
    }
}

const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const CREATED: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.";

fn column(name: &str, kind: &str, priority: i32) -> Column {
    let (format, description) = match name {
        "Name" => ("name", NAME),
        "Age" => ("", CREATED),
        _ => ("", ""),
    };
    Column {
        name: name.to_string(),
        kind: kind.to_string(),
        format: format.to_string(),
        description: description.to_string(),
        priority,
    }
}

/// The columns of a resource, in the order of [`cells`].
pub fn columns(resource: &Resource) -> Vec<Column> {
    if resource.custom {
        let mut out = vec![column("Name", "string", 0)];
        if resource.columns.is_empty() {
            out.push(Column { kind: "date".into(), ..column("Age", "date", 0) });
        }
        out.extend(resource.columns.iter().map(|c| Column {
            name: c.name.clone(),
            kind: c.kind.clone(),
            format: c.format.clone(),
            description: c.description.clone(),
            priority: c.priority,
        }));
        return out;
    }
    // `Name`, `Name#` for an integer, `Name+` for wide output only.
    kinds::header(&resource.group, &resource.kind)
        .split('|')
        .map(|c| {
            let (c, priority) = c.strip_suffix('+').map_or((c, 0), |c| (c, 1));
            let (name, kind) = c.strip_suffix('#').map_or((c, "string"), |c| (c, "integer"));
            column(name, kind, priority)
        })
        .collect()
}

/// The cells of one object.
pub fn cells(resource: &Resource, obj: &Value, now: Timestamp) -> Vec<Value> {
    if !resource.custom {
        return kinds::cells(&resource.group, &resource.kind, obj, now);
    }
    let mut out = vec![Value::from(object::name(obj))];
    if resource.columns.is_empty() {
        out.push(object::creation_timestamp(obj).map_or(Value::Null, |t| age(Some(t), now).into()));
    }
    for c in &resource.columns {
        out.push(custom_cell(obj, &c.json_path, &c.kind, now));
    }
    out
}

fn custom_cell(obj: &Value, path: &str, kind: &str, now: Timestamp) -> Value {
    let Ok(path) = JsonPath::parse(path) else { return Value::Null };
    let found = path.find(obj);
    let Some(first) = found.first() else { return Value::Null };
    match (kind, first) {
        ("integer", v) if v.is_i64() || v.is_u64() => (*v).clone(),
        ("integer", Value::Number(n)) => n.as_f64().map_or(Value::Null, |f| Value::from(f as i64)),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*first).clone(),
        ("date", Value::String(s)) => match s.parse::<Timestamp>() {
            Ok(_) => age(Some(s), now).into(),
            Err(_) => "<invalid>".into(),
        },
        ("string", _) => {
            let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
            found.iter().map(|v| text(v)).collect::<Vec<_>>().join(" ").into()
        }
        _ => Value::Null,
    }
}

/// A whole Table. `include` is what each row's `object` carries (`includeObject=`):
/// given an object, its metadata only, the object, or null.
pub fn table<'a>(
    resource: &Resource,
    items: impl Iterator<Item = &'a Value>,
    metadata: Value,
    now: Timestamp,
    include: impl Fn(&Value) -> Value,
) -> Value {
    let rows: Vec<Value> =
        items.map(|o| json!({"cells": cells(resource, o, now), "object": include(o)})).collect();
    let columns: Vec<Value> = columns(resource).iter().map(Column::to_value).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows})
}

/// The default of `includeObject`: the object's metadata.
pub fn partial_object_metadata(obj: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object::get(obj, "/metadata")})
}

/// The same of an object's JSON, appended to `out`: the metadata's text is taken over as it is.
///
/// # Errors
/// When `object` is not a JSON object; nothing was appended then.
pub fn write_partial_object_metadata(out: &mut Vec<u8>, object: &[u8]) -> serde_json::Result<()> {
    #[derive(serde::Deserialize)]
    struct Partial<'a> {
        #[serde(borrow)]
        metadata: Option<&'a serde_json::value::RawValue>,
    }
    let partial: Partial<'_> = serde_json::from_slice(object)?;
    let metadata = partial.metadata.map_or("null", serde_json::value::RawValue::get);
    out.extend_from_slice(br#"{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":"#);
    out.extend_from_slice(metadata.as_bytes());
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{PrinterColumn, Registry};

    #[test]
    fn metadata_of_values_and_of_text_is_the_same() {
        for object in [
            json!({"apiVersion": "v1", "data": {"metadata": "}"}, "kind": "ConfigMap",
                "metadata": {"name": "a", "labels": {"x": "\"}", "ä": "\u{1}"}, "managedFields": [{"fieldsV1": {"f:data": {}}}]}}),
            json!({"kind": "ConfigMap"}),
            json!({"metadata": {}}),
        ] {
            let mut out = b"before ".to_vec();
            write_partial_object_metadata(&mut out, object.to_string().as_bytes()).unwrap();
            assert_eq!(out, format!("before {}", partial_object_metadata(&object)).into_bytes());
        }
        let mut out = Vec::new();
        assert!(write_partial_object_metadata(&mut out, b"{\"metadata\":").is_err());
        assert!(out.is_empty());
    }

    #[test]
    fn as_many_cells_as_columns() {
        let now = Timestamp::UNIX_EPOCH;
        for r in Registry::builtin().iter() {
            let v = json!({"metadata": {"name": "a", "creationTimestamp": "1969-12-31T00:00:00Z"}});
            let (head, row) = (columns(r), cells(r, &v, now));
            assert_eq!(head.len(), row.len(), "{}", r.kind);
        }
    }

    #[test]
    fn pods_and_deployments() {
        let r = Registry::builtin();
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let pods = r.find("", "v1", "pods").unwrap();
        let p = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n",
            "containers": [{"name": "c"}]}, "status": {"phase": "Running", "podIP": "1.2.3.4", "containerStatuses": [
            {"name": "c", "ready": true, "restartCount": 2, "state": {"running": {}},
             "lastState": {"terminated": {"finishedAt": "2026-01-01T00:08:00Z"}}}]}});
        assert_eq!(
            cells(&pods, &p, now),
            [
                json!("a"),
                json!("1/1"),
                json!("Running"),
                json!("2 (2m ago)"),
                json!("10m"),
                json!("1.2.3.4"),
                json!("n"),
                json!("<none>"),
                json!("<none>")
            ]
        );
        let mut w = p;
        w["status"]["containerStatuses"][0] =
            json!({"ready": false, "restartCount": 0, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        assert_eq!(cells(&pods, &w, now)[2], "CrashLoopBackOff");
        let d = json!({"metadata": {"name": "d", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"replicas": 3,
            "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1}});
        let deployments = r.find("apps", "v1", "deployments").unwrap();
        assert_eq!(
            cells(&deployments, &d, now),
            [
                json!("d"),
                json!("1/3"),
                json!(2),
                json!(1),
                json!("10m"),
                json!("c"),
                json!("i"),
                json!("a=b")
            ]
        );
    }

    #[test]
    fn kinds_of_the_api_servers_own() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let row = |group: &str, plural: &str, rest: Value| {
            let mut object = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}});
            for (key, value) in rest.as_object().unwrap() {
                object[key] = value.clone();
            }
            let cells = cells(&Registry::builtin().find(group, "v1", plural).unwrap(), &object, now);
            Value::from(cells).to_string()
        };
        let admission =
            |plural: &str, spec: Value| row("admissionregistration.k8s.io", plural, json!({"spec": spec}));
        let flow =
            |plural: &str, spec: Value| row("flowcontrol.apiserver.k8s.io", plural, json!({"spec": spec}));
        let one = json!({"validations": [{}, {}], "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}});
        assert_eq!(admission("validatingadmissionpolicies", one), r#"["a",2,"v1/ConfigMap","10m"]"#);
        assert_eq!(
            admission("mutatingadmissionpolicies", json!({"mutations": [{}]})),
            r#"["a",1,"<unset>","10m"]"#
        );
        for (reference, shown) in [
            (json!({"name": "p"}), "p"),
            (json!({"name": "p", "namespace": "n"}), "n/p"),
            (json!({"selector": {"matchLabels": {"x": "y"}}}), "x=y"),
            (Value::Null, "<unset>"),
        ] {
            assert_eq!(
                admission(
                    "validatingadmissionpolicybindings",
                    json!({"policyName": "q", "paramRef": reference})
                ),
                format!(r#"["a","q","{shown}","10m"]"#)
            );
        }
        let schema = json!({"priorityLevelConfiguration": {"name": "l"}, "matchingPrecedence": 5, "distinguisherMethod": {"type": "ByUser"}});
        assert_eq!(flow("flowschemas", schema), r#"["a","l",5,"ByUser","10m","?"]"#);
        let limited = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 20,
            "limitResponse": {"queuing": {"queues": 128, "handSize": 6, "queueLengthLimit": 50}}}});
        assert_eq!(flow("prioritylevelconfigurations", limited), r#"["a","Limited",20,128,6,50,"10m"]"#);
        assert_eq!(
            row(
                "resource.k8s.io",
                "resourceclaims",
                json!({"status": {"allocation": {}, "reservedFor": [{}]}})
            ),
            r#"["a","allocated,reserved","10m"]"#
        );
        assert_eq!(row("", "limitranges", json!({})), r#"["a","2026-01-01T00:00:00Z"]"#);
    }

    #[test]
    fn custom_columns() {
        let base = Registry::builtin().find("", "v1", "configmaps").unwrap();
        let c = |name: &str, kind: &str, path: &str| PrinterColumn {
            name: name.into(),
            kind: kind.into(),
            json_path: path.into(),
            ..Default::default()
        };
        let r = Resource {
            custom: true,
            columns: vec![
                c("Size", "integer", ".spec.size"),
                c("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].status"),
                c("Age", "date", ".metadata.creationTimestamp"),
            ],
            ..Resource::clone(&base)
        };
        let v = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"size": 3},
            "status": {"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        let now: Timestamp = "2026-01-01T05:00:00Z".parse().unwrap();
        assert_eq!(cells(&r, &v, now), [json!("x"), json!(3), json!("True"), json!("5h")]);
        assert_eq!(columns(&r).len(), 4);
    }
}
