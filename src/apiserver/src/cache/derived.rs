//! Values made from whole buckets: roles, webhooks, policies. They are read by every request and change seldom.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::Cache;

/// Something made from `N` buckets, which is made anew only after one of them has changed.
pub(crate) struct Derived<T, const N: usize>(ArcSwapOption<Made<T, N>>);

struct Made<T, const N: usize> {
    /// The buckets' revisions before it was made.
    of: [u64; N],
    value: Arc<T>,
}

impl<T, const N: usize> Default for Derived<T, N> {
    fn default() -> Self {
        Self(ArcSwapOption::empty())
    }
}

impl<T, const N: usize> Derived<T, N> {
    /// As of now. `resources` are the storage keys of the buckets that `make` looks at.
    pub(crate) fn get(&self, cache: &Cache, resources: [&str; N], make: impl FnOnce() -> T) -> Arc<T> {
        let of = resources.map(|resource| cache.bucket(resource).revision());
        if let Some(made) = self.0.load().as_ref().filter(|made| made.of == of) {
            return made.value.clone();
        }
        let value = Arc::new(make());
        self.0.store(Some(Arc::new(Made { of, value: value.clone() })));
        value
    }

    /// As it was when it was asked for last; `None`: it never was.
    pub(crate) fn last(&self) -> Option<Arc<T>> {
        self.0.load().as_ref().map(|made| made.value.clone())
    }
}
