//! Wakes a pod's worker when one of its containers starts, ends or runs out of memory: from
//! containerd's own event stream, because CRI's (GetContainerEvents) is missing in containerd 1.6.

use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom, TaskStart};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::types::Envelope;
use prost::Message;

use crate::core::Shared;

/// While the stream is broken every pod is looked at this often.
const RELIST: Duration = Duration::from_secs(10);

/// Follows the events for as long as the process lives.
pub(crate) async fn follow(core: Shared) {
    loop {
        let mut client = EventsClient::new(core.runtime.channel());
        let filters = ["/tasks/exit", "/tasks/oom", "/tasks/start"]
            .map(|topic| format!("namespace==k8s.io,topic==\"{topic}\""));
        match client.subscribe(SubscribeRequest { filters: filters.to_vec() }).await {
            Ok(answer) => {
                core.report(None);
                // What happened before the stream began.
                core.workers.wake_all();
                let mut stream = answer.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(envelope)) => handle(&core, &envelope),
                        Ok(None) => break,
                        Err(status) => {
                            tracing::debug!(error = %status, "event stream of the runtime broke");
                            break;
                        }
                    }
                }
            }
            Err(status) => {
                core.report(Some(format!("the container runtime does not answer: {}", status.message())));
            }
        }
        core.workers.wake_all();
        tokio::time::sleep(RELIST.min(Duration::from_secs(1) + RELIST / 10)).await;
    }
}

fn handle(core: &Shared, envelope: &Envelope) {
    let Some(event) = &envelope.event else { return };
    let bytes = event.value.as_slice();
    let id = match envelope.topic.as_str() {
        // The end of an `exec` in a container is told too; its id differs from the container's.
        "/tasks/exit" => {
            TaskExit::decode(bytes).ok().filter(|e| e.id == e.container_id).map(|e| e.container_id)
        }
        "/tasks/oom" => TaskOom::decode(bytes).ok().map(|e| e.container_id),
        "/tasks/start" => TaskStart::decode(bytes).ok().map(|e| e.container_id),
        _ => None,
    };
    let Some(id) = id else { return };
    let owner = core.owners.lock().get(&id).cloned();
    if let Some(uid) = owner {
        let core = core.clone();
        // CRI learns of it by the same events; it is given the moment that it needs.
        let tasks = core.tasks.clone();
        tasks.spawn_until_stopped("runtime event", async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            core.workers.wake(&uid);
            tokio::time::sleep(Duration::from_millis(950)).await;
            core.workers.wake(&uid);
        });
    }
}
