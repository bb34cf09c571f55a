//! Wakes a pod's worker when one of its containers starts, ends or runs out of memory: from
//! containerd's own event stream, because CRI's (GetContainerEvents) is missing in containerd 1.6.

use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom, TaskStart};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::types::Envelope;
use k8s_cri::v1::ContainerState;
use kedge_base::Backoff;
use prost::Message;

use crate::core::Shared;

/// While the stream is broken it is tried again, and every pod looked at, this often.
const RELIST: Duration = Duration::from_secs(2);
/// The longest pause between two looks after an event.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// So often at most CRI is asked after an event: for a bit more than a minute.
const LOOKS: usize = 15;

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
        tokio::time::sleep(RELIST).await;
    }
}

fn handle(core: &Shared, envelope: &Envelope) {
    let Some((id, ended)) = meant(envelope) else { return };
    let core = core.clone();
    let tasks = core.tasks.clone();
    tasks.spawn_until_stopped("runtime event", async move { tell(&core, &id, ended).await });
}

/// Of which container it tells, and whether that has ended.
fn meant(envelope: &Envelope) -> Option<(String, bool)> {
    let bytes = envelope.event.as_ref()?.value.as_slice();
    match envelope.topic.as_str() {
        // The end of an `exec` in a container is told too; its id differs from the container's.
        "/tasks/exit" => {
            let event = TaskExit::decode(bytes).ok().filter(|event| event.id == event.container_id)?;
            Some((event.container_id, true))
        }
        "/tasks/oom" => Some((TaskOom::decode(bytes).ok()?.container_id, false)),
        "/tasks/start" => Some((TaskStart::decode(bytes).ok()?.container_id, false)),
        _ => None,
    }
}

/// CRI learns of it by the same events, and its containers are what workers see: one that has ended and still
/// counts as running there is asked for again, because nothing else will tell of it. A machine that is short of
/// memory or busy may take many seconds.
async fn tell(core: &Shared, id: &str, ended: bool) {
    let mut backoff = Backoff::new(Duration::from_millis(50), LONGEST_PAUSE);
    for _ in 0..LOOKS {
        tokio::time::sleep(backoff.next_delay()).await;
        // A container may end before its worker has noted whose it is.
        let owner = core.owners.lock().get(id).cloned();
        let state = match core.runtime.container_status(id).await {
            Ok(status) => Some(status.state()),
            // A sandbox, or removed since: there is nothing to wait for.
            Err(error) if error.is_runtime_not_found() => None,
            Err(_) => Some(ContainerState::ContainerRunning),
        };
        if let Some(uid) = &owner {
            core.workers.wake(uid);
        }
        if !ask_again(ended, state, owner.is_some()) {
            break;
        }
    }
    // What it started or ended with may show a moment later still.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let owner = core.owners.lock().get(id).cloned();
    if let Some(uid) = owner {
        core.workers.wake(&uid);
    }
}

/// Is there more to come of an event? `state` is what CRI says now (`None`: it knows no such container), `owned`
/// whether a worker has said that the container is its own.
fn ask_again(ended: bool, state: Option<ContainerState>, owned: bool) -> bool {
    match state {
        None => false,
        Some(_) if !owned => true,
        Some(state) => ended && state == ContainerState::ContainerRunning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str, event: &impl Message) -> Envelope {
        let value = event.encode_to_vec();
        let event = Some(prost_types::Any { type_url: String::new(), value });
        Envelope { topic: topic.into(), event, ..Envelope::default() }
    }

    #[test]
    fn whose_event_it_is() {
        let exit = |container: &str, id: &str| TaskExit {
            container_id: container.into(),
            id: id.into(),
            ..TaskExit::default()
        };
        let oom = TaskOom { container_id: "c".into() };
        for (envelope, expected) in [
            (envelope("/tasks/exit", &exit("c", "c")), Some(("c".to_owned(), true))),
            (envelope("/tasks/exit", &exit("c", "an exec")), None),
            (envelope("/tasks/oom", &oom), Some(("c".to_owned(), false))),
            (envelope("/tasks/else", &oom), None),
            (Envelope { topic: "/tasks/exit".into(), ..Envelope::default() }, None),
        ] {
            assert_eq!(meant(&envelope), expected);
        }
    }
    #[test]
    fn cri_is_asked_until_it_has_heard_and_a_worker_too() {
        use ContainerState::{ContainerCreated, ContainerExited, ContainerRunning, ContainerUnknown};
        const OWNED: bool = true;
        const ENDED: bool = true;
        for (ended, state, owned, expected) in [
            // A sandbox, or removed.
            (ENDED, None, OWNED, false),
            (ENDED, None, !OWNED, false),
            (!ENDED, None, !OWNED, false),
            // Nobody was woken yet.
            (ENDED, Some(ContainerExited), !OWNED, true),
            (ENDED, Some(ContainerRunning), !OWNED, true),
            (!ENDED, Some(ContainerCreated), !OWNED, true),
            (!ENDED, Some(ContainerRunning), !OWNED, true),
            // Its end has not arrived.
            (ENDED, Some(ContainerRunning), OWNED, true),
            (ENDED, Some(ContainerExited), OWNED, false),
            (ENDED, Some(ContainerUnknown), OWNED, false),
            // It started, or ran out of memory and goes on.
            (!ENDED, Some(ContainerRunning), OWNED, false),
            (!ENDED, Some(ContainerCreated), OWNED, false),
            (!ENDED, Some(ContainerExited), OWNED, false),
        ] {
            assert_eq!(ask_again(ended, state, owned), expected, "ended {ended}, {state:?}, owned {owned}");
        }
    }
}
