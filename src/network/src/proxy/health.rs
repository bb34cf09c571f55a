//! `healthCheckNodePort`: tells load balancers whether this node has endpoints of a Service with
//! externalTrafficPolicy Local. Answers as kube-proxy does (pkg/proxy/healthcheck/service_health.go).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kedge_base::Tasks;
use kedge_client::ObjectKey;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::model::HealthCheck;

/// A client that takes longer to ask is cut off.
const PATIENCE: Duration = Duration::from_secs(5);
const REQUEST_LIMIT: usize = 8 * 1024;

/// One small HTTP server per port. Clones share.
#[derive(Clone)]
pub(crate) struct HealthServers {
    tasks: Tasks,
    running: Arc<Mutex<HashMap<ObjectKey, Server>>>,
}

struct Server {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    tasks: Tasks,
}

impl HealthServers {
    pub(crate) fn new(tasks: &Tasks) -> Self {
        Self { tasks: tasks.clone(), running: Arc::default() }
    }

    /// Start, change or stop the server of a Service.
    pub(crate) fn set(&self, service: &ObjectKey, wanted: Option<HealthCheck>) {
        let mut running = self.running.lock();
        if let (Some(server), Some(wanted)) = (running.get(service), wanted)
            && server.port == wanted.port
        {
            server.local_endpoints.store(wanted.local_endpoints, Ordering::Relaxed);
            return;
        }
        if let Some(server) = running.remove(service) {
            server.tasks.token().cancel();
        }
        let Some(wanted) = wanted else { return };
        let tasks = self.tasks.child(&format!("health check of {service}"));
        let local_endpoints = Arc::new(AtomicUsize::new(wanted.local_endpoints));
        let (service_key, count, connections, port) =
            (service.clone(), local_endpoints.clone(), tasks.clone(), wanted.port);
        tasks.spawn_restarting("listener", move || {
            let (service, count, connections) = (service_key.clone(), count.clone(), connections.clone());
            async move {
                if let Err(error) = serve(port, &service, &count, &connections).await {
                    tracing::warn!(%service, port, %error, "health check port cannot be served, it is tried again");
                }
            }
        });
        running.insert(service.clone(), Server { port: wanted.port, local_endpoints, tasks });
    }
}

async fn serve(port: u16, service: &ObjectKey, count: &Arc<AtomicUsize>, tasks: &Tasks) -> io::Result<()> {
    let listener = match TcpListener::bind((IpAddr::from(Ipv6Addr::UNSPECIFIED), port)).await {
        Ok(listener) => listener,
        // No IPv6 on this machine.
        Err(_) => TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), port)).await?,
    };
    loop {
        let (stream, _) = listener.accept().await?;
        let answer = answer(service, count.load(Ordering::Relaxed));
        tasks.spawn_until_stopped("connection", async move {
            // A load balancer that hangs up early is no news.
            let _ = tokio::time::timeout(PATIENCE, respond(stream, answer)).await;
        });
    }
}

async fn respond(mut stream: TcpStream, answer: String) -> io::Result<()> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        let length = stream.read(&mut part).await?;
        if length == 0 || request.len() + length > REQUEST_LIMIT {
            return Ok(());
        }
        request.extend_from_slice(&part[..length]);
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

fn answer(service: &ObjectKey, local_endpoints: usize) -> String {
    let status = if local_endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    // Names of objects need no escaping. The shape, tabs included, is kube-proxy's.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": true\n}}",
        service.namespace, service.name
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {local_endpoints}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_local_endpoint_is_unavailable() {
        let key = ObjectKey::new("ns", "web");
        for (endpoints, status) in [(0, "HTTP/1.1 503 "), (2, "HTTP/1.1 200 ")] {
            let answer = answer(&key, endpoints);
            assert!(answer.starts_with(status), "{answer}");
            let body = answer.split("\r\n\r\n").nth(1).unwrap();
            let json: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(json["localEndpoints"], endpoints);
            assert_eq!(json["service"]["name"], "web");
            assert!(answer.contains(&format!("Content-Length: {}\r\n", body.len())));
        }
    }
}
