//! Calls of containerd and CRI with one answer. Messages are encoded and decoded around one call of bytes:
//! what gRPC needs for a call is compiled once instead of once for each method.

use bytes::{Buf as _, BufMut as _, Bytes};
use k8s_cri::v1 as cri;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{IntoRequest, Request, Response, Status};

/// Statuses of many containers exceed gRPC's default of 4 MiB.
pub(crate) const MESSAGE_LIMIT: usize = 16 << 20;

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

/// CRI's methods, as its own client has them.
pub(crate) struct Cri(pub(crate) Channel);

macro_rules! methods {
    ($($name:ident $path:literal $request:ident $answer:ident)*) => {
        impl Cri {
            $(pub(crate) async fn $name(
                &self,
                request: impl IntoRequest<cri::$request>,
            ) -> Result<Response<cri::$answer>, Status> {
                call(&self.0, concat!("/runtime.v1.", $path), request.into_request()).await
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
