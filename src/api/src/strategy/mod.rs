//! What a kind does to its objects on the way in: defaults, preparation of
//! creates and updates, validation. [`Generic`] is the one implementation; what
//! is particular to a kind is a row of functions, [`Rules`].

mod addresses;
mod admission_rules;
mod autoscaling;
mod certificates;
mod checks;
mod config;
mod crd;
mod endpoint_slice;
mod endpoints;
mod events;
mod expressions;
mod flow_control;
mod ingress;
mod ips;
mod jobs;
mod kinds;
mod limit_range;
mod meta;
mod network;
mod network_policy;
mod nodes;
mod pod;
mod pod_spec;
mod pod_update;
mod policies;
mod quota;
mod rbac;
mod resource_names;
mod scheduling;
mod selectors;
mod service;
mod storage;
mod storage_kinds;
mod structural;
mod util;
mod volumes;
mod webhooks;
mod workloads;

use serde_json::Value;

use crate::field::FieldError;
use crate::object;
use crate::schema::{Cursor, SchemaRef, Shape, apply_defaults, validate_schema_update};

use checks::{Check, Checks};
pub use kinds::rules_for;

/// How a kind treats its objects. The API server calls: `default`, then
/// `prepare_*`, then `validate*`.
pub trait Strategy: Send + Sync {
    /// Fills in defaults; also done to objects that are read from elsewhere.
    fn default(&self, obj: &mut Value);
    /// Drops what a client may not set when creating (status) and sets generation 1.
    fn prepare_create(&self, obj: &mut Value);
    /// Keeps what an update may not change (status, server-set metadata).
    fn prepare_update(&self, obj: &mut Value, old: &Value);
    /// An update through a subresource: `status` keeps everything else from `old`.
    fn prepare_subresource(&self, subresource: &str, obj: &mut Value, old: &Value);
    /// Validates a new object.
    fn validate(&self, obj: &Value) -> Vec<FieldError>;
    /// Validates an update, the new object included.
    fn validate_update(&self, obj: &Value, old: &Value) -> Vec<FieldError>;
    /// Validates an update through a subresource.
    fn validate_subresource(&self, subresource: &str, obj: &Value, old: &Value) -> Vec<FieldError>;
    /// Top-level fields that a manager cannot own through this endpoint
    /// (`subresource` is empty for the resource itself).
    fn reset_fields(&self, subresource: &str) -> &'static [&'static str];
    /// Warnings for the client about a valid object.
    fn warnings(&self, obj: &Value) -> Vec<String>;
    /// A PUT of an object that is not there creates it (`AllowCreateOnUpdate`).
    fn creates_on_update(&self) -> bool;
    /// An update names the version that it is of (`AllowUnconditionalUpdate` is false).
    fn update_names_version(&self) -> bool;
}

/// What is particular to a kind.
#[derive(Clone, Copy)]
pub struct Rules {
    /// The syntax of the object's name.
    pub name: fn(&str) -> Vec<String>,
    pub default: fn(&mut Value),
    /// After the generic preparation of a create.
    pub create: fn(&mut Value),
    /// After the generic preparation of an update.
    pub update: fn(&mut Value, &Value),
    pub validate: Check,
    /// Of new objects only.
    pub validate_create: Check,
    pub validate_update: fn(&mut Checks, &Value, &Value),
    /// After the generic preparation of an update of the status.
    pub update_status: fn(&mut Value, &Value),
    /// The status of a new object, where the kind has one.
    pub status: fn() -> Option<Value>,
    /// `metadata.generation` counts changes of the specification.
    pub generation: bool,
    /// Which metadata an update of the status (or of the approval) may change too.
    pub status_keeps: &'static [&'static str],
    /// A create may bring its status along (a kubelet registers its node so).
    pub status_on_create: bool,
    /// A PUT of an object that is not there creates it.
    pub create_on_update: bool,
    /// An update names the version that it is of.
    pub update_names_version: bool,
}

fn no_status() -> Option<Value> {
    None
}

impl Rules {
    /// A kind with nothing particular.
    pub const PLAIN: Rules = Rules {
        name: crate::names::dns1123_subdomain,
        default: |_| {},
        create: |_| {},
        update: |_, _| {},
        validate: |_, _| {},
        validate_create: |_, _| {},
        validate_update: |_, _, _| {},
        update_status: |_, _| {},
        status: no_status,
        generation: false,
        status_keeps: &[],
        status_on_create: false,
        create_on_update: false,
        update_names_version: false,
    };
}

/// The strategy of every kind.
pub struct Generic {
    schema: SchemaRef,
    namespaced: bool,
    /// The kind has a status subresource.
    has_status: bool,
    rules: Rules,
}

/// Fields that are no part of what generation counts.
const NOT_SPEC: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

impl Generic {
    pub fn new(schema: SchemaRef, namespaced: bool, has_status: bool, rules: Rules) -> Self {
        Self { schema, namespaced, has_status, rules }
    }

    /// The strategy of a custom resource.
    pub fn custom(schema: SchemaRef, namespaced: bool, has_status: bool) -> Self {
        Self::new(
            schema,
            namespaced,
            has_status,
            Rules { generation: true, update_names_version: true, ..Rules::PLAIN },
        )
    }

    /// What upstream's status strategies leave as the client sent it.
    fn keep_status_metadata(&self, next: &mut Value, sent: &Value) {
        for field in self.rules.status_keeps {
            let value = object::get(sent, &format!("/metadata/{field}")).clone();
            let metadata = object::metadata_mut(next);
            if value.is_null() {
                metadata.remove(*field);
            } else {
                metadata.insert((*field).to_string(), value);
            }
        }
    }

    /// What every kind's objects must be: their metadata, and what the schema says.
    fn validate_general(&self, c: &mut Checks, obj: &Value, old: Option<&Value>) {
        meta::validate(c, obj, self.namespaced, self.rules.name);
        if self.schema.set().is_builtin() {
            meta::standard_finalizers(c, obj);
        }
        c.errors.extend(validate_schema_update(&self.schema, obj, old));
        c.end_general();
    }

    fn spec_changed(&self, a: &Value, b: &Value) -> bool {
        let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return false };
        let counts = |k: &String| !NOT_SPEC.contains(&k.as_str()) || (k == "status" && !self.has_status);
        let pick = |m: &'_ serde_json::Map<String, Value>| m.keys().filter(|k| counts(k)).count();
        pick(a) != pick(b) || a.iter().any(|(k, v)| counts(k) && b.get(k) != Some(v))
    }
}

/// Metadata that clients send back unchanged or leave out, and never change.
const SERVER_SET: [&str; 5] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];

fn keep_server_set(obj: &mut Value, old: &Value) {
    let meta = object::metadata_mut(obj);
    let old_meta = object::get(old, "/metadata");
    for field in SERVER_SET {
        if !meta.contains_key(field)
            && let Some(v) = old_meta.get(field)
        {
            meta.insert(field.to_string(), v.clone());
        }
    }
    // The generation is never taken from a client.
    match old_meta.get("generation") {
        Some(g) => drop(meta.insert("generation".to_string(), g.clone())),
        None => drop(meta.remove("generation")),
    }
}

/// Go's specifications and templates are structs: one that is left out is there nevertheless, empty, and lacks
/// what it has to say.
fn fill_spec(at: Cursor<'_>, obj: &mut Value) {
    // A pointer, the only one.
    let of_controller = at.node.short_name() == "ReplicationControllerSpec";
    let Value::Object(map) = obj else { return };
    for name in ["spec", "template", "jobTemplate"] {
        let Some((_, part)) = at.field(name).filter(|(_, part)| part.node.shape == Shape::Object) else {
            continue;
        };
        if of_controller && !map.contains_key(name) {
            continue;
        }
        let value = map.entry(name).or_insert(Value::Null);
        if value.is_null() {
            *value = Value::Object(serde_json::Map::new());
        }
        fill_spec(part, value);
    }
}

fn keep(obj: &mut Value, old: &Value, field: &str) {
    let Value::Object(map) = obj else { return };
    match old.get(field) {
        Some(v) => drop(map.insert(field.to_string(), v.clone())),
        None => drop(map.remove(field)),
    }
}

impl Strategy for Generic {
    fn default(&self, obj: &mut Value) {
        if self.schema.set().is_builtin() {
            fill_spec(self.schema.cursor(), obj);
        }
        apply_defaults(&self.schema, obj);
        (self.rules.default)(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        if self.has_status
            && !self.rules.status_on_create
            && let Value::Object(map) = obj
        {
            map.remove("status");
        }
        let meta = object::metadata_mut(obj);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
            meta.remove(field);
        }
        if self.rules.generation {
            meta.insert("generation".into(), 1.into());
        }
        // Only versions with a status subresource have their status reset.
        if let Some(status) = (self.rules.status)()
            && let Value::Object(map) = obj
        {
            map.insert("status".into(), status);
        }
        (self.rules.create)(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep_server_set(obj, old);
        if self.has_status {
            keep(obj, old, "status");
        }
        (self.rules.update)(obj, old);
        if self.rules.generation && self.spec_changed(obj, old) {
            object::set_generation(obj, object::generation(old) + 1);
        }
    }

    fn prepare_subresource(&self, subresource: &str, obj: &mut Value, old: &Value) {
        keep_server_set(obj, old);
        let mut next = old.clone();
        match subresource {
            "status" => {
                keep(&mut next, obj, "status");
                self.keep_status_metadata(&mut next, obj);
                (self.rules.update_status)(&mut next, old);
            }
            "finalize" => {
                let list = object::get(obj, "/spec/finalizers").clone();
                if list.is_null() {
                    object::remove(&mut next, "/spec/finalizers");
                } else {
                    object::set(&mut next, "/spec/finalizers", list);
                }
            }
            "approval" => {
                let list = object::get(obj, "/status/conditions").clone();
                if !list.is_null() {
                    object::set(&mut next, "/status/conditions", list);
                }
                self.keep_status_metadata(&mut next, obj);
            }
            "ephemeralcontainers" => {
                let list = object::get(obj, "/spec/ephemeralContainers").clone();
                if !list.is_null() {
                    object::set(&mut next, "/spec/ephemeralContainers", list);
                }
            }
            "resize" => kinds::copy_resources(&mut next, obj),
            _ => keep(&mut next, obj, "spec"),
        }
        for f in ["managedFields", "resourceVersion"] {
            let v = object::get(obj, &format!("/metadata/{f}")).clone();
            let meta = object::metadata_mut(&mut next);
            if v.is_null() { drop(meta.remove(f)) } else { drop(meta.insert(f.to_string(), v)) }
        }
        if self.rules.generation && subresource != "status" && self.spec_changed(&next, old) {
            object::set_generation(&mut next, object::generation(old) + 1);
        }
        *obj = next;
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        let mut c = Checks::default();
        self.validate_general(&mut c, obj, None);
        (self.rules.validate)(&mut c, obj);
        (self.rules.validate_create)(&mut c, obj);
        c.errors
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> Vec<FieldError> {
        let mut c = Checks::default();
        meta::validate_update(&mut c, obj, old);
        self.validate_general(&mut c, obj, Some(old));
        pod_spec::validate_forgiving(&mut c, self.rules.validate, obj, old);
        (self.rules.validate_update)(&mut c, obj, old);
        c.errors
    }

    fn validate_subresource(&self, subresource: &str, obj: &Value, old: &Value) -> Vec<FieldError> {
        let mut c = Checks::default();
        meta::validate_update(&mut c, obj, old);
        if subresource != "status" {
            pod_spec::validate_forgiving(&mut c, self.rules.validate, obj, old);
            if subresource == "ephemeralcontainers" {
                pod_update::validate_ephemeral(&mut c, obj, old);
            }
        } else if !self.schema.set().is_builtin() {
            c.errors.extend(validate_schema_update(&self.schema, obj, Some(old)));
        }
        c.errors
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" if self.has_status => &["status"],
            "" => &[],
            "status" => &["spec"],
            "approval" => &["spec"],
            _ => &["status"],
        }
    }

    fn creates_on_update(&self) -> bool {
        self.rules.create_on_update
    }

    fn update_names_version(&self) -> bool {
        self.rules.update_names_version
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        if self.schema.set().is_builtin() { pod_spec::warnings(obj) } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use serde_json::json;

    #[test]
    fn life_of_a_deployment() {
        let r = Registry::builtin().find("apps", "v1", "deployments").unwrap();
        let mut d = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "b"},
            "status": {"replicas": 5}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        r.strategy.default(&mut d);
        r.strategy.prepare_create(&mut d);
        assert_eq!(r.strategy.validate(&d), []);
        assert_eq!((object::generation(&d), &d["status"]), (1, &json!({})));
        object::set_uid(&mut d, "u");
        // The status is kept by an update, the specification by a status update.
        let mut n = d.clone();
        n["spec"]["replicas"] = json!(3);
        n["status"] = json!({"replicas": 9});
        object::metadata_mut(&mut n).remove("uid");
        r.strategy.prepare_update(&mut n, &d);
        assert_eq!((object::generation(&n), &n["status"], object::uid(&n)), (2, &json!({}), "u"));
        assert_eq!(r.strategy.validate_update(&n, &d), []);
        let mut s = n.clone();
        s["spec"]["replicas"] = json!(7);
        s["status"] = json!({"replicas": 3});
        r.strategy.prepare_subresource("status", &mut s, &n);
        assert_eq!(
            (&s["spec"]["replicas"], &s["status"]["replicas"], object::generation(&s)),
            (&json!(3), &json!(3), 2)
        );
        let mut bad = n.clone();
        bad["spec"]["selector"]["matchLabels"] = json!({"a": "c"});
        bad["spec"]["template"]["metadata"]["labels"] = json!({"a": "c"});
        let e = r.strategy.validate_update(&bad, &n);
        assert_eq!(
            e[0].to_string(),
            r#"spec.selector: Invalid value: {"matchLabels":{"a":"c"}}: field is immutable"#
        );
    }

    #[test]
    fn a_specification_that_is_left_out_lacks_what_it_has_to_say() {
        let refused = |group: &str, plural: &str| -> Vec<String> {
            let r = Registry::builtin().find(group, "v1", plural).expect("there");
            let mut v =
                json!({"apiVersion": r.api_version(), "kind": r.kind.as_ref(), "metadata": {"name": "a"}});
            if r.namespaced {
                v["metadata"]["namespace"] = json!("b");
            }
            r.strategy.default(&mut v);
            r.strategy.prepare_create(&mut v);
            r.strategy.validate(&v).iter().map(ToString::to_string).collect()
        };
        for (group, plural, wanted) in [
            ("", "pods", "spec.containers: Required value"),
            ("apps", "replicasets", "spec.selector: Required value"),
            ("apps", "deployments", "spec.selector: Required value"),
            ("apps", "statefulsets", "spec.selector: Required value"),
            ("apps", "daemonsets", "spec.selector: Required value"),
            ("", "replicationcontrollers", "spec.selector: Required value"),
            ("batch", "jobs", "spec.template.spec.containers: Required value"),
            ("batch", "cronjobs", "spec.schedule: Required value"),
            ("networking.k8s.io", "ingresses", "spec"),
        ] {
            let errors = refused(group, plural);
            assert!(errors.iter().any(|error| error.contains(wanted)), "{plural}: {errors:?}");
        }
        for (group, plural) in [
            ("", "namespaces"),
            ("", "nodes"),
            ("", "configmaps"),
            ("", "resourcequotas"),
            ("coordination.k8s.io", "leases"),
        ] {
            assert_eq!(refused(group, plural), [""; 0], "{plural}");
        }
    }

    #[test]
    fn every_kind_accepts_its_defaults_twice() {
        for r in Registry::builtin().iter() {
            let mut v = json!({"apiVersion": r.api_version(), "kind": r.kind.as_ref(), "metadata": {"name": "a"}, "spec": {}});
            r.strategy.default(&mut v);
            let once = v.clone();
            r.strategy.default(&mut v);
            assert_eq!(v, once, "{}", r.kind);
        }
    }
}
