//! How many objects of a resource there are, from the collector's graph: for quotas.

use std::sync::Arc;

use kedge_base::Tasks;

use super::Collector;

/// Clones share the graph.
#[derive(Clone)]
pub(crate) struct Census(Option<Arc<Collector>>);

/// Told group, plural and namespace.
pub(super) type Listener = Box<dyn Fn(&str, &str, &str) + Send + Sync>;

impl Census {
    pub(super) fn of(collector: Arc<Collector>) -> Self {
        Self(Some(collector))
    }

    /// Knows of nothing, and that there is nothing.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        Self(None)
    }

    /// The number of objects, zero for a resource that is not served; `None` while the resource has
    /// not been listed yet.
    pub(crate) fn count(&self, group: &str, plural: &str, namespace: &str) -> Option<usize> {
        let Some(collector) = &self.0 else { return Some(0) };
        collector.is_listed(group, plural).then(|| collector.graph.lock().count(group, plural, namespace))
    }

    /// Hear when an object comes or goes, until the tasks stop.
    pub(crate) fn on_change(
        &self,
        tasks: &Tasks,
        listener: impl Fn(&str, &str, &str) + Send + Sync + 'static,
    ) {
        if let Some(collector) = &self.0 {
            let token = tasks.token().clone();
            collector.listeners.lock().push(Box::new(move |group, plural, namespace| {
                if !token.is_cancelled() {
                    listener(group, plural, namespace);
                }
            }));
        }
    }
}

impl Collector {
    pub(super) fn tell(&self, group: &str, plural: &str, namespace: &str) {
        for listener in self.listeners.lock().iter() {
            listener(group, plural, namespace);
        }
    }
}
