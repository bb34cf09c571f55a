//! Wakes a pod's worker when one of its containers starts, ends or runs out of memory: from
//! containerd's own event stream, because CRI's (GetContainerEvents) is missing in containerd 1.6.

use std::collections::HashSet;
use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom, TaskStart};
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{
    ListTasksRequest, ListTasksResponse, PublishRequest, SubscribeRequest,
};
use containerd_client::types::Envelope;
use containerd_client::types::v1::Status as TaskStatus;
use k8s_cri::v1::ContainerState;
use kedge_base::{Backoff, Chain};
use prost::Message;
use tonic::{Status, Streaming};

use crate::Error;
use crate::calls::{CALL_LIMIT, CRI_NAMESPACE, call, in_cri_namespace};
use crate::core::Shared;

/// While the stream is broken it is tried again, and every pod looked at, this often.
const RELIST: Duration = Duration::from_secs(2);
/// The longest pause between two looks after an event.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// So often at most CRI is asked after an event: for a bit more than a minute.
const LOOKS: usize = 15;
/// An event of Kedge's own: see [`subscribe`].
const LISTENING: &str = "/kedge/listening";

/// Follows the events for as long as the process lives.
pub(crate) async fn follow(core: Shared) {
    loop {
        match subscribe(&core).await {
            Ok(mut stream) => {
                core.report(None);
                core.workers.wake_all();
                if let Err(error) = ended_before(&core).await {
                    tracing::warn!(error = %Chain(&error), "containers that ended unseen were not looked for");
                }
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

/// Returns when events arrive: what happens from then on is told. containerd sends nothing at all, not even that
/// it listens, before the first event, so there is one.
async fn subscribe(core: &Shared) -> Result<Streaming<Envelope>, Status> {
    let mut client = EventsClient::new(core.runtime.channel());
    let filters = ["/tasks/exit", "/tasks/oom", "/tasks/start", LISTENING]
        .map(|topic| format!("namespace=={CRI_NAMESPACE},topic==\"{topic}\""));
    let arrived = client.subscribe(SubscribeRequest { filters: filters.to_vec() });
    let channel = core.runtime.channel();
    let publish = async {
        let mut backoff = Backoff::new(Duration::from_millis(10), RELIST);
        loop {
            let event = prost_types::Any { type_url: "kedge.dev/listening".to_owned(), value: Vec::new() };
            let told = in_cri_namespace(PublishRequest { topic: LISTENING.to_owned(), event: Some(event) });
            let path = "/containerd.services.events.v1.Events/Publish";
            if let Err(status) = call::<_, ()>(&channel, path, told).await {
                return status;
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    tokio::select! {
        arrived = arrived => Ok(arrived?.into_inner()),
        status = publish => Err(status),
    }
}

/// What ended before the stream began was told to nobody here, and CRI may still say that it runs.
async fn ended_before(core: &Shared) -> Result<(), Error> {
    // In this order: what starts meanwhile is not taken for dead.
    let containers = core.runtime.list_containers(None).await?;
    let mut asked = in_cri_namespace(ListTasksRequest::default());
    asked.set_timeout(CALL_LIMIT);
    let path = "/containerd.services.tasks.v1.Tasks/List";
    let tasks = call::<_, ListTasksResponse>(&core.runtime.channel(), path, asked).await?.into_inner().tasks;
    let alive = |status: TaskStatus| status != TaskStatus::Stopped && status != TaskStatus::Unknown;
    let alive: HashSet<String> =
        tasks.into_iter().filter(|task| alive(task.status())).map(|task| task.id).collect();
    for container in containers {
        if container.state() == ContainerState::ContainerRunning && !alive.contains(&container.id) {
            follow_up(core, container.id, true);
        }
    }
    Ok(())
}

fn handle(core: &Shared, envelope: &Envelope) {
    if let Some((id, ended)) = meant(envelope) {
        follow_up(core, id, ended);
    }
}

fn follow_up(core: &Shared, id: String, ended: bool) {
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
