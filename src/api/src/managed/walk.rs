//! Walks of values beside a schema: the set of an object's fields, the changes
//! between two objects, and the merge of an applied configuration.

use serde_json::{Map, Value};

use super::FieldSet;
use crate::schema::{Cursor, ListType, SchemaRef, Shape};

/// Metadata that nobody owns (managedfields' stripmeta).
const UNOWNED_META: [&str; 10] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
    "deletionTimestamp",
];

/// Structs that Go always writes: a create never owns the field itself.
const ALWAYS_PRESENT: [&str; 9] = [
    "metadata",
    "spec",
    "status",
    "template",
    "strategy",
    "updateStrategy",
    "jobTemplate",
    "containers",
    "selector",
];

type At<'a> = Option<Cursor<'a>>;

/// What differs between two objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// Forgets what cannot be owned: server-set metadata and reset fields.
    pub(super) fn strip(&mut self, reset: &[&str]) {
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            strip(set, reset);
        }
    }
}

pub(super) fn strip(set: &mut FieldSet, reset: &[&str]) {
    for f in ["f:apiVersion", "f:kind"] {
        set.children.remove(f);
    }
    for f in reset {
        set.children.remove(format!("f:{f}").as_str());
    }
    if let Some(meta) = set.children.get_mut("f:metadata") {
        meta.member = false;
        for f in UNOWNED_META {
            meta.children.remove(format!("f:{f}").as_str());
        }
        if meta.is_empty() {
            set.children.remove("f:metadata");
        }
    }
}

/// True where a value is one unit: scalars, atomic lists and maps, untyped lists.
fn is_leaf(at: At<'_>, v: &Value) -> bool {
    match v {
        Value::Object(_) => at.is_some_and(|a| a.is_atomic()),
        Value::Array(_) => match at {
            Some(a) => a.node.shape != Shape::Array || a.node.list == ListType::Atomic,
            None => true,
        },
        _ => true,
    }
}

fn child<'a>(at: At<'a>, key: &str) -> At<'a> {
    at.and_then(|a| a.child(key))
}

/// The path element of a list's item, at most one item has it in a valid list.
pub(super) fn item_element(at: At<'_>, item: &Value) -> Option<String> {
    match &at?.node.list {
        ListType::Atomic => None,
        ListType::Set => Some(format!("v:{item}")),
        ListType::Map(keys) => {
            let map = item.as_object()?;
            let mut id = Map::new();
            for k in keys {
                match map.get(k.as_ref()) {
                    Some(v) => drop(id.insert(k.to_string(), v.clone())),
                    // Upstream's only defaulted key: ports' protocol.
                    None if k == "protocol" => drop(id.insert(k.to_string(), "TCP".into())),
                    None => {}
                }
            }
            // serde_json's maps are sorted, so this is canonical.
            (!id.is_empty()).then(|| format!("k:{}", Value::Object(id)))
        }
    }
}

fn field_element(name: &str) -> String {
    let mut e = String::with_capacity(name.len() + 2);
    e.push_str("f:");
    e.push_str(name);
    e
}

/// The fields that an applied configuration names.
pub fn field_set(schema: &SchemaRef, v: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    fill(Some(schema.cursor()), v, &mut set, false);
    set.member = false;
    set
}

/// `whole` also makes containers members, as a plain write that adds them does.
fn fill(at: At<'_>, v: &Value, set: &mut FieldSet, whole: bool) {
    if is_leaf(at, v) {
        set.member = true;
        return;
    }
    set.member |= whole;
    match v {
        Value::Object(map) => {
            if map.is_empty() {
                set.member = true;
            }
            for (k, v) in map {
                let c = child(at, k);
                let declared = at.is_some_and(|a| a.node.field(k).is_some());
                let below = set.child(&field_element(k));
                fill(c, v, below, whole);
                if whole && declared && !is_leaf(c, v) && ALWAYS_PRESENT.contains(&k.as_str()) {
                    below.member = false;
                }
                if !declared {
                    below.member = true;
                }
                if below.is_empty() {
                    set.children.remove(field_element(k).as_str());
                }
            }
        }
        Value::Array(items) => {
            let item_at = at.and_then(|a| a.item());
            for item in items {
                let Some(e) = item_element(at, item) else { continue };
                let below = set.child(&e);
                below.member = true;
                if !e.starts_with("v:") {
                    fill(item_at, item, below, whole);
                    below.member = true;
                }
            }
        }
        _ => {}
    }
}

/// All of a new object.
pub(super) fn added(schema: &SchemaRef, v: &Value, changes: &mut Changes) {
    fill(Some(schema.cursor()), v, &mut changes.added, true);
    changes.added.member = false;
}

/// The changes from `old` to `new`.
pub fn compare(schema: &SchemaRef, old: &Value, new: &Value, changes: &mut Changes) {
    let mut d = Diff { added: vec![], modified: vec![], removed: vec![], path: vec![] };
    d.walk(Some(schema.cursor()), old, new);
    for (list, set) in [
        (d.added, &mut changes.added),
        (d.modified, &mut changes.modified),
        (d.removed, &mut changes.removed),
    ] {
        for (path, below) in list {
            let mut at = &mut *set;
            for e in &path {
                at = at.child(e);
            }
            at.union(&below);
        }
    }
}

type Found = Vec<(Vec<String>, FieldSet)>;

struct Diff {
    added: Found,
    modified: Found,
    removed: Found,
    path: Vec<String>,
}

impl Diff {
    fn whole(&self, at: At<'_>, v: &Value) -> (Vec<String>, FieldSet) {
        let mut set = FieldSet::default();
        fill(at, v, &mut set, true);
        set.member = true;
        (self.path.clone(), set)
    }

    fn walk(&mut self, at: At<'_>, old: &Value, new: &Value) {
        if old == new {
            return;
        }
        match (old, new) {
            (Value::Object(a), Value::Object(b)) if !is_leaf(at, new) => {
                for (k, v) in a {
                    self.path.push(field_element(k));
                    match b.get(k) {
                        Some(w) => self.walk(child(at, k), v, w),
                        None => {
                            let found = self.whole(child(at, k), v);
                            self.removed.push(found);
                        }
                    }
                    self.path.pop();
                }
                for (k, w) in b.iter().filter(|(k, _)| !a.contains_key(*k)) {
                    self.path.push(field_element(k));
                    let found = self.whole(child(at, k), w);
                    self.added.push(found);
                    self.path.pop();
                }
            }
            (Value::Array(a), Value::Array(b)) if !is_leaf(at, new) => self.lists(at, a, b),
            _ => {
                let leaf = FieldSet { member: true, ..Default::default() };
                self.modified.push((self.path.clone(), leaf));
            }
        }
    }

    fn lists(&mut self, at: At<'_>, a: &[Value], b: &[Value]) {
        let item_at = at.and_then(|x| x.item());
        let keyed = |l: &[Value]| -> Vec<(String, usize)> {
            l.iter().enumerate().filter_map(|(i, v)| item_element(at, v).map(|e| (e, i))).collect()
        };
        let (ka, kb) = (keyed(a), keyed(b));
        for (e, i) in &ka {
            self.path.push(e.clone());
            match kb.iter().find(|(f, _)| f == e) {
                Some((_, j)) => self.walk(item_at, &a[*i], &b[*j]),
                None => {
                    let found = self.whole(item_at, &a[*i]);
                    self.removed.push(found);
                }
            }
            self.path.pop();
        }
        for (e, j) in kb.iter().filter(|(e, _)| !ka.iter().any(|(f, _)| f == e)) {
            self.path.push(e.clone());
            let found = self.whole(item_at, &b[*j]);
            self.added.push(found);
            self.path.pop();
        }
    }
}

/// Merges an applied configuration into a live object.
pub fn merge(schema: &SchemaRef, live: &Value, applied: &Value) -> Value {
    merge_at(Some(schema.cursor()), live, applied)
}

fn merge_at(at: At<'_>, live: &Value, applied: &Value) -> Value {
    match (live, applied) {
        (Value::Object(a), Value::Object(b)) if !is_leaf(at, applied) => {
            let mut out = a.clone();
            for (k, w) in b {
                let merged = match a.get(k) {
                    Some(v) => merge_at(child(at, k), v, w),
                    None => w.clone(),
                };
                out.insert(k.clone(), merged);
            }
            Value::Object(out)
        }
        (Value::Array(a), Value::Array(b)) if !is_leaf(at, applied) => Value::Array(merge_lists(at, a, b)),
        _ => applied.clone(),
    }
}

/// The applied order wins; live-only items keep their place among the others.
fn merge_lists(at: At<'_>, live: &[Value], applied: &[Value]) -> Vec<Value> {
    let item_at = at.and_then(|x| x.item());
    let ids = |l: &[Value]| -> Vec<Option<String>> { l.iter().map(|v| item_element(at, v)).collect() };
    let (a, b) = (ids(live), ids(applied));
    let mut out = Vec::with_capacity(live.len() + applied.len());
    let (mut i, mut j) = (0, 0);
    while i < live.len() || j < applied.len() {
        if i < live.len() {
            if j < applied.len() && a[i] == b[j] {
                out.push(merge_at(item_at, &live[i], &applied[j]));
                i += 1;
                j += 1;
                continue;
            }
            if !b.contains(&a[i]) {
                out.push(live[i].clone());
                i += 1;
                continue;
            }
            if b[..j].contains(&a[i]) {
                // Already merged at its applied place.
                i += 1;
                continue;
            }
        }
        if j < applied.len() {
            match a.iter().position(|e| *e == b[j]) {
                Some(k) => out.push(merge_at(item_at, &live[k], &applied[j])),
                None => out.push(applied[j].clone()),
            }
            j += 1;
        }
    }
    out
}
