//! Collects which Services have to be built again. Filled by the informers' handlers, emptied by the
//! writer; what arrives during a write is one further change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_client::{Change, ObjectKey};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Names the Service that a slice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

#[derive(Debug, Default)]
pub(crate) struct Changes {
    state: Mutex<State>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct State {
    dirty: BTreeSet<ObjectKey>,
    /// The slices of each Service by their own names.
    slices: HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>,
    /// Where this node is.
    zone: String,
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), name.clone()))
}

impl Changes {
    pub(crate) fn service(&self, change: &Change<Service>) {
        self.add([change.key()]);
    }

    pub(crate) fn slice(&self, change: &Change<EndpointSlice>) {
        let name = change.key().name;
        let mut state = self.state.lock();
        if let Some(service) = change.old.as_deref().and_then(service_of) {
            if let Some(slices) = state.slices.get_mut(&service) {
                slices.remove(&name);
                if slices.is_empty() {
                    state.slices.remove(&service);
                }
            }
            state.dirty.insert(service);
        }
        if let Some(new) = &change.new
            && let Some(service) = service_of(new)
        {
            state.slices.entry(service.clone()).or_default().insert(name, new.clone());
            state.dirty.insert(service);
        }
        drop(state);
        self.notify.notify_one();
    }

    /// This node's zone: every Service with endpoints may use others now.
    pub(crate) fn set_zone(&self, zone: &str) {
        let mut state = self.state.lock();
        if state.zone == zone {
            return;
        }
        zone.clone_into(&mut state.zone);
        let with_endpoints: Vec<ObjectKey> = state.slices.keys().cloned().collect();
        state.dirty.extend(with_endpoints);
        drop(state);
        self.notify.notify_one();
    }

    pub(crate) fn zone(&self) -> String {
        self.state.lock().zone.clone()
    }

    /// Mark Services to be built again.
    pub(crate) fn add(&self, services: impl IntoIterator<Item = ObjectKey>) {
        self.state.lock().dirty.extend(services);
        self.notify.notify_one();
    }

    /// All marked Services with their slices; they are no longer marked.
    pub(crate) fn take(&self) -> Vec<(ObjectKey, Vec<Arc<EndpointSlice>>)> {
        let mut state = self.state.lock();
        let dirty = std::mem::take(&mut state.dirty);
        dirty
            .into_iter()
            .map(|key| {
                let slices = state.slices.get(&key).map(|slices| slices.values().cloned().collect());
                (key, slices.unwrap_or_default())
            })
            .collect()
    }

    /// Returns when something was marked since the last call returned. May return once too often.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, service: &str) -> Arc<EndpointSlice> {
        let mut slice = EndpointSlice::default();
        slice.metadata.namespace = Some("ns".into());
        slice.metadata.name = Some(name.into());
        slice.metadata.labels = Some(BTreeMap::from([(SERVICE_NAME_LABEL.to_owned(), service.to_owned())]));
        Arc::new(slice)
    }

    #[test]
    fn slices_follow_their_label() {
        let changes = Changes::default();
        let (first, moved) = (slice("s", "a"), slice("s", "b"));
        changes.slice(&Change { old: None, new: Some(first.clone()) });
        let taken = changes.take();
        assert_eq!((taken.len(), taken[0].0.name.as_str(), taken[0].1.len()), (1, "a", 1));
        assert!(changes.take().is_empty());

        changes.slice(&Change { old: Some(first), new: Some(moved.clone()) });
        let taken: Vec<(String, usize)> =
            changes.take().into_iter().map(|(key, s)| (key.name, s.len())).collect();
        assert_eq!(taken, [("a".to_owned(), 0), ("b".to_owned(), 1)]);

        changes.slice(&Change { old: Some(moved), new: None });
        assert_eq!(changes.take()[0].1.len(), 0);
        assert!(changes.state.lock().slices.is_empty());
    }

    #[test]
    fn another_zone_concerns_every_service_with_endpoints() {
        let changes = Changes::default();
        changes.slice(&Change { old: None, new: Some(slice("s", "a")) });
        changes.add([ObjectKey::new("ns", "b")]);
        changes.take();
        changes.set_zone("");
        assert!(changes.take().is_empty(), "it is the same");
        changes.set_zone("z");
        let taken: Vec<String> = changes.take().into_iter().map(|(key, _)| key.name).collect();
        assert_eq!((taken, changes.zone().as_str()), (vec!["a".to_owned()], "z"));
    }

    #[tokio::test]
    async fn a_change_before_waiting_is_not_missed() {
        let changes = Changes::default();
        changes.add([ObjectKey::new("ns", "a")]);
        changes.changed().await;
        assert_eq!(changes.take().len(), 1);
    }
}
