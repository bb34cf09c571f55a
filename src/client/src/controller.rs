//! The workers of a controller.

use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kedge_base::{Chain, Tasks};

use crate::{Error, Queue};

/// Run `workers` workers until the tasks stop.
///
/// `Ok(None)`: done until somebody adds the item again. `Ok(Some(delay))`: look again after the
/// delay. `Err`: logged, and tried again with a growing delay. A panic counts as an error, so one
/// object that a controller cannot digest does not stop the others.
pub fn run_controller<T, F, Fut>(
    tasks: &Tasks,
    name: &'static str,
    queue: Queue<T>,
    workers: usize,
    reconcile: F,
) where
    T: Clone + Eq + Hash + Display + Send + Sync + 'static,
    F: Fn(T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<Duration>, Error>> + Send + 'static,
{
    // Boxed here, so that the loop is compiled once for each kind of item, not once for each controller.
    let reconcile: Reconcile<T> = Arc::new(move |item| Box::pin(reconcile(item)));
    run_workers(tasks, name, &queue, workers, &reconcile);
}

type Reconcile<T> = Arc<dyn Fn(T) -> BoxFuture<'static, Result<Option<Duration>, Error>> + Send + Sync>;

fn run_workers<T>(
    tasks: &Tasks,
    name: &'static str,
    queue: &Queue<T>,
    workers: usize,
    reconcile: &Reconcile<T>,
) where
    T: Clone + Eq + Hash + Display + Send + Sync + 'static,
{
    for _ in 0..workers.max(1) {
        let (queue, reconcile) = (queue.clone(), reconcile.clone());
        tasks.spawn_until_stopped(name, async move {
            loop {
                let item = queue.next().await;
                let run = AssertUnwindSafe(async { reconcile(item.clone()).await }).catch_unwind().await;
                match run {
                    Ok(Ok(again)) => {
                        queue.forget(&item);
                        if let Some(delay) = again {
                            queue.add_after(item.clone(), delay);
                        }
                    }
                    Ok(Err(error)) => {
                        if error.is_conflict() {
                            tracing::debug!(controller = name, %item, "object changed meanwhile, trying again");
                        } else {
                            tracing::warn!(controller = name, %item, error = %Chain(&error), "reconcile failed, trying again");
                        }
                        queue.add_rate_limited(item.clone());
                    }
                    Err(panic) => {
                        let panic = panic
                            .downcast_ref::<String>()
                            .map(String::as_str)
                            .or_else(|| panic.downcast_ref::<&str>().copied())
                            .unwrap_or("no message");
                        tracing::error!(controller = name, %item, panic, "reconcile panicked, trying again");
                        queue.add_rate_limited(item.clone());
                    }
                }
                queue.done(&item);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn errors_and_panics_are_tried_again() {
        let tasks = Tasks::new("test");
        let queue = Queue::new();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let runs = Arc::new(std::sync::atomic::AtomicU32::new(0));
        run_controller(&tasks, "test", queue.clone(), 2, move |item: String| {
            let run = runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let sender = sender.clone();
            async move {
                match run {
                    0 => panic!("the first run panics"),
                    1 => Err(Error::other("the second fails")),
                    2 => Ok(Some(Duration::from_secs(5))),
                    _ => {
                        sender.send(item).expect("the test listens");
                        Ok(None)
                    }
                }
            }
        });
        queue.add("object".to_owned());
        assert_eq!(receiver.recv().await.as_deref(), Some("object"));
        assert_eq!(queue.requeues(&"object".to_owned()), 0);
        assert!(tasks.shutdown(Duration::from_secs(60)).await.is_empty());
    }
}
