//! Pods made from a template and deleted again, with upstream's events
//! (upstream pkg/controller, RealPodControl, and slowStartBatch).

use std::future::Future;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kedge_client::{EventType, Recorder};
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::context::{message, namespace_is_terminating};

/// Creates and deletes pods for one kind of owner.
#[derive(Clone)]
pub(crate) struct PodControl {
    pub(crate) client: kube::Client,
    pub(crate) recorder: Recorder,
}

/// The pod that `template` describes, without a name.
pub(crate) fn pod_from_template(template: &PodTemplateSpec, namespace: &str, owner: &OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let owner_name = &owner.name;
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            // A long owner's name is cut by the API server when it adds its random suffix.
            generate_name: Some(format!("{owner_name}-")),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

impl PodControl {
    /// Create the pod; tell the owner's events how it went.
    pub(crate) async fn create(&self, owner: &ObjectReference, pod: &Pod) -> Result<Pod, kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api = kube::Api::<Pod>::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), pod).await {
            Ok(made) => {
                let name = made.metadata.name.as_deref().unwrap_or_default();
                self.recorder.event(
                    owner.clone(),
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {name}"),
                );
                Ok(made)
            }
            Err(error) => {
                if !namespace_is_terminating(&error) {
                    let text = format!("Error creating: {}", message(&error));
                    self.recorder.event(owner.clone(), EventType::Warning, "FailedCreate", text);
                }
                Err(error)
            }
        }
    }

    /// Delete the pod, if it is still the one with this uid; tell the owner's events how it went.
    pub(crate) async fn delete(&self, owner: &ObjectReference, pod: &Pod) -> Result<(), kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api = kube::Api::<Pod>::namespaced(self.client.clone(), namespace);
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        match api.delete(name, &params).await {
            Ok(_) => {
                let text = format!("Deleted pod: {name}");
                self.recorder.event(owner.clone(), EventType::Normal, "SuccessfulDelete", text);
                Ok(())
            }
            // Gone, or another pod has its name now: nothing to do either way.
            Err(error) if kedge_client::is_not_found(&error) || kedge_client::is_conflict(&error) => {
                Err(error)
            }
            Err(error) => {
                let text = format!("Error deleting: {}", message(&error));
                self.recorder.event(owner.clone(), EventType::Warning, "FailedDelete", text);
                Err(error)
            }
        }
    }
}

/// Run `call` `count` times in batches of 1, 2, 4, ...: when the first fails (quota, a bad
/// template) the rest is not even tried. Returns the number of successes and the first error.
pub(crate) async fn slow_start<F, Fut>(count: usize, call: F) -> (usize, Option<kube::Error>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), kube::Error>>,
{
    let (mut done, mut batch) = (0, 1);
    while done < count {
        let size = batch.min(count - done);
        let results = join_all((done..done + size).map(&call)).await;
        let succeeded = results.iter().filter(|result| result.is_ok()).count();
        if let Some(error) = results.into_iter().find_map(Result::err) {
            return (done + succeeded, Some(error));
        }
        done += size;
        batch = size * 2;
    }
    (done, None)
}

/// How many of `count` calls a slow start made when it stopped after `done` successes.
pub(crate) fn tried(count: usize, done: usize) -> usize {
    let (mut made, mut batch) = (0, 1);
    while made <= done && made < count {
        made += batch.min(count - made);
        batch *= 2;
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn batches_double_and_stop_at_the_first_error() {
        for (count, failing, expected_calls, expected_done) in
            [(0, None, 0, 0), (7, None, 7, 7), (10, Some(1), 3, 2), (10, Some(0), 1, 0)]
        {
            let calls = Mutex::new(0);
            let (done, error) = slow_start(count, |index| {
                *calls.lock().expect("not poisoned") += 1;
                async move {
                    if failing == Some(index) {
                        Err(kube::Error::LinesCodecMaxLineLengthExceeded)
                    } else {
                        Ok(())
                    }
                }
            })
            .await;
            assert_eq!(*calls.lock().expect("not poisoned"), expected_calls, "{count} {failing:?}");
            assert_eq!((done, error.is_some()), (expected_done, failing.is_some()));
        }
    }

    #[test]
    fn calls_of_a_slow_start_that_stopped() {
        // Batches of 10 are 1, 2, 4, 3.
        for (count, done, expected) in
            [(10, 0, 1), (10, 1, 3), (10, 2, 3), (10, 3, 7), (10, 6, 7), (10, 7, 10), (10, 9, 10), (1, 0, 1)]
        {
            assert_eq!(tried(count, done), expected, "{count} {done}");
        }
    }
}
