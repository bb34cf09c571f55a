//! Field ownership: who set which field, as `metadata.managedFields` records it,
//! and server-side apply. Follows structured-merge-diff and apimachinery's
//! `managedfields`.
//!
//! A manager is identified by name, operation, API version and subresource. A
//! plain write owns the fields that it changed; an apply owns the fields that it
//! sent. Conflicts arise only for an apply.

mod apply;
mod entries;
mod set;
mod typed;
mod walk;

use serde_json::Value;

use crate::object;
use crate::schema::SchemaRef;

pub use apply::{apply, conflicts_message};
pub use entries::{Entry, Operation, decode_entries};
pub use set::FieldSet;
pub use typed::{mismatches, told};
pub use walk::{Changes, compare, field_set, merge};

/// Who writes.
#[derive(Clone, Debug)]
pub struct Manager {
    /// At most 128 bytes; see [`default_manager`] for requests that name none.
    pub name: String,
    /// The version of the request: `apps/v1`.
    pub api_version: String,
    /// RFC 3339 with seconds.
    pub time: String,
    /// Empty for the resource itself.
    pub subresource: String,
    /// Top-level fields that this endpoint resets, so that nobody owns them
    /// through it (`Strategy::reset_fields`).
    pub reset: &'static [&'static str],
}

/// The manager's name from a User-Agent: what stands before the first slash.
pub fn default_manager(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or_default();
    let printable: String = name.chars().filter(|c| !c.is_control()).collect();
    let mut end = printable.len().min(128);
    while !printable.is_char_boundary(end) {
        end -= 1;
    }
    if end == 0 { "unknown".to_string() } else { printable[..end].to_string() }
}

/// Records a create (`live` is `None`) or an update in `new`'s managedFields.
///
/// A client that sends an empty `managedFields: [{}]` resets it, one that sends
/// none keeps what `live` has.
pub fn track_update(schema: &SchemaRef, live: Option<&Value>, new: &mut Value, manager: &Manager) {
    let sent = object::managed_fields(new);
    let reset = sent.len() == 1 && sent[0].as_object().is_some_and(serde_json::Map::is_empty);
    let recorded = match live {
        _ if reset => {
            object::metadata_mut(new).remove("managedFields");
            return;
        }
        Some(live) if sent.is_empty() => object::managed_fields(live),
        _ => sent,
    };
    let Ok(mut entries) = decode_entries(recorded) else {
        // Unreadable ownership is dropped: a write must not fail for it.
        object::metadata_mut(new).remove("managedFields");
        return;
    };
    let mut changes = Changes::default();
    match live {
        Some(old) => compare(schema, old, new, &mut changes),
        None => walk::added(schema, new, &mut changes),
    }
    changes.strip(manager.reset);
    let touched = entries::update(&mut entries, &changes, manager, Operation::Update);
    if live.is_some() && !touched && recorded.len() == entries.len() {
        // Nothing changed hands: keep the entries and their times as they were.
        let kept = Value::Array(recorded.to_vec());
        if kept.as_array().is_some_and(|a| !a.is_empty()) {
            object::metadata_mut(new).insert("managedFields".into(), kept);
        }
        return;
    }
    entries::store(new, entries);
}

#[cfg(test)]
mod tests;
