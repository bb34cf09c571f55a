//! The tree of tasks. Every task has a name, an owner that can stop it, and is awaited at shutdown.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks with one owner. Clones refer to the same group; [`Tasks::child`] makes a
/// group that stops with its parent but can also be stopped on its own.
#[derive(Clone, Debug)]
pub struct Tasks {
    name: Arc<str>,
    token: CancellationToken,
    tracker: TaskTracker,
    running: Arc<Running>,
}

/// The names of the tasks that have not ended, so that shutdown can say what it waits for.
#[derive(Debug, Default)]
struct Running {
    next: AtomicU64,
    names: Mutex<BTreeMap<u64, Arc<str>>>,
}

struct RunningGuard(Arc<Running>, u64);

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// A future of any type: what the runtime needs around a task is compiled once for each result instead
/// of once for each of some hundred tasks.
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Tasks {
    /// The root of a tree.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
            running: Arc::default(),
        }
    }

    /// A group below this one: cancelled with it, awaited on its own.
    pub fn child(&self, name: &str) -> Self {
        Self {
            name: format!("{}/{name}", self.name).into(),
            token: self.token.child_token(),
            tracker: TaskTracker::new(),
            running: Arc::default(),
        }
    }

    /// Cancelled when the group is asked to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Run `future` until it ends. It is not cut off at shutdown: use it for work that watches
    /// [`Tasks::token`] itself and has something to finish.
    pub fn spawn<F>(&self, name: &str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_boxed(name, Box::pin(future))
    }

    fn spawn_boxed<T: Send + 'static>(&self, name: &str, future: Boxed<T>) -> JoinHandle<T> {
        let guard = self.enter(name);
        self.tracker.spawn(async move {
            let _guard = guard;
            future.await
        })
    }

    /// Run `future` until it ends or the group stops, whichever is first. The future is dropped at
    /// the await point where it stands.
    pub fn spawn_until_stopped<F>(&self, name: &str, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_boxed_until_stopped(name, Box::pin(future))
    }

    fn spawn_boxed_until_stopped<T: Send + 'static>(
        &self,
        name: &str,
        future: Boxed<T>,
    ) -> JoinHandle<Option<T>> {
        let token = self.token.clone();
        self.spawn_boxed(name, Box::pin(async move { token.run_until_cancelled(future).await }))
    }

    /// Run `make()` again and again until the group stops: after a panic with a growing delay, so
    /// that one broken object cannot take the process down.
    pub fn spawn_restarting<M, F>(&self, name: &str, mut make: M)
    where
        M: FnMut() -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        self.restart_boxed(name, Box::new(move || Box::pin(make())));
    }

    fn restart_boxed(&self, name: &str, mut make: Box<dyn FnMut() -> Boxed<()> + Send>) {
        let token = self.token.clone();
        let label: Arc<str> = name.into();
        self.spawn(name, async move {
            let mut backoff = crate::Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
            while !token.is_cancelled() {
                let mut run = tokio::task::spawn(make());
                let ended = tokio::select! {
                    ended = &mut run => ended,
                    () = token.cancelled() => {
                        run.abort();
                        let _ = run.await;
                        return;
                    }
                };
                if let Err(error) = ended {
                    tracing::error!(task = %label, %error, "task ended abnormally; it is started again");
                }
                let _ = token.run_until_cancelled(tokio::time::sleep(backoff.next_delay())).await;
            }
        });
    }

    /// Ask every task to stop, wait up to `limit`, and return the names of those still running.
    pub async fn shutdown(&self, limit: Duration) -> Vec<String> {
        self.token.cancel();
        self.tracker.close();
        let deadline = tokio::time::Instant::now() + limit;
        let mut notice = Duration::from_secs(2).min(limit);
        loop {
            if tokio::time::timeout(notice, self.tracker.wait()).await.is_ok() {
                return Vec::new();
            }
            let waiting = self.running();
            if tokio::time::Instant::now() >= deadline {
                return waiting;
            }
            tracing::info!(group = %self.name, waiting = waiting.join(", "), "shutdown waits");
            notice =
                deadline.saturating_duration_since(tokio::time::Instant::now()).min(Duration::from_secs(2));
        }
    }

    /// The tasks of this group that have not ended.
    pub fn running(&self) -> Vec<String> {
        let names = self.running.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.values().map(|name| format!("{}/{name}", self.name)).collect()
    }

    fn enter(&self, name: &str) -> RunningGuard {
        let id = self.running.next.fetch_add(1, Ordering::Relaxed);
        self.running.names.lock().unwrap_or_else(PoisonError::into_inner).insert(id, name.into());
        RunningGuard(self.running.clone(), id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_names_what_it_waits_for() {
        let tasks = Tasks::new("test");
        let stubborn = tasks.spawn("stubborn", std::future::pending::<()>());
        tasks.spawn_until_stopped("polite", std::future::pending::<()>());
        assert_eq!(tasks.shutdown(Duration::from_millis(50)).await, ["test/stubborn"]);
        stubborn.abort();
    }

    #[tokio::test]
    async fn a_child_stops_alone_and_with_its_parent() {
        let parent = Tasks::new("parent");
        let child = parent.child("child");
        child.spawn_until_stopped("work", std::future::pending::<()>());
        assert!(child.shutdown(Duration::from_secs(60)).await.is_empty());
        assert!(!parent.token().is_cancelled());
        let second = parent.child("second");
        parent.token().cancel();
        assert!(second.token().is_cancelled());
    }

    #[tokio::test]
    async fn a_panic_restarts_the_task() {
        let tasks = Tasks::new("test");
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        let mut runs = 0;
        tasks.spawn_restarting("flaky", move || {
            runs += 1;
            let (sender, run) = (sender.clone(), runs);
            async move {
                assert_ne!(run, 1, "the first run fails");
                let _ = sender.send(run).await;
                std::future::pending::<()>().await;
            }
        });
        assert_eq!(receiver.recv().await, Some(2));
        assert!(tasks.shutdown(Duration::from_secs(60)).await.is_empty());
    }
}
