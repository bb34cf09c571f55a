//! Every resource that is served: names, scope, verbs, subresources, schema and
//! strategy. Built-in rows come from `data/resources.txt`; rows of CRDs are
//! inserted and removed at run time.

mod builtin;
mod convert;
mod selectable;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::schema::{Name, SchemaRef};
use crate::status::{GroupResource, Status};
use crate::strategy::Strategy;

/// Something below a resource's objects: `status`, `scale`, `exec`.
#[derive(Clone, Debug)]
pub struct Subresource {
    pub name: Name,
    /// The kind that is sent and answered; may be of another group (Scale, Eviction).
    pub group: Name,
    pub version: Name,
    pub kind: Name,
    pub verbs: Vec<Name>,
    pub namespaced: bool,
    /// JSON paths of a CRD's `scale`: spec replicas, status replicas, label selector.
    pub scale: Option<Box<ScalePaths>>,
}

/// Where a custom resource keeps what `scale` shows (`.spec.replicas`).
#[derive(Clone, Debug, Default)]
pub struct ScalePaths {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub label_selector: Option<String>,
}

/// A field that field selectors may name, beside `metadata.name` and `metadata.namespace`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selectable {
    /// As written in a selector: `spec.nodeName`.
    pub name: Name,
    /// Where the stored object keeps it: `/spec/nodeName`.
    pub path: Name,
    /// Its value in objects that have none there.
    pub absent: Absent,
}

/// What stands for a selectable field that an object does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Text: empty, or the zero value as Go prints it.
    Text(&'static str),
    /// The value at another path.
    Path(&'static str),
}

/// A custom column of a CRD: `additionalPrinterColumns`.
#[derive(Clone, Debug, Default)]
pub struct PrinterColumn {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i32,
    pub json_path: String,
}

/// One resource at one version.
#[derive(Clone)]
pub struct Resource {
    pub group: Name,
    pub version: Name,
    pub kind: Name,
    pub list_kind: Name,
    pub plural: Name,
    pub singular: Name,
    pub short_names: Vec<Name>,
    pub categories: Vec<Name>,
    pub namespaced: bool,
    pub verbs: Vec<Name>,
    pub subresources: Vec<Subresource>,
    pub schema: SchemaRef,
    /// Columns of a CRD; built-in kinds are printed by `table`.
    pub columns: Vec<PrinterColumn>,
    pub selectable: Vec<Selectable>,
    pub strategy: Arc<dyn Strategy>,
    /// False for what is only created and answered (reviews, bindings).
    pub stored: bool,
    /// `plural` or `plural.group`; versions of one resource share it.
    pub storage_key: Name,
    /// The group and version that objects are stored in.
    pub storage_version: (Name, Name),
    /// Objects of other versions are in the store too: the storage version was changed once.
    pub mixed: bool,
    /// True for a custom resource.
    pub custom: bool,
    /// Objects are given the schema's defaults when they are read: fields that have got one since.
    pub defaulted: bool,
    /// `spec.conversion.webhook` of a definition whose versions a webhook converts.
    pub conversion: Option<Arc<Value>>,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} {}", self.group, self.version, self.plural)
    }
}

impl Resource {
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.group.as_ref(), self.plural.as_ref())
    }

    /// `apps/v1`
    pub fn api_version(&self) -> String {
        crate::object::join_api_version(&self.group, &self.version)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// True when stored bytes may not be what is to be shown: objects of another version, or without
    /// defaults.
    pub fn converts(&self) -> bool {
        self.mixed
            || self.defaulted
            || (self.group != self.storage_version.0)
            || (self.version != self.storage_version.1)
    }

    /// Whether stored bytes are of this version as they are. Keys are stored sorted, so the version
    /// comes first.
    pub fn is_current(&self, bytes: &[u8]) -> bool {
        let rest = bytes.strip_prefix(b"{\"apiVersion\":\"");
        let rest = rest.and_then(|rest| rest.strip_prefix(self.group.as_bytes()));
        let rest = if self.group.is_empty() { rest } else { rest.and_then(|rest| rest.strip_prefix(b"/")) };
        let rest = rest.and_then(|rest| rest.strip_prefix(self.version.as_bytes()));
        rest.is_some_and(|rest| rest.starts_with(b"\""))
    }

    /// From this version to the one that is stored.
    pub fn to_storage(&self, obj: Value) -> Result<Value, Status> {
        if !self.converts() {
            return Ok(obj);
        }
        if self.custom {
            return Ok(renamed(obj, &self.storage_version.0, &self.storage_version.1));
        }
        convert::convert(
            obj,
            &self.kind,
            (&self.group, &self.version),
            (&self.storage_version.0, &self.storage_version.1),
        )
    }

    /// From the stored version to this one.
    pub fn from_storage(&self, obj: Value) -> Result<Value, Status> {
        if !self.converts() {
            return Ok(obj);
        }
        if self.custom {
            // Whatever version it was stored in: only the version's name differs.
            let mut obj = renamed(obj, &self.group, &self.version);
            if self.defaulted {
                self.strategy.default(&mut obj);
            }
            return Ok(obj);
        }
        convert::convert(
            obj,
            &self.kind,
            (&self.storage_version.0, &self.storage_version.1),
            (&self.group, &self.version),
        )
    }
}

/// A group with its versions, the preferred one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: Name,
    pub versions: Vec<Name>,
}

type Key = (Name, Name, Name);

/// All resources; a value, so that a server swaps a whole registry at a change.
#[derive(Clone, Default)]
pub struct Registry {
    by_plural: BTreeMap<Key, Arc<Resource>>,
    by_kind: BTreeMap<Key, Arc<Resource>>,
    /// Groups of the built-in table in discovery order.
    order: Vec<Name>,
}

impl Registry {
    /// All generally available resources of Kubernetes 1.36.
    pub fn builtin() -> Registry {
        builtin::registry()
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.by_plural.get(&key(group, version, plural)).cloned()
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.by_kind.get(&key(group, version, kind)).cloned()
    }

    /// Any served version of a resource, the preferred one first.
    pub fn any_version(&self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        let g = self.groups().into_iter().find(|g| g.name == group)?;
        g.versions.iter().find_map(|v| self.find(group, v, plural))
    }

    /// All rows, by group, version and plural.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_plural.values()
    }

    /// The rows of one group and version.
    pub fn resources<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.iter().filter(move |r| r.group == group && r.version == version)
    }

    /// Groups in discovery order: built-in by upstream's priority, then others by name.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for r in self.iter() {
            match groups.iter_mut().find(|g| g.name == r.group) {
                Some(g) if g.versions.contains(&r.version) => {}
                Some(g) => g.versions.push(r.version.clone()),
                None => groups.push(Group { name: r.group.clone(), versions: vec![r.version.clone()] }),
            }
        }
        for g in &mut groups {
            g.versions.sort_by(|a, b| compare_versions(b, a));
        }
        let rank = |g: &Group| self.order.iter().position(|o| *o == g.name).unwrap_or(usize::MAX);
        groups.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
        groups
    }

    /// Adds or replaces a row.
    pub fn insert(&mut self, resource: Resource) -> Arc<Resource> {
        let r = Arc::new(resource);
        self.by_plural.insert((r.group.clone(), r.version.clone(), r.plural.clone()), Arc::clone(&r));
        self.by_kind.insert((r.group.clone(), r.version.clone(), r.kind.clone()), Arc::clone(&r));
        r
    }

    /// Whether a group and version hold built-in kinds: nobody may add to those.
    pub fn is_builtin(&self, group: &str, version: &str) -> bool {
        self.resources(group, version).any(|resource| !resource.custom)
    }

    /// Adds or replaces a row that is shared with an older registry.
    pub fn insert_shared(&mut self, r: Arc<Resource>) {
        self.by_kind.insert((r.group.clone(), r.version.clone(), r.kind.clone()), Arc::clone(&r));
        self.by_plural.insert((r.group.clone(), r.version.clone(), r.plural.clone()), r);
    }

    /// Removes a row.
    pub fn remove(&mut self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let r = self.by_plural.remove(&key(group, version, plural))?;
        self.by_kind.remove(&key(group, version, &r.kind));
        Some(r)
    }
}

/// The versions of a custom resource have the same fields (conversion strategy "None").
fn renamed(mut obj: Value, group: &str, version: &str) -> Value {
    crate::object::set(&mut obj, "/apiVersion", crate::object::join_api_version(group, version));
    obj
}

fn key(a: &str, b: &str, c: &str) -> Key {
    (Cow::Owned(a.to_string()), Cow::Owned(b.to_string()), Cow::Owned(c.to_string()))
}

/// Kubernetes version order: GA above beta above alpha, then by number, then by name.
pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    fn parse(v: &str) -> Option<(u8, u64, u64)> {
        let rest = v.strip_prefix('v')?;
        for (word, rank) in [("alpha", 0), ("beta", 1)] {
            if let Some((major, minor)) = rest.split_once(word) {
                return Some((rank, major.parse().ok()?, minor.parse().ok()?));
            }
        }
        Some((2, rest.parse().ok()?, 0))
    }
    match (parse(a), parse(b)) {
        (Some(x), Some(y)) => x.cmp(&y),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::Generic;
    use serde_json::json;

    #[test]
    fn builtin_rows() {
        let r = Registry::builtin();
        let d = r.find("apps", "v1", "deployments").unwrap();
        assert_eq!(
            (d.kind.as_ref(), d.singular.as_ref(), d.list_kind.as_ref()),
            ("Deployment", "deployment", "DeploymentList")
        );
        assert_eq!(d.short_names, ["deploy"]);
        assert_eq!(d.categories, ["all"]);
        assert_eq!(d.storage_key, "deployments.apps");
        assert_eq!(d.subresource("scale").unwrap().group, "autoscaling");
        assert!(d.namespaced && d.stored && d.has_verb("watch"));
        let p = r.by_kind("", "v1", "Pod").unwrap();
        assert_eq!(p.subresource("eviction").unwrap().kind, "Eviction");
        assert!(!r.find("authentication.k8s.io", "v1", "tokenreviews").unwrap().stored);
        let e1 = r.find("", "v1", "events").unwrap();
        let e2 = r.find("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(e1.storage_key, e2.storage_key);
        assert!(e2.converts() && !e1.converts());
        let groups: Vec<_> = r.groups().iter().map(|g| g.name.to_string()).collect();
        assert_eq!(groups[..4], ["", "apiregistration.k8s.io", "apps", "events.k8s.io"]);
        let hpa = r.groups().into_iter().find(|g| g.name == "autoscaling").unwrap();
        assert_eq!(hpa.versions, ["v2", "v1"]);
        assert!(r.iter().count() > 60);
    }

    #[test]
    fn custom_rows_come_and_go() {
        let mut r = Registry::builtin();
        let base = r.find("", "v1", "configmaps").unwrap();
        let schema = SchemaRef::from_openapi(&json!({"type": "object"})).unwrap();
        r.insert(Resource {
            group: "example.com".into(),
            plural: "things".into(),
            kind: "Thing".into(),
            strategy: Arc::new(Generic::custom(schema.clone(), true, false)),
            schema,
            ..Resource::clone(&base)
        });
        assert!(r.by_kind("example.com", "v1", "Thing").is_some());
        assert_eq!(r.groups().last().unwrap().name, "example.com");
        assert!(r.remove("example.com", "v1", "things").is_some());
        assert!(r.by_kind("example.com", "v1", "Thing").is_none());
    }

    #[test]
    fn version_order() {
        let mut v = ["v1beta1", "v2", "foo", "v1", "v10", "v1alpha1", "v1beta2"];
        v.sort_by(|a, b| compare_versions(b, a));
        assert_eq!(v, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }
}
