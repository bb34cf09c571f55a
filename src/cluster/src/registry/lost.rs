//! The book of nodes as a folder holds it that nobody serves: who is in it, and what is left of it when the
//! cluster goes on with one control-plane node alone.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{ADDRESSES, NAMES, NODES, Replica, Transaction, removed_key};
use crate::wire::{NodeRecord, RemovedRecord};
use crate::{NodeId, Role};

/// Whether [`nodes_of`] and [`strike_others`] need the value of this key.
pub fn is_of_nodes(key: &str) -> bool {
    Replica::owns(key) && [NODES, NAMES, ADDRESSES].iter().any(|prefix| key.starts_with(prefix))
}

/// The nodes on the book. `values` are those of all keys for which [`is_of_nodes`].
pub fn nodes_of(values: &BTreeMap<String, Vec<u8>>) -> Vec<NodeRecord> {
    let records = values.iter().filter(|(key, _)| key.starts_with(NODES));
    records.filter_map(|(_, bytes)| serde_json::from_slice(bytes).ok()).collect()
}

/// Takes every control-plane node but `own` off the book, as [`super::Registry::remove`] would, with all that
/// was claimed for it. Workers stay. `values` are those of all keys for which [`is_of_nodes`].
pub fn strike_others(own: NodeId, values: &BTreeMap<String, Vec<u8>>, now: Timestamp) -> Transaction {
    let mut transaction = Transaction::default();
    let mut gone = BTreeSet::new();
    for (key, bytes) in values.iter().filter(|(key, _)| key.starts_with(NODES)) {
        let Ok(record) = serde_json::from_slice::<NodeRecord>(bytes) else { continue };
        if record.id == own || record.role != Role::ControlPlane {
            continue;
        }
        gone.insert(record.id);
        transaction.deletes.push(key.clone());
        // Its Node object goes too: whoever leads deletes those of nodes that were removed.
        let removed = RemovedRecord { id: record.id, name: record.name, at: now, left: false };
        if let Ok(bytes) = serde_json::to_vec(&removed) {
            transaction.puts.push((removed_key(removed.id), bytes));
        }
    }
    let claims = values.iter().filter(|(key, bytes)| {
        !key.starts_with(NODES) && serde_json::from_slice(bytes).is_ok_and(|id: NodeId| gone.contains(&id))
    });
    transaction.deletes.extend(claims.map(|(key, _)| key.clone()));
    transaction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostPort;

    #[test]
    fn only_this_node_and_workers_stay() {
        let record = |id: u64, name: &str, role| NodeRecord {
            id: NodeId::new(id),
            name: name.into(),
            role,
            address: HostPort { host: format!("192.0.2.{id}"), port: 25000 },
            addresses: Vec::new(),
            failure_domain: None,
            joined: Timestamp::UNIX_EPOCH,
            token: None,
        };
        let mut values = BTreeMap::new();
        for record in [
            record(1, "own", Role::ControlPlane),
            record(2, "dead", Role::ControlPlane),
            record(3, "worker", Role::Worker),
        ] {
            let id = serde_json::to_vec(&record.id).unwrap();
            values.insert(format!("{NAMES}{}", record.name), id.clone());
            values.insert(format!("{ADDRESSES}{}", record.address), id);
            values.insert(format!("{NODES}{}", record.id), serde_json::to_vec(&record).unwrap());
        }
        assert!(values.keys().all(|key| is_of_nodes(key)));
        let mut names: Vec<String> = nodes_of(&values).into_iter().map(|record| record.name).collect();
        names.sort();
        assert_eq!(names, ["dead", "own", "worker"]);
        let done = strike_others(NodeId::new(1), &values, Timestamp::UNIX_EPOCH);
        let mut deletes = done.deletes.clone();
        deletes.sort();
        let id = NodeId::new(2);
        assert_eq!(
            deletes,
            [format!("{ADDRESSES}192.0.2.2:25000"), format!("{NAMES}dead"), format!("{NODES}{id}")]
        );
        assert_eq!(done.puts.len(), 1);
        assert_eq!(done.puts[0].0, removed_key(id));
        let removed: RemovedRecord = serde_json::from_slice(&done.puts[0].1).unwrap();
        assert_eq!((removed.name.as_str(), removed.left), ("dead", false));
    }
}
