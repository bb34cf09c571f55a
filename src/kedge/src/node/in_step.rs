//! This node's part of what the whole cluster does in step, as a record in the store says.

use std::future::Future;
use std::time::Duration;

use kedge_base::Backoff;
use tokio::sync::watch;

/// Does the part now and whenever the record may have changed; until it is done, again and again.
pub(crate) async fn in_step<F>(
    mut changes: watch::Receiver<u64>,
    what: &'static str,
    part: impl Fn() -> F + Send,
) where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        changes.mark_unchanged();
        match part().await {
            Ok(()) => {
                backoff.reset();
                if changes.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(what, error = format!("{error:#}"), "this node is not in step yet");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}
