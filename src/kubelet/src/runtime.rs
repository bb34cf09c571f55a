//! The CRI v1 client: one gRPC channel to containerd's socket, and what runs of one pod.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::{GetRequest, GetResponse};
use containerd_client::types::v1::Status as TaskStatus;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use kedge_base::Order as _;
use tokio::sync::Notify;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Error;
use crate::calls::{CALL_LIMIT, Cri, Operations, call, in_cri_namespace};

/// Labels and annotations that make a restart of the kubelet possible
/// (upstream `pkg/kubelet/kuberuntime/labels.go`).
pub(crate) mod keys {
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub(crate) const HASH: &str = "io.kubernetes.container.hash";
    pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub(crate) const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub(crate) const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub(crate) const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
    pub(crate) const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// A runtime that does not say in this time how it is hangs.
pub(crate) const HEALTH_LIMIT: Duration = Duration::from_secs(10);

/// Clones share one channel, which connects again by itself.
#[derive(Clone)]
pub(crate) struct Runtime {
    channel: Channel,
    operations: Arc<Operations>,
    unpacked: Arc<Notify>,
}

/// A container as the runtime reports it.
pub(crate) type ContainerStatus = cri::ContainerStatus;

/// What the runtime has of one pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct RuntimePod {
    /// Newest first.
    pub(crate) sandboxes: Vec<Sandbox>,
    /// Newest first.
    pub(crate) containers: Vec<Running>,
}

/// A sandbox and its network status.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) ready: bool,
    pub(crate) created_at: i64,
    pub(crate) attempt: u32,
    pub(crate) ips: Vec<String>,
    /// The sandbox shares the host's network.
    pub(crate) host_network: bool,
}

/// A container of a pod, running or not.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) sandbox_id: String,
    pub(crate) state: cri::ContainerState,
    pub(crate) restart_count: u32,
    pub(crate) hash: String,
    pub(crate) status: ContainerStatus,
}

impl Running {
    pub(crate) fn is_running(&self) -> bool {
        self.state == cri::ContainerState::ContainerRunning
    }

    pub(crate) fn is_exited(&self) -> bool {
        self.state == cri::ContainerState::ContainerExited
    }
}

impl RuntimePod {
    /// The newest container with that name.
    pub(crate) fn latest(&self, name: &str) -> Option<&Running> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The newest sandbox, when it is ready.
    pub(crate) fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// Whether any process of the pod may still run.
    pub(crate) fn is_active(&self) -> bool {
        self.sandboxes.iter().any(|sandbox| sandbox.ready)
            || self
                .containers
                .iter()
                .any(|c| c.is_running() || c.state == cri::ContainerState::ContainerUnknown)
    }

    pub(crate) fn ips(&self) -> Vec<String> {
        self.ready_sandbox().map(|sandbox| sandbox.ips.clone()).unwrap_or_default()
    }
}

impl Runtime {
    /// Does not connect yet; the first call does.
    pub(crate) fn new(socket: &Path) -> Result<Self, Error> {
        let socket: PathBuf = socket.to_path_buf();
        let endpoint = Endpoint::try_from("http://containerd.invalid")
            .map_err(|error| Error::other(format!("endpoint of the container runtime: {error}")))?;
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        }));
        Ok(Self { channel, operations: Arc::default(), unpacked: Arc::default() })
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn cri(&self) -> Cri {
        Cri::new(self.channel.clone(), self.operations.clone())
    }

    /// What was called so far.
    pub(crate) fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Everything that exists of the pod.
    pub(crate) async fn pod(&self, uid: &str) -> Result<RuntimePod, Error> {
        let selector = HashMap::from([(keys::POD_UID.to_owned(), uid.to_owned())]);
        let filter = cri::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
        let listed = self
            .cri()
            .list_pod_sandbox(request(cri::ListPodSandboxRequest { filter: Some(filter) }))
            .await?
            .into_inner();
        let mut pod = RuntimePod::default();
        for item in listed.items {
            let asked =
                request(cri::PodSandboxStatusRequest { pod_sandbox_id: item.id.clone(), verbose: false });
            let status = match self.cri().pod_sandbox_status(asked).await {
                Ok(answer) => answer.into_inner().status,
                Err(status) if status.code() == tonic::Code::NotFound => continue,
                Err(status) => return Err(status.into()),
            };
            let Some(status) = status else { continue };
            let host_network = status
                .linux
                .as_ref()
                .and_then(|linux| linux.namespaces.as_ref())
                .and_then(|namespaces| namespaces.options.as_ref())
                .is_some_and(|options| options.network == cri::NamespaceMode::Node as i32);
            let mut ips = Vec::new();
            if let Some(network) = &status.network {
                if !network.ip.is_empty() {
                    ips.push(network.ip.clone());
                }
                ips.extend(network.additional_ips.iter().map(|ip| ip.ip.clone()));
            }
            pod.sandboxes.push(Sandbox {
                id: item.id,
                ready: status.state == cri::PodSandboxState::SandboxReady as i32,
                created_at: status.created_at,
                attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
                ips,
                host_network,
            });
        }
        pod.sandboxes.order_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        let filter = cri::ContainerFilter { label_selector: selector, ..Default::default() };
        for container in self.list_containers(Some(filter)).await? {
            match self.container_status(&container.id).await {
                Ok(status) => pod.containers.push(running(&container, status)),
                Err(error) if error.is_runtime_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        pod.containers.order_by_key(|container| {
            std::cmp::Reverse((container.restart_count, container.status.created_at))
        });
        Ok(pod)
    }

    /// Told whenever an image may have been unpacked, which a container's creation does, too.
    pub(crate) fn unpacked(&self) -> &Notify {
        &self.unpacked
    }

    /// All sandboxes, of all pods.
    pub(crate) async fn list_sandboxes(&self) -> Result<Vec<cri::PodSandbox>, Error> {
        let asked = request(cri::ListPodSandboxRequest { filter: None });
        Ok(self.cri().list_pod_sandbox(asked).await?.into_inner().items)
    }

    /// Containers that a filter lets through.
    pub(crate) async fn list_containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Error> {
        let asked = request(cri::ListContainersRequest { filter });
        Ok(self.cri().list_containers(asked).await?.into_inner().containers)
    }

    pub(crate) async fn container_status(&self, id: &str) -> Result<ContainerStatus, Error> {
        let asked = request(cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false });
        let answer = self.cri().container_status(asked).await?.into_inner();
        answer.status.ok_or_else(|| Error::other(format!("the runtime gave no status of container {id}")))
    }

    /// Whether its first process has ended. CRI says that it runs for a moment longer.
    pub(crate) async fn has_ended(&self, id: &str) -> Result<bool, Error> {
        let mut asked = in_cri_namespace(GetRequest { container_id: id.to_owned(), ..GetRequest::default() });
        asked.set_timeout(CALL_LIMIT);
        let path = "/containerd.services.tasks.v1.Tasks/Get";
        match call::<_, GetResponse>(&self.channel, path, asked).await {
            Ok(answer) => {
                Ok(answer.into_inner().process.is_none_or(|process| process.status() == TaskStatus::Stopped))
            }
            Err(status) if status.code() == tonic::Code::NotFound => Ok(true),
            Err(status) => Err(status.into()),
        }
    }

    /// `handler` is the runtime that a RuntimeClass names; empty is the default one.
    pub(crate) async fn run_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        handler: String,
    ) -> Result<String, Error> {
        // The network plugins may take their time; upstream waits twice as long as for other calls.
        let mut asked =
            tonic::Request::new(cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler });
        asked.set_timeout(CALL_LIMIT * 2);
        let made = self.cri().run_pod_sandbox(asked).await?.into_inner();
        self.unpacked.notify_one();
        Ok(made.pod_sandbox_id)
    }

    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        let asked = request(cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() });
        not_found_is_fine(self.cri().stop_pod_sandbox(asked).await.map(|_| ()))
    }

    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        let asked = request(cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() });
        not_found_is_fine(self.cri().remove_pod_sandbox(asked).await.map(|_| ()))
    }

    pub(crate) async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String, Error> {
        let asked = request(cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        });
        let made = self.cri().create_container(asked).await?.into_inner();
        self.unpacked.notify_one();
        Ok(made.container_id)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), Error> {
        let asked = request(cri::StartContainerRequest { container_id: id.to_owned() });
        self.cri().start_container(asked).await?;
        Ok(())
    }

    /// Asks the container to stop and kills it after `grace` seconds.
    pub(crate) async fn stop_container(&self, id: &str, grace: i64) -> Result<(), Error> {
        let mut asked =
            tonic::Request::new(cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace });
        asked.set_timeout(CALL_LIMIT + Duration::from_secs(u64::try_from(grace).unwrap_or(0)));
        not_found_is_fine(self.cri().stop_container(asked).await.map(|_| ()))
    }

    /// Gives a running container other limits and shares.
    pub(crate) async fn update_container(
        &self,
        id: &str,
        resources: cri::LinuxContainerResources,
    ) -> Result<(), Error> {
        let asked = request(cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            ..Default::default()
        });
        self.cri().update_container_resources(asked).await?;
        Ok(())
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let asked = request(cri::RemoveContainerRequest { container_id: id.to_owned() });
        not_found_is_fine(self.cri().remove_container(asked).await.map(|_| ()))
    }

    /// Runs a command to its end: exit code, standard output and error together.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        limit: Duration,
    ) -> Result<(i32, String), Error> {
        let mut asked = tonic::Request::new(cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command,
            timeout: i64::try_from(limit.as_secs()).unwrap_or(0),
        });
        if !limit.is_zero() {
            asked.set_timeout(limit + Duration::from_secs(5));
        }
        let answer = self.cri().exec_sync(asked).await?.into_inner();
        let mut output = answer.stdout.clone();
        output.extend_from_slice(&answer.stderr);
        Ok((answer.exit_code, String::from_utf8_lossy(&output).into_owned()))
    }

    /// The runtime's conditions: ready, and why its network is not ready.
    pub(crate) async fn health(&self) -> Result<Health, Error> {
        let asked = request(cri::StatusRequest { verbose: false });
        let answer = tokio::time::timeout(HEALTH_LIMIT, self.cri().status(asked)).await;
        let silent = |_| Error::other(format!("it does not answer within {} s", HEALTH_LIMIT.as_secs()));
        let answer = answer.map_err(silent)??.into_inner();
        let mut handlers = answer.runtime_handlers;
        // The runtime names them in another order each time.
        handlers.order_by_key(|handler| handler.name.clone());
        let mut health = Health { handlers, features: answer.features, ..Health::default() };
        for condition in answer.status.unwrap_or_default().conditions {
            let problem = (!condition.status).then(|| {
                format!(
                    "{}={} reason:{} message:{}",
                    condition.r#type, condition.status, condition.reason, condition.message
                )
            });
            match condition.r#type.as_str() {
                "RuntimeReady" => health.runtime = problem,
                "NetworkReady" => health.network = problem,
                _ => {}
            }
        }
        Ok(health)
    }
}

/// `None` is good; otherwise the reason in upstream's form.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Health {
    pub(crate) runtime: Option<String>,
    pub(crate) network: Option<String>,
    /// What the runtime can do, by name; empty when it does not say.
    pub(crate) handlers: Vec<cri::RuntimeHandler>,
    pub(crate) features: Option<cri::RuntimeFeatures>,
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

fn not_found_is_fine(result: Result<(), tonic::Status>) -> Result<(), Error> {
    match result {
        Err(status) if status.code() != tonic::Code::NotFound => Err(status.into()),
        _ => Ok(()),
    }
}

fn running(listed: &cri::Container, status: ContainerStatus) -> Running {
    let annotation = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    Running {
        id: listed.id.clone(),
        name: status.labels.get(keys::CONTAINER_NAME).cloned().unwrap_or_default(),
        sandbox_id: listed.pod_sandbox_id.clone(),
        state: cri::ContainerState::try_from(status.state).unwrap_or(cri::ContainerState::ContainerUnknown),
        restart_count: annotation(keys::RESTART_COUNT).parse().unwrap_or(0),
        hash: annotation(keys::HASH),
        status,
    }
}
