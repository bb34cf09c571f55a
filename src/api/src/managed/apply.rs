//! Server-side apply.

use serde_json::Value;

use super::entries::{Entry, Operation, new_entry, store, update};
use super::walk::{item_element, strip};
use super::{Changes, FieldSet, Manager, compare, decode_entries, field_set, merge};
use crate::object;
use crate::schema::{Cursor, SchemaRef, Shape};
use crate::status::{Cause, Status};

/// Applies a configuration: merges it into `live`, removes what this manager no
/// longer applies and nobody else owns, and records the ownership.
///
/// Without `force`, changing a field that another manager owns is a 409 whose
/// causes name each manager and field. The result still has to be defaulted,
/// validated and, if it differs from `live`, stored.
pub fn apply(
    schema: &SchemaRef,
    live: Option<&Value>,
    applied: &Value,
    manager: &Manager,
    force: bool,
) -> Result<Value, Status> {
    if object::get(applied, "/metadata/managedFields").as_array().is_some_and(|a| !a.is_empty()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let empty = serde_json::json!({});
    let base = live.unwrap_or(&empty);
    let mut entries = decode_entries(object::managed_fields(base)).unwrap_or_default();
    if live.is_some() && entries.is_empty() && object::managed_fields(base).is_empty() {
        // Written before anyone was tracked: that ownership gets a name.
        let mut before =
            Entry { manager: "before-first-apply".into(), ..new_entry(manager, Operation::Update) };
        before.subresource = String::new();
        let mut all = Changes::default();
        super::walk::added(schema, base, &mut all);
        all.strip(&["status"]);
        before.set = all.added;
        entries.push(before);
    }
    let mut config = applied.clone();
    for path in ["/metadata/managedFields", "/metadata/creationTimestamp"] {
        object::remove(&mut config, path);
    }
    for field in manager.reset {
        object::remove(&mut config, &format!("/{field}"));
    }
    let mut set = field_set(schema, &config);
    strip(&mut set, manager.reset);
    let mut merged = merge(schema, base, &config);

    let position = entries.iter().position(|e| e.is(manager, Operation::Apply));
    let last = position.map(|i| entries[i].set.clone());
    let mine = match position {
        Some(i) => i,
        None => {
            entries.push(new_entry(manager, Operation::Apply));
            entries.len() - 1
        }
    };
    let unchanged_set = entries[mine].set == set && entries[mine].api_version == manager.api_version;
    entries[mine].set = set;
    entries[mine].api_version.clone_from(&manager.api_version);

    if let Some(last) = &last {
        let mut keep = FieldSet::default();
        for e in &entries {
            keep.union(&e.set);
        }
        // Whoever applies names the object, which nobody owns.
        keep.child("f:metadata").member = true;
        prune(Some(schema.cursor()), &mut merged, last, &keep);
    }

    let mut changes = Changes::default();
    compare(schema, base, &merged, &mut changes);
    changes.strip(manager.reset);
    if !force {
        let found = conflicts(&entries, &changes, manager);
        if !found.is_empty() {
            let message = conflicts_message(&found);
            return Err(Status::apply_conflict(found, message));
        }
    }
    let touched = update(&mut entries, &changes, manager, Operation::Apply);
    if live.is_some() && unchanged_set && !touched && changes.is_empty() {
        // Nothing to do: times and versions stay as they are.
        return Ok(base.clone());
    }
    if let Some(e) = entries.iter_mut().find(|e| e.is(manager, Operation::Apply)) {
        e.time.clone_from(&manager.time);
    }
    store(&mut merged, entries);
    Ok(merged)
}

fn conflicts(entries: &[Entry], changes: &Changes, manager: &Manager) -> Vec<Cause> {
    let mut wanted = changes.modified.clone();
    wanted.union(&changes.added);
    let mut causes = Vec::new();
    for e in entries.iter().filter(|e| !e.is(manager, Operation::Apply)) {
        for path in e.set.intersection(&wanted).paths() {
            causes.push(Cause {
                reason: "FieldManagerConflict".to_string(),
                message: format!("conflict with {}", describe(e, manager)),
                field: path,
            });
        }
    }
    causes.sort_by(|a, b| (&a.message, &a.field).cmp(&(&b.message, &b.field)));
    causes
}

/// `"kubectl" with subresource "scale" using apps/v1 at 2026-01-02T03:04:05Z`
fn describe(e: &Entry, manager: &Manager) -> String {
    let mut out = format!("{:?}", e.manager);
    if !e.subresource.is_empty() {
        out.push_str(&format!(" with subresource {:?}", e.subresource));
    }
    // An applier is identified by its name alone.
    if e.operation == Operation::Update {
        if e.api_version != manager.api_version || !e.api_version.is_empty() {
            out.push_str(&format!(" using {}", e.api_version));
        }
        if !e.time.is_empty() {
            out.push_str(&format!(" at {}", e.time));
        }
    }
    out
}

/// The message over all causes, as apimachinery's `internal/conflict.go`.
pub fn conflicts_message(causes: &[Cause]) -> String {
    let noun = if causes.len() == 1 { "conflict" } else { "conflicts" };
    let mut managers: Vec<&str> = causes.iter().map(|c| c.message.as_str()).collect();
    managers.dedup();
    if let ([one], [cause]) = (managers.as_slice(), causes) {
        return format!("Apply failed with 1 {noun}: {one}: {}", cause.field);
    }
    let mut out = format!("Apply failed with {} {noun}: ", causes.len());
    let parts: Vec<String> = managers
        .iter()
        .map(|m| {
            let fields: Vec<String> =
                causes.iter().filter(|c| c.message == *m).map(|c| format!("- {}", c.field)).collect();
            let plural = m.replacen("conflict with", "conflicts with", 1);
            format!("{plural}:\n{}", fields.join("\n"))
        })
        .collect();
    out.push_str(&parts.join("\n"));
    out
}

/// Removes from `v` what `last` had and `keep` does not have.
fn prune(at: Option<Cursor<'_>>, v: &mut Value, last: &FieldSet, keep: &FieldSet) {
    let none = FieldSet::default();
    match v {
        Value::Object(map) => {
            for (e, lost) in &last.children {
                let Some(name) = e.strip_prefix("f:") else { continue };
                let kept = keep.children.get(e).unwrap_or(&none);
                let Some(value) = map.get_mut(name) else { continue };
                if kept.is_empty() {
                    map.remove(name);
                } else {
                    prune(at.and_then(|a| a.child(name)), value, lost, kept);
                }
            }
        }
        Value::Array(items) if at.is_some_and(|a| a.node.shape == Shape::Array) => {
            let item_at = at.and_then(|a| a.item());
            items.retain_mut(|item| {
                let Some(e) = item_element(at, item) else { return true };
                let Some(lost) = last.children.get(e.as_str()) else { return true };
                let kept = keep.children.get(e.as_str()).unwrap_or(&none);
                if kept.is_empty() && lost.member {
                    return false;
                }
                prune(item_at, item, lost, kept);
                true
            });
        }
        _ => {}
    }
}
