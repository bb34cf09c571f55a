//! The kubelet's HTTPS server (port 10250): logs, streams into containers, the pods of the node and
//! their resource use. Everything but `/healthz` needs a caller that may use the node's proxy.

mod access;
mod cadvisor;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod host_logs;
mod metrics;
mod own_metrics;
mod streams;

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use k8s_openapi::api::core::v1::Pod;
use kedge_base::https::{self, Answering, Newcomer, Newcomers};
use kedge_base::{Chain, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::core::Shared;
use crate::logs::{self, Wanted};
use crate::runtime::RuntimePod;
use crate::{Error, pod};

/// Chunks of a log that may wait for a slow reader.
const LOG_CHUNKS: usize = 4;

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

/// A refusal: its code and its words.
pub(crate) struct Refusal(StatusCode, String);

impl Refusal {
    fn bad_request(text: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, text.into())
    }

    fn not_found(text: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, text.into())
    }

    fn internal(error: &Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, Chain(error).to_string())
    }
}

/// Listen, and answer until the tasks stop.
///
/// # Errors
/// When somebody else listens there.
pub(crate) async fn listen(core: &Shared) -> Result<(), Error> {
    let address = core.config.server_address;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Error::io(format!("listen on {address} (the kubelet's port)"), error))?;
    let acceptor = TlsAcceptor::from(core.config.tls.config.clone());
    let connections = core.tasks.child("server");
    let newcomers = Newcomers::default();
    let core = core.clone();
    core.tasks.clone().spawn_until_stopped("server", async move {
        loop {
            let (stream, _, newcomer) = newcomers.accept(&listener).await;
            let connection =
                connection(core.clone(), stream, acceptor.clone(), newcomer, connections.clone());
            connections.spawn_until_stopped("connection", connection);
        }
    });
    Ok(())
}

async fn connection(
    core: Shared,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    newcomer: Newcomer,
    tasks: Tasks,
) {
    let Some(stream) = https::handshake(&acceptor, stream, &newcomer).await else { return };
    let certificates = stream.get_ref().1.peer_certificates();
    let peer =
        Arc::new(certificates.and_then(|chain| chain.first()).and_then(|first| access::subject(first)));
    let protocols = https::protocols(&tasks);
    let answering = Answering::new(move |request: Request<Incoming>| {
        let is_head = *request.method() == Method::HEAD;
        let answer = handle(core.clone(), request, peer.clone());
        let answer = async move { if is_head { without_body(answer.await) } else { answer.await } };
        async move { answer.await.map(|body| body.map_err(https::BoxError::from).boxed_unsync()) }
    });
    let served = https::serve(protocols, stream, answering, newcomer).await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

async fn handle(core: Shared, request: Request<Incoming>, peer: Arc<Option<access::Caller>>) -> Answer {
    if request.uri().path() == "/healthz" {
        return text(StatusCode::OK, "ok");
    }
    let result = match access::check(&core, &request, peer.as_ref().as_ref()).await {
        Ok(()) => route(core, request).await,
        Err(refusal) => Err(refusal),
    };
    result.unwrap_or_else(|Refusal(code, words)| text(code, words))
}

async fn route(core: Shared, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let query = Query::of(&request);
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["pods" | "runningpods"]) => Ok(pods(&core)),
        (&Method::GET, ["containerLogs", namespace, name, container]) => {
            container_log(&core, namespace, name, container, &query).await
        }
        (_, ["exec", namespace, name, container] | ["exec", namespace, name, _, container]) => {
            let target = find(&core, namespace, name, container).await?;
            streams::exec(&core, request, &target, &query).await
        }
        (_, ["attach", namespace, name, container] | ["attach", namespace, name, _, container]) => {
            let target = find(&core, namespace, name, container).await?;
            streams::attach(&core, request, &target, &query).await
        }
        (_, ["portForward", namespace, name] | ["portForward", namespace, name, _]) => {
            let (_, runtime) = find_pod(&core, namespace, name).await?;
            let sandbox = runtime.ready_sandbox().ok_or_else(|| Refusal::not_found("pod is not running"))?;
            streams::port_forward(&core, request, &sandbox.id, &query).await
        }
        (&Method::GET | &Method::HEAD, ["logs", ..]) => host_logs::answer(&core, &path).await,
        (&Method::GET, ["stats", "summary"]) => metrics::summary(&core).await,
        (&Method::GET, ["metrics", "resource"]) => metrics::resource(&core).await,
        (&Method::GET, ["metrics", "cadvisor"]) => cadvisor::metrics(&core).await,
        (&Method::GET, ["metrics", "probes"]) => Ok(exposition(own_metrics::probes(&core))),
        (&Method::GET, ["metrics"]) => Ok(exposition(own_metrics::metrics(&core).await)),
        _ => Err(Refusal::not_found("404 page not found")),
    }
}

fn text(code: StatusCode, words: impl Into<String>) -> Answer {
    let body = Full::new(Bytes::from(words.into())).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The answer to HEAD: over HTTP/2 hyper would send what body there is, and clients break off.
fn without_body(answer: Answer) -> Answer {
    answer.map(|_| Full::new(Bytes::new()).map_err(|never| match never {}).boxed())
}

/// What Prometheus reads.
fn exposition(words: String) -> Answer {
    let mut response = text(StatusCode::OK, words);
    let kind = http::HeaderValue::from_static(kedge_base::prometheus::CONTENT_TYPE);
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

fn json(value: &serde_json::Value) -> Answer {
    let mut response = text(StatusCode::OK, value.to_string());
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn pods(core: &Shared) -> Answer {
    let items: Vec<Pod> = core.pods.list().iter().map(|pod| (**pod).clone()).collect();
    json(&serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

/// A container that a stream goes to.
struct Target {
    id: String,
    tty: bool,
}

async fn find_pod(core: &Shared, namespace: &str, name: &str) -> Result<(Arc<Pod>, RuntimePod), Refusal> {
    let pod = core
        .pods
        .get(namespace, name)
        .ok_or_else(|| Refusal::not_found(format!("pod \"{name}\" not found")))?;
    let runtime = core.runtime.pod(&pod::uid(&pod)).await.map_err(|error| Refusal::internal(&error))?;
    Ok((pod, runtime))
}

async fn find(core: &Shared, namespace: &str, name: &str, container: &str) -> Result<Target, Refusal> {
    let (pod, runtime) = find_pod(core, namespace, name).await?;
    let running = runtime.latest(container).filter(|running| running.is_running());
    let running =
        running.ok_or_else(|| Refusal::not_found(format!("container not found (\"{container}\")")))?;
    let spec = pod::find_container(&pod, container);
    Ok(Target { id: running.id.clone(), tty: spec.and_then(|spec| spec.tty).unwrap_or(false) })
}

/// `GetKubeletContainerLogs` (`pkg/kubelet/kubelet_pods.go`, `validateContainerLogStatus`).
async fn container_log(
    core: &Shared,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Result<Answer, Refusal> {
    let (pod, runtime) = find_pod(core, namespace, name).await?;
    if pod::find_container(&pod, container).is_none() {
        return Err(Refusal::not_found(format!("container \"{container}\" not found in pod \"{name}\"")));
    }
    let mut of_name = runtime.containers.iter().filter(|running| running.name == container);
    let found = if query.flag("previous") {
        let ended = of_name.clone().find(|running| running.is_exited() && !is_latest(&runtime, running));
        ended
            .or_else(|| of_name.next().filter(|running| running.is_exited() && running.restart_count > 0))
            .ok_or_else(|| {
                Refusal::bad_request(format!(
                    "previous terminated container \"{container}\" in pod \"{name}\" not found"
                ))
            })?
    } else {
        of_name.next().ok_or_else(|| {
            let reason = waiting_reason(&pod, container);
            Refusal::bad_request(format!(
                "container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"
            ))
        })?
    };
    let wanted = query.log_options()?;
    let (log, id) = (std::path::PathBuf::from(&found.status.log_path), found.id.clone());
    if !log.exists() {
        return Err(Refusal::not_found(format!("the log of container \"{container}\" is gone")));
    }
    let (sender, receiver) = mpsc::channel(LOG_CHUNKS);
    let follower = core.clone();
    core.tasks.spawn_until_stopped("log", async move {
        let alive = || {
            let (core, id) = (follower.clone(), id.clone());
            async move {
                let status = core.runtime.container_status(&id).await;
                status
                    .is_ok_and(|status| status.state == k8s_cri::v1::ContainerState::ContainerRunning as i32)
            }
        };
        if let Err(error) = logs::stream(log, wanted, sender, alive).await {
            tracing::debug!(error = %error.text(), "log not sent to its end");
        }
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    let mut answer = text(StatusCode::OK, "");
    *answer.body_mut() =
        http_body_util::BodyExt::boxed(StreamBody::new(stream.map(|chunk| Ok(Frame::data(chunk)))));
    Ok(answer)
}

fn is_latest(runtime: &RuntimePod, running: &crate::runtime::Running) -> bool {
    runtime.latest(&running.name).is_some_and(|latest| latest.id == running.id)
}

fn waiting_reason(pod: &Pod, container: &str) -> String {
    let status = pod::status(pod);
    let all =
        [status.init_container_statuses, status.container_statuses, status.ephemeral_container_statuses];
    all.into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == container)
        .and_then(|status| status.state?.waiting?.reason)
        .unwrap_or_else(|| "ContainerCreating".to_owned())
}

/// The decoded query of a request.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn of<B>(request: &Request<B>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "t" | "true" | "True" | "TRUE"))
    }

    fn log_options(&self) -> Result<Wanted, Refusal> {
        let number = |key: &str| match self.get(key).filter(|text| !text.is_empty()) {
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                Refusal(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    format!("{key}: Invalid value: \"{text}\": must be a number of at least 0"),
                )
            }),
            None => Ok(None),
        };
        let mut since = self.get("sinceTime").and_then(|text| text.parse().ok());
        if let Some(seconds) = number("sinceSeconds")? {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX / 2);
            since = jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds)).ok();
        }
        Ok(Wanted {
            follow: self.flag("follow"),
            tail: number("tailLines")?.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
            since,
            timestamps: self.flag("timestamps"),
            limit_bytes: number("limitBytes")?,
            stream: match self.get("stream") {
                Some("Stdout") => Some("stdout".to_owned()),
                Some("Stderr") => Some("stderr".to_owned()),
                _ => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn query(text: &str) -> Query {
        Query::of(&Request::builder().uri(format!("/x?{text}")).body(()).expect("request"))
    }

    #[test]
    fn log_options_are_read_and_checked() {
        let wanted = query("follow=true&tailLines=5&timestamps=1&limitBytes=7&stream=Stderr").log_options();
        let wanted = wanted.unwrap_or_else(|Refusal(_, words)| panic!("{words}"));
        assert!(wanted.follow && wanted.timestamps);
        assert_eq!(
            (wanted.tail, wanted.limit_bytes, wanted.stream.as_deref()),
            (Some(5), Some(7), Some("stderr"))
        );
        assert!(query("tailLines=-1").log_options().is_err());
    }

    #[test]
    fn a_debug_container_waits_for_its_own_reason() {
        let waiting = |reason| json!({ "name": "d", "state": { "waiting": { "reason": reason } } });
        let pod = |statuses| {
            serde_json::from_value::<Pod>(json!({ "status": { "ephemeralContainerStatuses": statuses } }))
                .expect("a pod")
        };
        assert_eq!(
            waiting_reason(&pod(json!([waiting("CreateContainerConfigError")])), "d"),
            "CreateContainerConfigError"
        );
        assert_eq!(waiting_reason(&pod(json!([])), "d"), "ContainerCreating");
    }

    #[test]
    fn commands_keep_their_order_and_spaces() {
        assert_eq!(
            query("command=sh&command=-c&command=echo%20a+b%26c").all("command"),
            ["sh", "-c", "echo a b&c"]
        );
    }
}
