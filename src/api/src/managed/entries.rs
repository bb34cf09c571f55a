//! The entries of `metadata.managedFields`.

use serde_json::{Map, Value};

use super::{Changes, FieldSet, Manager};
use crate::object;

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// One manager's fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub time: String,
    pub subresource: String,
    pub set: FieldSet,
}

impl Entry {
    pub(super) fn is(&self, m: &Manager, op: Operation) -> bool {
        self.operation == op
            && self.manager == m.name
            && self.subresource == m.subresource
            // An applier's entry moves with the version it applies.
            && (op == Operation::Apply || self.api_version == m.api_version)
    }

    fn to_value(&self) -> Value {
        let mut m = Map::new();
        m.insert("apiVersion".into(), self.api_version.as_str().into());
        m.insert("fieldsType".into(), "FieldsV1".into());
        m.insert("fieldsV1".into(), self.set.to_value());
        m.insert("manager".into(), self.manager.as_str().into());
        m.insert("operation".into(), self.operation.as_str().into());
        if !self.subresource.is_empty() {
            m.insert("subresource".into(), self.subresource.as_str().into());
        }
        if !self.time.is_empty() {
            m.insert("time".into(), self.time.as_str().into());
        }
        Value::Object(m)
    }
}

/// An entry that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata.managedFields[{0}] cannot be read")]
pub struct BadEntry(pub usize);

/// Decodes `metadata.managedFields`.
pub fn decode_entries(list: &[Value]) -> Result<Vec<Entry>, BadEntry> {
    list.iter()
        .enumerate()
        .map(|(i, v)| {
            let text = |f: &str| v.get(f).and_then(Value::as_str).unwrap_or_default().to_string();
            let operation = match text("operation").as_str() {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err(BadEntry(i)),
            };
            let set = match v.get("fieldsV1") {
                Some(f) => FieldSet::from_value(f).ok_or(BadEntry(i))?,
                None => FieldSet::default(),
            };
            Ok(Entry {
                manager: text("manager"),
                operation,
                api_version: text("apiVersion"),
                time: text("time"),
                subresource: text("subresource"),
                set,
            })
        })
        .collect()
}

/// Gives changed fields to the writer and takes them from all others. True if
/// any entry changed.
pub(super) fn update(entries: &mut Vec<Entry>, changes: &Changes, m: &Manager, op: Operation) -> bool {
    if changes.is_empty() {
        return false;
    }
    let mut taken = changes.modified.clone();
    taken.union(&changes.added);
    let mut touched = false;
    for e in entries.iter_mut().filter(|e| !e.is(m, op)) {
        if e.set.intersects(&taken) || e.set.intersects(&changes.removed) {
            e.set.difference(&taken);
            e.set.difference(&changes.removed);
            touched = true;
        }
    }
    if op == Operation::Update {
        let mine = match entries.iter().position(|e| e.is(m, op)) {
            Some(i) => i,
            None => {
                entries.push(new_entry(m, op));
                entries.len() - 1
            }
        };
        let e = &mut entries[mine];
        // Most writes change the values of fields that the writer owns already.
        if e.set.intersects(&changes.removed) || !e.set.contains(&taken) {
            let before = e.set.clone();
            e.set.difference(&changes.removed);
            e.set.union(&taken);
            if e.set != before {
                e.time.clone_from(&m.time);
                touched = true;
            }
        }
    }
    entries.retain(|e| !e.set.is_empty());
    touched
}

pub(super) fn new_entry(m: &Manager, op: Operation) -> Entry {
    Entry {
        manager: m.name.clone(),
        operation: op,
        api_version: m.api_version.clone(),
        time: m.time.clone(),
        subresource: m.subresource.clone(),
        set: FieldSet::default(),
    }
}

/// Upstream keeps at most this many entries of plain writers; older ones merge.
const MAX_UPDATE_ENTRIES: usize = 10;

/// Writes the entries into the object: applies first, then by time.
pub(super) fn store(obj: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.set.is_empty());
    entries.sort_by(|a, b| {
        (a.operation, &a.time, &a.manager, &a.api_version, &a.subresource).cmp(&(
            b.operation,
            &b.time,
            &b.manager,
            &b.api_version,
            &b.subresource,
        ))
    });
    cap(&mut entries);
    let meta = object::metadata_mut(obj);
    if entries.is_empty() {
        meta.remove("managedFields");
    } else {
        meta.insert("managedFields".into(), entries.iter().map(Entry::to_value).collect());
    }
}

/// Merges the oldest plain writers of one version into "ancient-changes".
fn cap(entries: &mut Vec<Entry>) {
    let updates = entries.iter().filter(|e| e.operation == Operation::Update).count();
    let mut excess = updates.saturating_sub(MAX_UPDATE_ENTRIES);
    while excess > 0 {
        let mut old =
            entries.iter().enumerate().filter(|(_, e)| e.operation == Operation::Update).map(|(i, _)| i);
        let (Some(a), Some(b)) = (old.next(), old.next()) else { return };
        let Some(j) = (b..entries.len()).find(|j| {
            entries[*j].operation == Operation::Update
                && entries[*j].api_version == entries[a].api_version
                && entries[*j].subresource == entries[a].subresource
        }) else {
            return;
        };
        let first = entries.remove(a);
        let second = &mut entries[j - 1];
        second.set.union(&first.set);
        second.manager = "ancient-changes".to_string();
        excess -= 1;
    }
}
