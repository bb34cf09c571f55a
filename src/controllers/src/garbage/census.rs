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

    /// Whether every kind has been listed.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.as_ref().is_none_or(|collector| collector.is_complete())
    }

    /// The number of objects; `None` when the resource is not known or not everything is listed yet.
    pub(crate) fn count(&self, group: &str, plural: &str, namespace: &str) -> Option<usize> {
        let collector = self.0.as_ref()?;
        collector.is_complete().then(|| collector.graph.lock().count(group, plural, namespace))
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
