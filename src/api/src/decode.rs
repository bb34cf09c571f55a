//! From bytes to a value, guided by a schema, with the strictness and wording of
//! upstream's decoder (sigs.k8s.io/json): unknown and duplicate fields are found,
//! wrong types refused, quantities and times brought to their canonical form.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::object;
use crate::patch::conversion;
use crate::quantity::Quantity;
use crate::registry::Resource;
use crate::schema::{Cursor, SchemaRef, Shape};
use crate::status::Status;

/// What happens to unknown and duplicate fields (`fieldValidation=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    /// Each is answered as a warning; the server's default.
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// From the query parameter; empty is the default.
    pub fn parse(s: &str) -> Option<Self> {
        match s {
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// The group, version and kind that a body is decoded as.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
}

/// At most this many strict errors are reported, as upstream.
pub(crate) const MAX_STRICT_ERRORS: usize = 100;

/// Decodes the body of a resource. The caller limits the size and turns YAML into JSON.
/// Unknown fields are pruned unless `Strict` refuses them; the strings are warnings.
pub fn decode(
    bytes: &[u8],
    content_type: &str,
    resource: &Resource,
    mode: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let base = content_type.split(';').next().unwrap_or_default().trim();
    if !(base.is_empty() || base == "application/json" || base.ends_with("+json")) {
        return Err(Status::unsupported_media_type(&["application/json", "application/yaml"]));
    }
    let target = Target { group: &resource.group, version: &resource.version, kind: &resource.kind };
    decode_as(bytes, &resource.schema, target, mode)
}

/// Decodes the body of a subresource or of options, given its own schema and kind.
pub fn decode_as(
    bytes: &[u8],
    schema: &SchemaRef,
    target: Target<'_>,
    mode: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let mut de = serde_json::Deserializer::from_slice(bytes);
    let mut walk = Walk::new(schema, mode);
    let value = walk.run(&mut de);
    let end = if value.is_ok() { de.end() } else { Ok(()) };
    finish(walk, value, end.err(), target)
}

/// Reads a patch: any JSON. The strings name the keys that come twice in it, the last of which counts.
///
/// # Errors
/// When it is not JSON.
pub fn patch(bytes: &[u8], mode: FieldValidation) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut de = serde_json::Deserializer::from_slice(bytes);
    let mut walk = Walk { mode, ..Walk::default() };
    let value = walk.run(&mut de)?;
    de.end()?;
    Ok((value, walk.found))
}

/// Checks and normalizes a value that came out of a patch in which these keys came twice. `is_converted`: types
/// are told in the words of the converter of maps.
pub(crate) fn patched(
    value: Value,
    resource: &Resource,
    mode: FieldValidation,
    twice: &[String],
    is_converted: bool,
) -> Result<(Value, Vec<String>), Problem> {
    let target = Target { group: &resource.group, version: &resource.version, kind: &resource.kind };
    let mut walk = Walk { is_converted, ..Walk::new(&resource.schema, mode) };
    let value = walk.run(value);
    if is_converted {
        walk.found.sort();
    }
    walk.found.splice(..0, twice.iter().cloned());
    judge(walk, value, None, target)
}

/// Checks and normalizes a value that was changed here, as if it had been sent. On an error nothing is left
/// of it.
pub fn check_schema(
    obj: &mut Value,
    resource: &Resource,
    mode: FieldValidation,
) -> Result<Vec<String>, Status> {
    let target = Target { group: &resource.group, version: &resource.version, kind: &resource.kind };
    let mut walk = Walk::new(&resource.schema, mode);
    let value = walk.run(obj.take());
    let (checked, warnings) = finish(walk, value, None, target)?;
    *obj = checked;
    Ok(warnings)
}

/// Why a body is not an object of its kind.
#[derive(Debug)]
pub(crate) enum Problem {
    /// What the decoder says.
    Words(String),
    Other(Status),
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Self::Other(status)
    }
}

fn finish(
    walk: Walk<'_>,
    value: Result<Value, serde_json::Error>,
    trailing: Option<serde_json::Error>,
    want: Target<'_>,
) -> Result<(Value, Vec<String>), Status> {
    judge(walk, value, trailing, want).map_err(|problem| match problem {
        Problem::Other(status) => status,
        Problem::Words(what) => Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {what}",
            want.kind, want.version, want.kind
        )),
    })
}

fn judge(
    walk: Walk<'_>,
    value: Result<Value, serde_json::Error>,
    trailing: Option<serde_json::Error>,
    want: Target<'_>,
) -> Result<(Value, Vec<String>), Problem> {
    if let Some(fatal) = walk.fatal {
        return Err(Problem::Words(fatal));
    }
    if let Ok(value) = &value
        && object::nests_deeper_than(value, object::MAX_NESTING)
    {
        return Err(Problem::Words(format!("exceeded max depth of {}", object::MAX_NESTING)));
    }
    let mut value = match (value, trailing) {
        (Ok(v), None) => v,
        (Err(e), _) | (_, Some(e)) => {
            let text = format!("couldn't get version/kind; json parse error: {e}");
            return Err(Status::bad_request(text).into());
        }
    };
    let Value::Object(map) = &mut value else {
        return Err(Status::bad_request(
            "couldn't get version/kind; json parse error: json: cannot unmarshal a value that is no object into Go value of type struct",
        )
        .into());
    };
    let expected = object::join_api_version(want.group, want.version);
    match map.get("apiVersion").and_then(Value::as_str).unwrap_or_default() {
        "" => drop(map.insert("apiVersion".to_string(), expected.into())),
        sent if sent == expected => {}
        sent => {
            return Err(Status::bad_request(format!(
                "the API version in the data ({sent}) does not match the expected API version ({expected})"
            ))
            .into());
        }
    }
    match map.get("kind").and_then(Value::as_str).unwrap_or_default() {
        "" => drop(map.insert("kind".to_string(), want.kind.into())),
        sent if sent == want.kind => {}
        sent => {
            return Err(Status::bad_request(format!(
                "{sent} in version {:?} cannot be handled as a {}: the kind in the data ({sent}) does not match the expected kind ({})",
                want.version, want.kind, want.kind
            ))
            .into());
        }
    }
    match walk.mode {
        FieldValidation::Strict if !walk.found.is_empty() => {
            Err(Problem::Words(format!("strict decoding error: {}", walk.found.join(", "))))
        }
        FieldValidation::Warn => Ok((value, walk.found)),
        _ => Ok((value, Vec::new())),
    }
}

#[derive(Default)]
struct Walk<'a> {
    mode: FieldValidation,
    /// `None` where anything goes.
    root: Option<Cursor<'a>>,
    /// Types are enforced while decoding and zero values follow Go.
    typed: bool,
    /// Wrong types are told in the words of the converter of maps, not in those of the JSON decoder.
    is_converted: bool,
    found: Vec<String>,
    fatal: Option<String>,
    /// `spec.containers[0].image`
    path: String,
    /// The same without indices and map keys, as Go names it.
    go_path: String,
    /// The struct that holds the present field.
    holder: &'a str,
}

impl<'a> Walk<'a> {
    fn new(schema: &'a SchemaRef, mode: FieldValidation) -> Self {
        Walk { mode, root: Some(schema.cursor()), typed: schema.set().is_builtin(), ..Walk::default() }
    }

    fn run<'de, D: Deserializer<'de>>(&mut self, de: D) -> Result<Value, D::Error> {
        let at = self.root;
        Seed { walk: self, at }.deserialize(de)
    }

    fn strict(&mut self, what: &str) {
        if self.mode != FieldValidation::Ignore && self.found.len() < MAX_STRICT_ERRORS {
            let error = format!("{what} field {:?}", self.path);
            // Each is told once, as upstream's decoder does it.
            if !self.found.contains(&error) {
                self.found.push(error);
            }
        }
    }

    fn mismatch(&mut self, got: &str, at: &Cursor<'_>) {
        let want = go_type(at);
        let place = if self.holder.is_empty() {
            "value".to_string()
        } else {
            format!("struct field {}.{}", self.holder, self.go_path)
        };
        let of_converter = if self.is_converted { conversion(got, at.node.shape) } else { None };
        self.fatal = Some(
            of_converter
                .unwrap_or_else(|| format!("json: cannot unmarshal {got} into Go {place} of type {want}")),
        );
    }
}

fn go_type(at: &Cursor<'_>) -> String {
    let item = |at: &Cursor<'_>| at.item().map_or_else(|| "interface {}".to_string(), |i| go_type(&i));
    match at.node.shape {
        Shape::String | Shape::Time | Shape::MicroTime | Shape::Quantity => "string".into(),
        Shape::Bytes => "[]uint8".into(),
        Shape::Int32 | Shape::IntOrString => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Number => "float64".into(),
        Shape::Bool => "bool".into(),
        Shape::Array => format!("[]{}", item(at)),
        Shape::Map => format!("map[string]{}", item(at)),
        Shape::Any => "interface {}".into(),
        Shape::Object => {
            let mut parts = at.node.name.rsplit('.');
            let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            format!("{package}.{name}")
        }
    }
}

struct Seed<'w, 'a> {
    walk: &'w mut Walk<'a>,
    /// `None` below a place where anything goes.
    at: Option<Cursor<'a>>,
}

impl<'w, 'a> Seed<'w, 'a> {
    /// The cursor if the type is enforced here.
    fn typed(&self) -> Option<Cursor<'a>> {
        self.at.filter(|at| self.walk.typed && at.node.shape != Shape::Any)
    }

    fn refuse<E: serde::de::Error>(self, got: &str, at: &Cursor<'a>) -> Result<Value, E> {
        self.walk.mismatch(got, at);
        Err(E::custom("type mismatch"))
    }

    fn number<E: serde::de::Error>(self, n: Number) -> Result<Value, E> {
        let Some(at) = self.typed() else { return Ok(Value::Number(n)) };
        let ok = match at.node.shape {
            Shape::Int32 | Shape::IntOrString => n.as_i64().is_some_and(|v| i32::try_from(v).is_ok()),
            Shape::Int64 => n.is_i64(),
            Shape::Number => true,
            Shape::Quantity => return self.quantity(&n.to_string()),
            _ => return self.refuse("number", &at),
        };
        if ok { Ok(Value::Number(n)) } else { self.refuse(&format!("number {n}"), &at) }
    }

    fn quantity<E: serde::de::Error>(self, s: &str) -> Result<Value, E> {
        // Most quantities are short and already canonical; formatting proves it.
        match s.trim().parse::<Quantity>() {
            Ok(q) => Ok(Value::String(q.to_string())),
            Err(e) => {
                self.walk.fatal = Some(e.to_string());
                Err(E::custom("quantity"))
            }
        }
    }

    fn string<E: serde::de::Error>(self, s: String) -> Result<Value, E> {
        let Some(at) = self.typed() else { return Ok(Value::String(s)) };
        match at.node.shape {
            Shape::String | Shape::IntOrString => Ok(Value::String(s)),
            Shape::Quantity => self.quantity(&s),
            Shape::Time | Shape::MicroTime => self.time(&s, at.node.shape == Shape::MicroTime),
            Shape::Bytes => {
                use base64::Engine;
                match base64::engine::general_purpose::STANDARD.decode(s.as_bytes()) {
                    Ok(_) => Ok(Value::String(s)),
                    Err(e) => {
                        let at = match e {
                            base64::DecodeError::InvalidByte(i, _)
                            | base64::DecodeError::InvalidLastSymbol(i, _) => i,
                            _ => s.len(),
                        };
                        self.walk.fatal = Some(format!("illegal base64 data at input byte {at}"));
                        Err(E::custom("base64"))
                    }
                }
            }
            _ => self.refuse("string", &at),
        }
    }

    fn time<E: serde::de::Error>(self, s: &str, micro: bool) -> Result<Value, E> {
        match s.parse::<jiff::Timestamp>() {
            Ok(t) if micro => Ok(Value::String(object::format_micro_time(t))),
            // The canonical form is 20 bytes and ends in Z: keep it.
            Ok(_) if s.len() == 20 && s.ends_with('Z') => Ok(Value::String(s.to_string())),
            Ok(t) => Ok(Value::String(object::format_time(t))),
            Err(_) => {
                let layout =
                    if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
                self.walk.fatal = Some(format!(
                    "parsing time {:?} as {layout:?}: cannot parse {s:?} as \"2006\"",
                    format!("{s:?}")
                ));
                Err(E::custom("time"))
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<Value, E> {
        match self.typed() {
            Some(at) if at.node.shape != Shape::Bool => self.refuse("bool", &at),
            _ => Ok(Value::Bool(v)),
        }
    }
    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Value, E> {
        self.number(v.into())
    }
    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Value, E> {
        self.number(v.into())
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        match Number::from_f64(v) {
            Some(n) => self.number(n),
            None => Err(E::custom("number out of range")),
        }
    }
    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Value, E> {
        self.string(v.to_owned())
    }
    fn visit_string<E: serde::de::Error>(self, v: String) -> Result<Value, E> {
        self.string(v)
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        if let Some(at) = self.typed().filter(|at| at.node.shape != Shape::Array) {
            return self.refuse("array", &at);
        }
        let item = self.at.and_then(|at| at.item());
        let mut out = Vec::with_capacity(seq.size_hint().unwrap_or(0));
        let len = self.walk.path.len();
        loop {
            self.walk.path.truncate(len);
            push_index(&mut self.walk.path, out.len());
            match seq.next_element_seed(Seed { walk: &mut *self.walk, at: item })? {
                // Go reads a null item as the zero value of its type.
                Some(Value::Null) if self.walk.typed => out.push(zero(item)),
                Some(v) => out.push(v),
                None => break,
            }
        }
        self.walk.path.truncate(len);
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        if let Some(at) = self.typed().filter(|at| !matches!(at.node.shape, Shape::Object | Shape::Map)) {
            return self.refuse("object", &at);
        }
        let mut out = Map::new();
        let (len, go_len, holder) = (self.walk.path.len(), self.walk.go_path.len(), self.walk.holder);
        let first = len == 0;
        while let Some(name) = access.next_key::<String>()? {
            self.walk.path.truncate(len);
            self.walk.go_path.truncate(go_len);
            self.walk.holder = holder;
            if !first {
                self.walk.path.push('.');
            }
            self.walk.path.push_str(&name);
            if out.contains_key(&name) {
                self.walk.strict("duplicate");
            }
            let mut child = None;
            let mut required = false;
            let mut declared = false;
            if let Some(at) = self.at {
                if let Some((field, cursor)) = at.field(&name) {
                    child = Some(cursor);
                    required = field.required;
                    declared = true;
                    if self.walk.go_path.is_empty() {
                        self.walk.go_path.push_str(&name);
                    } else {
                        self.walk.go_path.push('.');
                        self.walk.go_path.push_str(&name);
                    }
                    self.walk.holder = at.node.short_name();
                } else if let Some(item) = at.item() {
                    child = Some(item);
                } else if !at.node.preserve_unknown && at.node.shape == Shape::Object {
                    self.walk.strict("unknown");
                    access.next_value::<serde::de::IgnoredAny>()?;
                    continue;
                }
            }
            let value = access.next_value_seed(Seed { walk: &mut *self.walk, at: child })?;
            let value = if self.walk.typed && child.is_some() {
                match value {
                    Value::Null if declared => {
                        out.remove(&name);
                        continue;
                    }
                    Value::Null => zero(child),
                    Value::Array(a) if a.is_empty() && declared && !required => continue,
                    Value::Object(m)
                        if m.is_empty()
                            && declared
                            && !required
                            && child.is_some_and(|c| c.node.shape == Shape::Map) =>
                    {
                        continue;
                    }
                    v => v,
                }
            } else {
                value
            };
            out.insert(name, value);
        }
        self.walk.path.truncate(len);
        self.walk.go_path.truncate(go_len);
        self.walk.holder = holder;
        Ok(Value::Object(out))
    }
}

/// Go's zero value of a list's item or a map's value.
fn zero(at: Option<Cursor<'_>>) -> Value {
    match at.map(|a| a.node.shape) {
        Some(Shape::String | Shape::Bytes) => "".into(),
        Some(Shape::Quantity) => "0".into(),
        Some(Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString) => 0.into(),
        Some(Shape::Bool) => false.into(),
        Some(Shape::Object | Shape::Map) => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

fn push_index(path: &mut String, i: usize) {
    use fmt::Write;
    // Writing to a String cannot fail.
    let _ = write!(path, "[{i}]");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use serde_json::json;

    fn run(
        group: &str,
        plural: &str,
        body: &Value,
        mode: FieldValidation,
    ) -> Result<(Value, Vec<String>), String> {
        text(group, plural, &body.to_string(), mode)
    }

    fn text(
        group: &str,
        plural: &str,
        body: &str,
        mode: FieldValidation,
    ) -> Result<(Value, Vec<String>), String> {
        let r = Registry::builtin();
        let res = r.find(group, "v1", plural).unwrap();
        decode(body.as_bytes(), "application/json", &res, mode).map_err(|e| e.to_string())
    }

    #[test]
    fn unknown_and_duplicate_fields() {
        let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","name":"b"},
            "spec":{"foo":1,"replicas":1,"template":{"spec":{"containers":[{"name":"c","imag":"x"}]}}}}"#;
        let (v, warnings) = text("apps", "deployments", body, FieldValidation::Warn).unwrap();
        assert_eq!(
            warnings,
            [
                r#"duplicate field "metadata.name""#,
                r#"unknown field "spec.foo""#,
                r#"unknown field "spec.template.spec.containers[0].imag""#
            ]
        );
        assert_eq!(v["metadata"]["name"], "b");
        assert!(v["spec"].get("foo").is_none());
        let e = text("apps", "deployments", body, FieldValidation::Strict).unwrap_err();
        assert_eq!(
            e,
            r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: duplicate field "metadata.name", unknown field "spec.foo", unknown field "spec.template.spec.containers[0].imag""#
        );
        assert!(text("apps", "deployments", body, FieldValidation::Ignore).unwrap().1.is_empty());
    }

    #[test]
    fn wrong_types() {
        let cases = [
            (
                json!({"spec": {"replicas": "3"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"spec": {"replicas": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"name": 5}]}}}}),
                "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.name of type string",
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": {}}}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
        ];
        for (body, want) in cases {
            let e = run("apps", "deployments", &body, FieldValidation::Warn).unwrap_err();
            assert_eq!(e, format!(r#"Deployment in version "v1" cannot be handled as a Deployment: {want}"#));
        }
    }

    #[test]
    fn normalizes() {
        let body = json!({"metadata": {"name": "p", "creationTimestamp": null, "labels": {}, "annotations": {"a": null}},
            "spec": {"containers": [{"name": "c", "args": [], "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}],
                     "volumes": [{"name": "v", "emptyDir": {}}]}});
        let (v, w) = run("", "pods", &body, FieldValidation::Strict).unwrap();
        assert!(w.is_empty());
        assert_eq!(v["metadata"], json!({"name": "p", "annotations": {"a": ""}}));
        let c = &v["spec"]["containers"][0];
        assert_eq!(c["resources"]["limits"], json!({"cpu": "500m", "memory": "1Gi"}));
        assert!(c.get("args").is_none());
        assert_eq!(v["spec"]["volumes"][0]["emptyDir"], json!({}));
        assert_eq!((v["apiVersion"].as_str(), v["kind"].as_str()), (Some("v1"), Some("Pod")));
    }

    #[test]
    fn refuses() {
        let strict = FieldValidation::Strict;
        assert!(
            run("", "secrets", &json!({"data": {"a": "!!"}}), strict)
                .unwrap_err()
                .ends_with("illegal base64 data at input byte 0")
        );
        assert!(
            run("", "pods", &json!({"apiVersion": "v2"}), strict)
                .unwrap_err()
                .contains("does not match the expected API version (v1)")
        );
        assert!(run("", "pods", &json!({"kind": "Node"}), strict).is_err());
        assert!(
            text("", "pods", "{", strict)
                .unwrap_err()
                .starts_with("couldn't get version/kind; json parse error")
        );
        assert!(text("", "pods", "[]", strict).is_err());
        assert!(text("", "pods", &"[".repeat(5000), strict).is_err());
        assert!(
            run("", "pods", &json!({"metadata": {"creationTimestamp": "yesterday"}}), strict)
                .unwrap_err()
                .contains("parsing time")
        );
    }

    #[test]
    fn patched_values_are_checked() {
        let r = Registry::builtin();
        let res = r.find("", "v1", "configmaps").unwrap();
        let mut v = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "y"}, "nope": 1});
        assert_eq!(check_schema(&mut v, &res, FieldValidation::Warn).unwrap(), [r#"unknown field "nope""#]);
        assert!(v.get("nope").is_none());
        v["data"]["x"] = json!(1);
        assert!(check_schema(&mut v, &res, FieldValidation::Warn).is_err());
    }
}
