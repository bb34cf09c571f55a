//! Is an addon healthy? Its pods run, its workloads have rolled out, its Services have endpoints, its API
//! services answer, and so does what its `addon.yaml` names: read from their status by watches, never guessed
//! from names. Who stops it is named with the event that says why.

mod blocking;
mod judge;

pub(crate) use judge::of_condition;

use std::fmt::Write as _;
use std::time::Duration;

use kedge_client::{Event as Seen, Watch};
use kube::api::DynamicObject;
use serde_json::Value;
use tokio::time::Instant;

use crate::apply::Objects;
use crate::check::Check;
use crate::error::Error;
use crate::inventory::ObjectRef;
use judge::{has_endpoint, is_expected, is_final, is_judged, judge};

/// How often what cannot be watched is asked.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const NO_ENDPOINT: &str = "no endpoint is ready";

/// What is against an addon's health, and what helps.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) reason: String,
    pub(crate) remedy: Option<String>,
}

/// An object, and what the API server has of it.
type Known = (ObjectRef, Option<Value>);

/// Health now, without waiting: what is against it, empty when healthy.
pub(crate) async fn problems(
    client: &kube::Client,
    objects: &[ObjectRef],
    checks: &[Check],
) -> Result<Vec<Problem>, Error> {
    let mut known = Objects::new(client);
    let mut problems = Vec::new();
    let mut all = Vec::new();
    for object in objects {
        let plain = |reason: String| Problem { reason, remedy: None };
        match known.api(object).await? {
            None => problems.push(plain(format!("{object} is of a kind that is not served"))),
            Some(api) => {
                let found = api.get_opt(&object.name).await?.as_ref().map(to_value);
                // One that is done may be taken away by its own time limit.
                if found.is_none() && object.kind != "Job" {
                    problems.push(plain(format!("{object} is missing")));
                }
                all.push((object.clone(), found));
            }
        }
    }
    for (object, found) in &all {
        if let Some(found) = found {
            problems.extend(problem(client, object, found, &all).await?);
        }
    }
    for check in checks {
        if let Err(reason) = check.ask(client).await {
            problems.push(Problem { reason: format!("{check}: {reason}"), remedy: check.remedy() });
        }
    }
    Ok(problems)
}

/// What is against this object, with the pod that is to blame.
async fn problem(
    client: &kube::Client,
    object: &ObjectRef,
    found: &Value,
    all: &[Known],
) -> Result<Option<Problem>, Error> {
    let judged = if is_judged(object) {
        judge(&object.kind, found)
    } else if is_service(object) && is_expected(found, all) && !has_endpoints(client, object).await? {
        Err(NO_ENDPOINT.to_owned())
    } else {
        Ok(())
    };
    let Err(mut reason) = judged else { return Ok(None) };
    let culprit = blocking::culprit(client, object, found).await;
    if object.kind == "Pod" && !culprit.text.is_empty() {
        reason = culprit.text;
    } else if !culprit.text.is_empty() {
        let _ = write!(reason, " ({})", culprit.text);
    }
    let remedy = Some(format!("see kedge kubectl {}", culprit.describe));
    Ok(Some(Problem { reason: format!("{object}: {reason}"), remedy }))
}

fn is_service(object: &ObjectRef) -> bool {
    object.api_version == "v1" && object.kind == "Service"
}

/// Of all EndpointSlices in the Service's namespace the path, and the selector of its own.
fn slices(service: &ObjectRef) -> (String, String) {
    let namespace = service.namespace.as_deref().unwrap_or("default");
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    (path, format!("kubernetes.io/service-name={}", service.name))
}

async fn has_endpoints(client: &kube::Client, service: &ObjectRef) -> Result<bool, Error> {
    let (path, labels) = slices(service);
    let params = kube::api::ListParams::default().labels(&labels);
    let request = kube::core::Request::new(path).list(&params).map_err(kube::Error::BuildRequest)?;
    let list: Value = client.request(request).await?;
    Ok(list["items"].as_array().into_iter().flatten().any(has_endpoint))
}

/// Waits until all are healthy, telling `progress` what it waits for.
///
/// # Errors
/// [`Error::Unhealthy`] with the pod and its event, when `limit` is over or nothing can become healthy any more.
pub(crate) async fn wait(
    client: &kube::Client,
    addon: &str,
    objects: &[ObjectRef],
    checks: &[Check],
    limit: Duration,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Error> {
    let begun = Instant::now();
    let in_time = async {
        let mut known = Objects::new(client);
        let mut all: Vec<Known> = Vec::new();
        for object in objects.iter().filter(|object| is_judged(object)) {
            let Some(api) = known.api(object).await? else { continue };
            let path = api.resource_url().to_owned();
            match watched(client, path, object, progress).await {
                Some(found) if is_final(&object.kind, &found) => return Ok(()),
                found => all.push((object.clone(), found)),
            }
        }
        for object in objects.iter().filter(|object| is_service(object)) {
            let Some(api) = known.api(object).await? else { continue };
            let Some(service) = api.get_opt(&object.name).await? else { continue };
            if is_expected(&to_value(&service), &all) {
                progress(&format!("{object}: {NO_ENDPOINT}"));
                let (path, labels) = slices(object);
                let mut changes = Watch::<Value>::new(client.clone(), path, "", &labels);
                while !has_endpoint(&changes.next_object().await) {}
            }
        }
        for check in checks {
            while let Err(reason) = check.ask(client).await {
                progress(&format!("{check}: {reason}"));
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
        Ok::<(), Error>(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(limit, in_time).await {
        return Err(error);
    }
    // In time or not: what counts is what is there now.
    match problems(client, objects, checks).await?.into_iter().next() {
        None => Ok(()),
        Some(Problem { reason, remedy }) => Err(Error::Unhealthy {
            addon: addon.to_owned(),
            seconds: begun.elapsed().as_secs(),
            reason,
            see: remedy.unwrap_or_else(|| "mend that".to_owned()),
        }),
    }
}

/// The object as soon as it is healthy or never will be; `None`: it is not there any more.
async fn watched(
    client: &kube::Client,
    path: String,
    object: &ObjectRef,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Option<Value> {
    let mut changes =
        Watch::<Value>::new(client.clone(), path, &format!("metadata.name={}", object.name), "");
    let mut there = false;
    loop {
        match changes.next().await {
            Seen::Listed(found) | Seen::Changed(found) => {
                there = true;
                match judge(&object.kind, &found) {
                    Err(reason) if !is_final(&object.kind, &found) => {
                        progress(&format!("{object}: {reason}"));
                    }
                    _ => return Some(found),
                }
            }
            Seen::Begin => there = false,
            Seen::Done if there => {}
            // It was applied just now: somebody has taken it away.
            Seen::Done | Seen::Deleted(_) => return None,
        }
    }
}

/// Returns when an object that was deleted is really gone: with it goes what depends on it, and until then
/// nobody can make it anew.
///
/// # Errors
/// When the API server does not answer.
pub(crate) async fn gone(client: &kube::Client, object: &ObjectRef) -> Result<(), Error> {
    let mut known = Objects::new(client);
    let Some(api) = known.api(object).await? else { return Ok(()) };
    let (path, fields) = (api.resource_url().to_owned(), format!("metadata.name={}", object.name));
    let mut changes = Watch::<Value>::new(client.clone(), path, &fields, "");
    let mut there = false;
    loop {
        match changes.next().await {
            Seen::Begin => there = false,
            Seen::Listed(_) => there = true,
            Seen::Done if there => {}
            Seen::Done | Seen::Deleted(_) => return Ok(()),
            Seen::Changed(_) => {}
        }
    }
}

fn to_value(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}
