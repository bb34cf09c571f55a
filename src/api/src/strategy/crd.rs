//! CustomResourceDefinition: names, versions and structural schemas
//! (`apiextensions-apiserver/pkg/apis/apiextensions/validation`, `pkg/apiserver/schema`).

use serde_json::{Value, json};

use super::admission_rules;
use super::checks::Checks;
use super::meta::ANNOTATIONS;
use super::structural::structural;
use super::util::{list, put, put_str, spec, strings, text};
use crate::field::At;
use crate::names;
use crate::object;
use crate::schema::{SchemaRef, validate_schema};

pub(super) fn default(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    let names = object::object_entry(s, "names");
    if let Some(kind) = names.get("kind").and_then(Value::as_str).map(str::to_string) {
        put_str(names, "singular", &kind.to_lowercase());
        put_str(names, "listKind", &format!("{kind}List"));
    }
    let conversion = object::object_entry(s, "conversion");
    put_str(conversion, "strategy", "None");
    if let Some(service) = conversion
        .get_mut("webhook")
        .and_then(|w| w.get_mut("clientConfig"))
        .and_then(|c| c.get_mut("service"))
        .and_then(Value::as_object_mut)
    {
        put(service, "port", 443);
    }
}

fn storage_version(obj: &Value) -> Option<&str> {
    list(&obj["spec"], "versions").iter().find(|v| v["storage"] == true)?["name"].as_str()
}

/// The version that objects will be stored in is remembered from the first day.
pub(super) fn create(obj: &mut Value) {
    let stored = storage_version(obj).map(str::to_owned);
    obj["status"]["storedVersions"] = json!(stored.into_iter().collect::<Vec<_>>());
}

/// A new storage version joins the old ones until somebody has rewritten all objects.
pub(super) fn update(obj: &mut Value, _old: &Value) {
    let Some(version) = storage_version(obj).map(str::to_owned) else { return };
    let mut stored = obj["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    if !stored.iter().any(|known| *known == version) {
        stored.push(json!(version));
        obj["status"]["storedVersions"] = json!(stored);
    }
}

/// `ValidateCustomResourceConversion`
fn conversion(c: &mut Checks, conversion: &Value) {
    c.one_of(conversion, "strategy", At::SPEC.child("conversion"), &["None", "Webhook"]);
    let webhook = &conversion["webhook"];
    if conversion["strategy"] != "Webhook" {
        if webhook.is_object() {
            c.forbidden("spec.conversion.webhook", "should not be set when strategy is not set to Webhook");
        }
        return;
    }
    let client = &webhook["clientConfig"];
    if !client.is_object() {
        c.required("spec.conversion.webhook.clientConfig", "required when strategy is set to Webhook");
    } else {
        admission_rules::client_config(c, client, At::root("spec.conversion.webhook.clientConfig"));
    }
    let versions = list(webhook, "conversionReviewVersions");
    if versions.is_empty() {
        c.required("spec.conversion.webhook.conversionReviewVersions", "");
    } else if !versions.iter().any(|version| *version == "v1" || *version == "v1beta1") {
        c.invalid(
            "spec.conversion.webhook.conversionReviewVersions",
            webhook["conversionReviewVersions"].clone(),
            "must include at least one of v1, v1beta1",
        );
    }
}

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    const NAMES: At<'_> = At::root("spec.names");
    let s = &obj["spec"];
    let (group, names) = (text(s, "group"), &s["names"]);
    let plural = text(names, "plural");
    if object::name(obj) != format!("{plural}.{group}") {
        c.invalid("metadata.name", object::name(obj), "must be spec.names.plural+\".\"+spec.group");
    }
    c.syntax(At::SPEC.child("group"), group, names::dns1123_subdomain);
    if group.split('.').count() < 2 {
        c.invalid("spec.group", group, "should be a domain with at least one dot");
    }
    if crate::crd::is_reserved_group(group) {
        c.forbidden("spec.group", "groups of kedge.internal are Kedge's own");
    }
    approved(c, obj, group);
    c.one_of(s, "scope", At::SPEC, &["Cluster", "Namespaced"]);
    if s["preserveUnknownFields"] == true {
        c.invalid("spec.preserveUnknownFields", true, "must be false in order to use defaults in the schema");
    }
    conversion(c, &s["conversion"]);
    for field in ["plural", "singular", "kind", "listKind"] {
        let name = text(names, field);
        c.each(NAMES.child(field), name, names::dns1035_label(&name.to_lowercase()));
    }
    if !text(names, "kind").is_empty() && names["kind"] == names["listKind"] {
        c.invalid("spec.names.listKind", text(names, "listKind"), "kind and listKind may not be the same");
    }
    for field in ["shortNames", "categories"] {
        for (i, name) in strings(names, field).enumerate() {
            c.syntax(NAMES.item(field, i), name, names::dns1035_label);
        }
    }
    versions(c, s);
}

/// Groups of Kubernetes itself are not for everybody (KEP-1111).
fn approved(c: &mut Checks, obj: &Value, group: &str) {
    const ANNOTATION: &str = "api-approved.kubernetes.io";
    let ours = |suffix: &str| group == suffix || group.ends_with(&format!(".{suffix}"));
    if !(ours("k8s.io") || ours("kubernetes.io")) {
        return;
    }
    let path = ANNOTATIONS.key(ANNOTATION);
    match object::annotation(obj, ANNOTATION).unwrap_or_default() {
        "" => c.required(path, format!(
                "protected groups must have approval annotation {ANNOTATION:?}, see https://github.com/kubernetes/enhancements/pull/1111"
            )),
        text if text.starts_with("unapproved") || text.starts_with("https://") => {}
        text => c.invalid(path, text, "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111"),
    }
}

fn versions(c: &mut Checks, s: &Value) {
    let versions = list(s, "versions");
    let mut seen = std::collections::HashSet::new();
    let mut stored = 0;
    for (i, v) in versions.iter().enumerate() {
        let at = At::SPEC.item("versions", i);
        let name = text(v, "name");
        c.syntax(at.child("name"), name, names::dns1035_label);
        if !seen.insert(name) {
            c.invalid("spec.versions", Value::Array(versions.to_vec()), "must contain unique version names");
        }
        stored += usize::from(v["storage"] == true);
        let path = at.child("schema.openAPIV3Schema");
        let schema = object::get(v, "/schema/openAPIV3Schema");
        if !schema.is_object() {
            c.required(path, "schemas are required");
            continue;
        }
        let before = c.errors.len();
        structural(c, schema, path);
        if c.errors.len() == before {
            compiles(c, schema, path);
        }
        for (j, column) in list(v, "additionalPrinterColumns").iter().enumerate() {
            column_of(c, column, at.item("additionalPrinterColumns", j));
        }
        paths_of(c, v, at);
    }
    if stored != 1 {
        c.invalid(
            "spec.versions",
            Value::Array(versions.to_vec()),
            "must have exactly one version marked as storage version",
        );
    }
}

fn compiles(c: &mut Checks, schema: &Value, path: At<'_>) {
    match SchemaRef::from_openapi(schema) {
        Err(error) => c.invalid(path, Value::Null, error.to_string()),
        Ok(schema) => defaults_fit(c, &schema, schema.id(), path, &mut Vec::new()),
    }
}

/// A default that its own schema refuses would make every object invalid; a pattern must be one.
fn defaults_fit(c: &mut Checks, schema: &SchemaRef, id: u32, path: At<'_>, seen: &mut Vec<u32>) {
    if seen.contains(&id) {
        return;
    }
    seen.push(id);
    let at = schema.at(id);
    let node = at.node();
    if let Some(pattern) = node.limits.as_ref().and_then(|limits| limits.pattern.as_ref())
        && let Err(error) = pattern.check()
    {
        let detail = format!("must be a valid regular expression, but isn't: {error}");
        c.invalid(path.child("pattern"), pattern.to_string(), detail);
    }
    if let Some(default) = node.limits.as_ref().and_then(|limits| limits.default.as_ref()) {
        for mut error in validate_schema(&at, default) {
            let at = path.child("default");
            error.path = if error.path.is_empty() { at.into() } else { at.child(&error.path).into() };
            c.errors.push(error);
        }
    }
    for field in &node.fields {
        if !schema.set().node(field.node).name.is_empty() {
            continue;
        }
        defaults_fit(c, schema, field.node, path.child("properties").key(&field.name), seen);
    }
    if let Some(item) = node.item {
        defaults_fit(c, schema, item, path.child("items"), seen);
    }
}

fn column_of(c: &mut Checks, column: &Value, path: At<'_>) {
    let kinds = ["boolean", "date", "integer", "number", "string"];
    c.needs(column, "name", path);
    match text(column, "type") {
        "" => c.required(path.child("type"), format!("must be one of {}", kinds.join(","))),
        kind if !kinds.contains(&kind) => {
            c.invalid(path.child("type"), kind, format!("must be one of {}", kinds.join(",")));
        }
        _ => {}
    }
    match text(column, "jsonPath") {
        "" => c.required(path.child("JSONPath"), ""),
        text => {
            if let Err(error) = crate::table::JsonPath::parse(text) {
                c.invalid(path.child("JSONPath"), text, error.to_string());
            }
        }
    }
}

/// Where `scale` and field selectors look.
fn paths_of(c: &mut Checks, version: &Value, at: At<'_>) {
    let (scale, scale_at) = (&version["subresources"]["scale"], at.child("subresources.scale"));
    if scale.is_object() {
        for (field, root) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
            let path = scale_at.child(field);
            match text(scale, field) {
                "" => c.required(path, ""),
                text if !simple(text) => c.invalid(path, text, NOT_SIMPLE),
                text if !text.starts_with(root) => c.invalid(
                    path,
                    text,
                    format!("should be a json path under {}", root.trim_end_matches('.')),
                ),
                _ => {}
            }
        }
        let selector = text(scale, "labelSelectorPath");
        let path = scale_at.child("labelSelectorPath");
        if !selector.is_empty() && !simple(selector) {
            c.invalid(path, selector, NOT_SIMPLE);
        } else if !(selector.is_empty() || selector.starts_with(".spec.") || selector.starts_with(".status."))
        {
            c.invalid(path, selector, "should be a json path under either .status or .spec");
        }
    }
    let fields = list(version, "selectableFields");
    if fields.len() > 8 {
        c.too_many(at.child("selectableFields"), fields.len(), 8);
    }
    for (i, field) in fields.iter().enumerate() {
        let at = at.item("selectableFields", i);
        let path = at.child("jsonPath");
        match text(field, "jsonPath") {
            "" => c.required(path, ""),
            text if !simple(text) => {
                c.invalid(path, text, "is an invalid path: must be a simple path");
            }
            text if text.starts_with(".metadata") => {
                c.invalid(path, text, "must not point to fields in metadata");
            }
            _ => {}
        }
    }
}

const NOT_SIMPLE: &str = "should be a json path without array notation";

/// `.spec.replicas`: no lists, no expressions.
fn simple(path: &str) -> bool {
    path.strip_prefix('.').is_some_and(|rest| {
        rest.split('.').all(|part| !part.is_empty() && !part.contains(['[', ']', '*', '\'', '"']))
    })
}

/// Validation rules are looked at when they are written, not whenever the definition is.
pub(super) fn validate_create(c: &mut Checks, obj: &Value) {
    rules_fit(c, obj, None);
}

/// The rules of the versions whose schema is not as it was.
fn rules_fit(c: &mut Checks, obj: &Value, old: Option<&Value>) {
    let before = old.map(|old| list(&old["spec"], "versions")).unwrap_or_default();
    for (i, version) in list(&obj["spec"], "versions").iter().enumerate() {
        let schema = &version["schema"]["openAPIV3Schema"];
        let same = before
            .iter()
            .any(|old| old["name"] == version["name"] && old["schema"]["openAPIV3Schema"] == *schema);
        if let Ok(schema) = SchemaRef::from_openapi(schema)
            && !same
        {
            let at = At::SPEC.item("versions", i);
            c.errors.extend(crate::schema::mistakes(&schema, at.child("schema.openAPIV3Schema")));
        }
    }
}

pub(super) fn validate_update(c: &mut Checks, new: &Value, old: &Value) {
    rules_fit(c, new, Some(old));
    c.immutable(new, old, "/spec/group");
    let established = old["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    if established {
        c.immutable(new, old, "/spec/scope");
        c.immutable(new, old, "/spec/names/kind");
    }
    c.immutable(new, old, "/spec/names/plural");
    let known: Vec<&str> = list(&new["spec"], "versions").iter().map(|v| text(v, "name")).collect();
    for (i, stored) in strings(&new["status"], "storedVersions").enumerate() {
        if !known.contains(&stored) {
            c.invalid(At::root("status").item("storedVersions", i), stored, format!("missing from spec.versions; {stored} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {stored} and removes {stored} from status.storedVersions"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(schema: Value) -> Vec<String> {
        let mut c = Checks::default();
        structural(&mut c, &schema, At::root("s"));
        if c.errors.is_empty() {
            compiles(&mut c, &schema, At::root("s"));
        }
        c.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn structural_schemas() {
        let spec = |spec: Value| json!({"type": "object", "properties": {"spec": spec}});
        let cases = [
            (json!({}), "s.type: Required value: must not be empty at the root"),
            (
                spec(json!({"properties": {}})),
                "s.properties[spec].type: Required value: must not be empty for specified object fields",
            ),
            (spec(json!({"type": "array"})), "s.properties[spec].items: Required value: must be specified"),
            (
                spec(json!({"type": "object", "$ref": "x"})),
                "s.properties[spec].$ref: Forbidden: $ref is not supported",
            ),
            (
                spec(
                    json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
                ),
                "s.properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
            ),
            (
                spec(json!({"type": "object", "anyOf": [{"type": "object"}]})),
                "s.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
            ),
            (
                spec(
                    json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"],
                    "items": {"type": "object", "properties": {"a": {"type": "string"}}}}),
                ),
                "s.properties[spec].items.properties[a].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ),
            (
                spec(
                    json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": false}),
                ),
                "s.properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                "s.additionalProperties: Forbidden: must not be used at the root",
            ),
            (
                json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
                "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
            ),
        ];
        for (schema, expected) in cases {
            assert_eq!(errors(schema.clone()), [expected], "{schema}");
        }
        for schema in [
            spec(
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            spec(json!({"x-kubernetes-preserve-unknown-fields": true})),
            json!({"x-kubernetes-preserve-unknown-fields": true}),
            // As the definitions of volume snapshots say it.
            spec(json!({"type": "string", "pattern": "^[0-9]+$", "x-kubernetes-int-or-string": true})),
            spec(json!({"type": "string", "anyOf": [{"type": "integer"}, {"type": "string"}]})),
            spec(
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": true}),
            ),
            spec(json!({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}})),
            spec(json!({"type": "object", "additionalProperties": false})),
            spec(json!({"type": "integer", "minimum": 1, "default": 2})),
        ] {
            assert_eq!(errors(schema.clone()), [""; 0], "{schema}");
        }
        assert_eq!(errors(spec(json!({"type": "integer", "minimum": 3, "default": 2}))).len(), 1);
        assert_eq!(errors(spec(json!({"type": "string", "pattern": "("}))).len(), 1);
    }

    #[test]
    fn definitions() {
        let mut c = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
        let paths = |c: &Value| {
            let mut found = Checks::default();
            validate(&mut found, c);
            found.errors.into_iter().map(|e| e.path).collect::<Vec<_>>()
        };
        default(&mut c);
        assert_eq!(c["spec"]["names"]["listKind"], "ThingList");
        assert_eq!(paths(&c), [""; 0]);
        c["metadata"]["name"] = json!("x");
        c["spec"]["versions"][0]["storage"] = json!(false);
        c["spec"]["conversion"]["strategy"] = json!("Webhook");
        let webhook = "spec.conversion.webhook";
        let (client, versions) =
            (format!("{webhook}.clientConfig"), format!("{webhook}.conversionReviewVersions"));
        assert_eq!(paths(&c), ["metadata.name", &client, &versions, "spec.versions"]);
        c["spec"]["conversion"]["webhook"] =
            json!({"clientConfig": {"url": "https://example.com"}, "conversionReviewVersions": ["v1"]});
        assert_eq!(paths(&c), ["metadata.name", "spec.versions"]);
        c["spec"]["conversion"]["strategy"] = json!("None");
        assert_eq!(paths(&c), ["metadata.name", webhook, "spec.versions"]);
        c["spec"]["group"] = json!("things.k8s.io");
        assert!(paths(&c).contains(&"metadata.annotations[api-approved.kubernetes.io]".to_owned()));
    }

    #[test]
    fn stored_versions_are_remembered() {
        let mut crd =
            json!({"spec": {"versions": [{"name": "v1", "storage": true}, {"name": "v2"}]}, "status": {}});
        create(&mut crd);
        assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
        let old = crd.clone();
        crd["spec"]["versions"] = json!([{"name": "v2", "storage": true}]);
        update(&mut crd, &old);
        assert_eq!(crd["status"]["storedVersions"], json!(["v1", "v2"]));
        let mut found = Checks::default();
        validate_update(&mut found, &crd, &old);
        assert_eq!(found.errors[0].path, "status.storedVersions[0]");
    }
}
