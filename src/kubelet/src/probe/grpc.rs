//! The gRPC health checking protocol, `grpc.health.v1.Health/Check`.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Endpoint, Uri};

use crate::calls::call;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    /// 1 is SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

pub(super) async fn check(host: &str, port: u16, service: String, timeout: Duration) -> Result<(), String> {
    let limit = format!("timeout: health rpc did not complete within {}s", timeout.as_secs());
    tokio::time::timeout(timeout, ask(host, port, service, timeout)).await.unwrap_or(Err(limit))
}

async fn ask(host: &str, port: u16, service: String, timeout: Duration) -> Result<(), String> {
    let shown = host.to_owned();
    let channel = Endpoint::from_static("http://health.invalid")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let host = shown.clone();
            async move {
                let stream = super::connect(&host, port, timeout).await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        }))
        .await
        .map_err(|error| format!("error: this endpoint does not support gRPC health checks: {error}"))?;
    let request = tonic::Request::new(HealthRequest { service });
    match call::<_, HealthResponse>(&channel, "/grpc.health.v1.Health/Check", request).await {
        Ok(answer) if answer.get_ref().status == 1 => Ok(()),
        Ok(answer) => Err(format!("service unhealthy (responded with status {})", answer.get_ref().status)),
        Err(status) => Err(format!("error: health rpc failed: {}", status.message())),
    }
}
