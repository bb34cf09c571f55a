//! Calls of containerd and CRI with one answer. Messages are encoded and decoded around one call of bytes:
//! what gRPC needs for a call is compiled once instead of once for each method.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes};
use k8s_cri::v1 as cri;
use kedge_base::prometheus::{Exposition, Histogram, Kind, labels};
use parking_lot::Mutex;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{IntoRequest, Request, Response, Status};

/// Statuses of many containers exceed gRPC's default of 4 MiB.
pub(crate) const MESSAGE_LIMIT: usize = 16 << 20;

/// Upstream's `runtime_operations_duration_seconds`: from 5 ms, each 2.5 times the one before.
const CALL_TIMES: [f64; 14] = [
    0.005,
    0.0125,
    0.03125,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];

/// How often which CRI method was called, how long it took and how often it failed.
#[derive(Debug, Default)]
pub(crate) struct Operations(Mutex<BTreeMap<&'static str, Operation>>);

#[derive(Debug)]
struct Operation {
    times: Histogram,
    errors: u64,
}

impl Operations {
    fn record(&self, name: &'static str, begun: Instant, failed: bool) {
        let mut all = self.0.lock();
        let operation =
            all.entry(name).or_insert_with(|| Operation { times: Histogram::new(&CALL_TIMES), errors: 0 });
        operation.times.observe_since(begun);
        operation.errors += u64::from(failed);
    }

    /// Upstream's three families (`pkg/kubelet/kuberuntime/instrumented_services.go`).
    pub(crate) fn write(&self, out: &mut Exposition) {
        let all = self.0.lock();
        let each = || {
            all.iter().map(|(name, operation)| {
                // Upstream writes these names in another way.
                let name = match *name {
                    "update_container_resources" => "update_container".to_owned(),
                    other => other.replace("pod_sandbox", "podsandbox"),
                };
                (labels(&[("operation_type", &name)]), operation)
            })
        };
        let help = "[ALPHA] Cumulative number of runtime operations by operation type.";
        let mut family = out.family("kubelet_runtime_operations_total", Kind::Counter, help);
        each().for_each(|(labels, operation)| family.sample(&labels, operation.times.count()));
        let help = "[ALPHA] Cumulative number of runtime operation errors by operation type.";
        let mut family = out.family("kubelet_runtime_operations_errors_total", Kind::Counter, help);
        each()
            .filter(|(_, operation)| operation.errors > 0)
            .for_each(|(labels, operation)| family.sample(&labels, operation.errors));
        let help = "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.";
        let name = "kubelet_runtime_operations_duration_seconds";
        let mut family = out.family(name, Kind::Histogram, help);
        each().for_each(|(labels, operation)| family.histogram(&labels, &operation.times));
    }
}

/// containerd's namespace of CRI.
pub(crate) const CRI_NAMESPACE: &str = "k8s.io";
/// Most calls end in milliseconds.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(120);
/// Where a request keeps the time that it has.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// A request to containerd's own services, about what CRI keeps there.
pub(crate) fn in_cri_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(CRI_NAMESPACE));
    request
}

/// Calls the method at `path`.
///
/// # Errors
/// The other side's refusal, or why there is no answer.
pub(crate) async fn call<Q: Message, A: Message + Default>(
    channel: &Channel,
    path: &'static str,
    request: Request<Q>,
) -> Result<Response<A>, Status> {
    let request = request.map(|message| Bytes::from(message.encode_to_vec()));
    let (metadata, answer, extensions) = raw(channel.clone(), path, request).await?.into_parts();
    let answer = A::decode(answer).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::from_parts(metadata, answer, extensions))
}

async fn raw(
    channel: Channel,
    path: &'static str,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
    client.ready().await.map_err(|error| Status::unknown(format!("Service was not ready: {error}")))?;
    client.unary(request, PathAndQuery::from_static(path), Raw).await
}

/// Messages as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.len());
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// A runtime that hangs must not hold its callers for ever: those that named no time have upstream's two minutes
/// (`runtimeRequestTimeout`). Pulls and commands take as long as they take.
fn limit<Q>(path: &str, request: &mut Request<Q>) {
    let unlimited = ["ImageService/PullImage", "RuntimeService/ExecSync"].contains(&path);
    if !unlimited && !request.metadata().contains_key(GRPC_TIMEOUT) {
        request.set_timeout(CALL_LIMIT);
    }
}

/// CRI's methods, as its own client has them.
pub(crate) struct Cri {
    channel: Channel,
    operations: Arc<Operations>,
}

impl Cri {
    pub(crate) fn new(channel: Channel, operations: Arc<Operations>) -> Self {
        Self { channel, operations }
    }
}

macro_rules! methods {
    ($($name:ident $path:literal $request:ident $answer:ident)*) => {
        impl Cri {
            $(pub(crate) async fn $name(
                &self,
                request: impl IntoRequest<cri::$request>,
            ) -> Result<Response<cri::$answer>, Status> {
                let begun = Instant::now();
                let mut request = request.into_request();
                limit($path, &mut request);
                let answer = call(&self.channel, concat!("/runtime.v1.", $path), request).await;
                self.operations.record(stringify!($name), begun, answer.is_err());
                answer
            })*
        }
    };
}

methods! {
    version "RuntimeService/Version" VersionRequest VersionResponse
    run_pod_sandbox "RuntimeService/RunPodSandbox" RunPodSandboxRequest RunPodSandboxResponse
    stop_pod_sandbox "RuntimeService/StopPodSandbox" StopPodSandboxRequest StopPodSandboxResponse
    remove_pod_sandbox "RuntimeService/RemovePodSandbox" RemovePodSandboxRequest RemovePodSandboxResponse
    pod_sandbox_status "RuntimeService/PodSandboxStatus" PodSandboxStatusRequest PodSandboxStatusResponse
    list_pod_sandbox "RuntimeService/ListPodSandbox" ListPodSandboxRequest ListPodSandboxResponse
    create_container "RuntimeService/CreateContainer" CreateContainerRequest CreateContainerResponse
    start_container "RuntimeService/StartContainer" StartContainerRequest StartContainerResponse
    stop_container "RuntimeService/StopContainer" StopContainerRequest StopContainerResponse
    remove_container "RuntimeService/RemoveContainer" RemoveContainerRequest RemoveContainerResponse
    list_containers "RuntimeService/ListContainers" ListContainersRequest ListContainersResponse
    container_status "RuntimeService/ContainerStatus" ContainerStatusRequest ContainerStatusResponse
    update_container_resources "RuntimeService/UpdateContainerResources" UpdateContainerResourcesRequest UpdateContainerResourcesResponse
    reopen_container_log "RuntimeService/ReopenContainerLog" ReopenContainerLogRequest ReopenContainerLogResponse
    exec_sync "RuntimeService/ExecSync" ExecSyncRequest ExecSyncResponse
    exec "RuntimeService/Exec" ExecRequest ExecResponse
    attach "RuntimeService/Attach" AttachRequest AttachResponse
    port_forward "RuntimeService/PortForward" PortForwardRequest PortForwardResponse
    list_container_stats "RuntimeService/ListContainerStats" ListContainerStatsRequest ListContainerStatsResponse
    status "RuntimeService/Status" StatusRequest StatusResponse
    list_images "ImageService/ListImages" ListImagesRequest ListImagesResponse
    image_status "ImageService/ImageStatus" ImageStatusRequest ImageStatusResponse
    pull_image "ImageService/PullImage" PullImageRequest PullImageResponse
    remove_image "ImageService/RemoveImage" RemoveImageRequest RemoveImageResponse
    image_fs_info "ImageService/ImageFsInfo" ImageFsInfoRequest ImageFsInfoResponse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_under_upstreams_names() {
        let operations = Operations::default();
        operations.record("run_pod_sandbox", Instant::now(), false);
        operations.record("run_pod_sandbox", Instant::now(), true);
        operations.record("update_container_resources", Instant::now(), false);
        let mut out = Exposition::default();
        operations.write(&mut out);
        let text = out.finish();
        for line in [
            "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} 2",
            "kubelet_runtime_operations_total{operation_type=\"update_container\"} 1",
            "kubelet_runtime_operations_errors_total{operation_type=\"run_podsandbox\"} 1",
            "kubelet_runtime_operations_duration_seconds_count{operation_type=\"run_podsandbox\"} 2",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
        assert!(!text.contains("errors_total{operation_type=\"update_container"), "{text}");
    }

    #[test]
    fn calls_have_an_end() {
        let asked = |limited: Option<Duration>| {
            let mut request = Request::new(());
            if let Some(limited) = limited {
                request.set_timeout(limited);
            }
            request
        };
        let told = |request: &Request<()>| request.metadata().get(GRPC_TIMEOUT).cloned();
        let own = Some(Duration::from_secs(150));
        for (path, given, expected) in [
            ("RuntimeService/Version", None, Some(CALL_LIMIT)),
            ("ImageService/ListImages", None, Some(CALL_LIMIT)),
            ("RuntimeService/StopContainer", own, own),
            ("ImageService/PullImage", None, None),
            ("RuntimeService/ExecSync", None, None),
            ("RuntimeService/ExecSync", own, own),
        ] {
            let mut request = asked(given);
            limit(path, &mut request);
            assert_eq!(told(&request), told(&asked(expected)), "{path}");
        }
    }
}
