//! Liveness, readiness and startup probes: one task a probe of a running container
//! (upstream `pkg/kubelet/prober`).

mod grpc;
pub(crate) mod http;
mod tally;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, Probe};
use kedge_base::prometheus::Exposition;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::tally::{Tallies, Tally};
use crate::actions::Verdicts;
use crate::core::Shared;
use crate::runtime::{Running, RuntimePod};
use crate::{lifecycle, pod};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What the probes of one container say.
struct Entry {
    uid: String,
    ready: bool,
    started: watch::Sender<bool>,
    failed: Option<&'static str>,
    stop: CancellationToken,
    /// Of those that do not matter any more when the pod terminates; a child of `stop`.
    stop_restarting: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// All probes, by container id, and how they came out. Clones share.
#[derive(Clone, Default)]
pub(crate) struct Probes(Arc<Mutex<HashMap<String, Entry>>>, Arc<Tallies>);

impl Verdicts for Probes {
    fn failed(&self, container_id: &str) -> Option<&'static str> {
        self.0.lock().get(container_id).and_then(|entry| entry.failed)
    }

    fn started(&self, container_id: &str, container: &Container) -> bool {
        self.is_started(container_id, container)
    }
}

impl Probes {
    pub(crate) fn is_started(&self, id: &str, container: &Container) -> bool {
        container.startup_probe.is_none()
            || self.0.lock().get(id).is_some_and(|entry| *entry.started.borrow())
    }

    pub(crate) fn is_ready(&self, id: &str, container: &Container) -> bool {
        container.readiness_probe.is_none() || self.0.lock().get(id).is_some_and(|entry| entry.ready)
    }

    /// The pod terminates: nothing is restarted any more. Readiness probes go on, so that endpoints
    /// show whether the pod still serves (upstream `prober/worker.go`).
    pub(crate) fn remove_pod(&self, uid: &str) {
        for entry in self.0.lock().values_mut().filter(|entry| entry.uid == uid) {
            entry.stop_restarting.cancel();
        }
    }

    /// What the probes say of a container that has some.
    pub(crate) fn readiness(&self, id: &str) -> Option<bool> {
        self.0.lock().get(id).map(|entry| entry.ready)
    }

    pub(crate) fn remove_container(&self, id: &str) {
        self.0.lock().remove(id);
    }

    /// The pod's containers have ended: nothing is told of their probes any more.
    pub(crate) fn forget(&self, uid: &str) {
        self.1.forget(uid);
    }

    pub(crate) fn write_metrics(&self, out: &mut Exposition) {
        self.1.write(out);
    }

    /// Probe what runs, and nothing else, of the pod.
    pub(crate) fn track(&self, core: &Shared, target: &Pod, real: &RuntimePod) {
        let uid = pod::uid(target);
        let running = |id: &str| real.containers.iter().any(|c| c.id == id && c.is_running());
        self.0.lock().retain(|id, entry| entry.uid != uid || running(id));
        let status = pod::status(target);
        for current in real.containers.iter().filter(|c| c.is_running()) {
            let Some(container) = pod::find_container(target, &current.name) else { continue };
            let probed = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
            if probed.iter().all(|probe| probe.is_none()) || self.0.lock().contains_key(&current.id) {
                continue;
            }
            let told = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
            let id = format!("containerd://{}", current.id);
            let before: Option<&ContainerStatus> =
                told.into_iter().find(|told| told.container_id.as_deref() == Some(id.as_str()));
            let started =
                container.startup_probe.is_none() || before.is_some_and(|told| told.started == Some(true));
            let stop = CancellationToken::new();
            let entry = Entry {
                uid: uid.clone(),
                ready: before.is_some_and(|told| told.ready),
                started: watch::Sender::new(started),
                failed: None,
                stop_restarting: stop.child_token(),
                stop,
            };
            let (stop, restarting) = (entry.stop.clone(), entry.stop_restarting.clone());
            let ready_to_go = entry.started.clone();
            self.0.lock().insert(current.id.clone(), entry);
            for (kind, probe) in [
                (Kind::Startup, container.startup_probe.clone().filter(|_| !started)),
                (Kind::Liveness, container.liveness_probe.clone()),
                (Kind::Readiness, container.readiness_probe.clone()),
            ] {
                let Some(probe) = probe else { continue };
                let task = Task {
                    core: core.clone(),
                    probes: self.clone(),
                    pod: target.clone(),
                    container: container.clone(),
                    current: current.clone(),
                    address: address_of(core, real, current),
                    tally: self.1.of(target, &container.name, kind.title()),
                    kind,
                    probe,
                };
                let stop = if kind == Kind::Readiness { stop.clone() } else { restarting.clone() };
                let mut gate = ready_to_go.subscribe();
                core.tasks.spawn_until_stopped("probe", async move {
                    let run = async {
                        if kind != Kind::Startup && gate.wait_for(|started| *started).await.is_err() {
                            return;
                        }
                        task.run().await;
                    };
                    stop.run_until_cancelled(run).await;
                });
            }
        }
    }
}

enum Answer {
    Good,
    Bad(String),
    /// The probe could not be made; counts as a failure.
    Error(String),
}

struct Task {
    core: Shared,
    probes: Probes,
    pod: Pod,
    container: Container,
    current: Running,
    /// Where the container's sandbox is reached; it keeps its addresses for as long as it lives.
    address: Option<String>,
    kind: Kind,
    probe: Probe,
    tally: Arc<Tally>,
}

/// The address of the sandbox that the container runs in, so that the runtime need not be asked before
/// every probe.
fn address_of(core: &Shared, real: &RuntimePod, current: &Running) -> Option<String> {
    let sandbox =
        real.sandboxes.iter().find(|sandbox| sandbox.id == current.sandbox_id && !sandbox.host_network)?;
    core.config.sorted(sandbox.ips.clone()).into_iter().next()
}

impl Task {
    async fn run(&self) {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
        };
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let timeout = seconds(self.probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let needed_good = self.probe.success_threshold.unwrap_or(1).max(1);
        let needed_bad = self.probe.failure_threshold.unwrap_or(3).max(1);
        // The delay counts from the container's start, which may lie before this process's.
        let age = jiff::Timestamp::now().as_nanosecond() - i128::from(self.current.status.started_at);
        let age = Duration::from_nanos(u64::try_from(age).unwrap_or(0));
        tokio::time::sleep(seconds(self.probe.initial_delay_seconds, 0).saturating_sub(age)).await;
        let (mut good, mut bad) = (0, 0);
        loop {
            let begun = Instant::now();
            match self.attempt(timeout).await {
                Answer::Good => {
                    self.tally.good(begun.elapsed());
                    (good, bad) = (good + 1, 0);
                    if good >= needed_good && self.succeeded() {
                        return;
                    }
                }
                Answer::Bad(text) => {
                    self.tally.bad();
                    (good, bad) = (0, bad + 1);
                    self.unhealthy(format!("{} probe failed: {text}", self.kind.title()));
                    self.failed(bad >= needed_bad);
                }
                Answer::Error(text) => {
                    self.tally.error();
                    (good, bad) = (0, bad + 1);
                    self.unhealthy(format!(
                        "{} probe errored and resulted in unknown state: {text}",
                        self.kind.title()
                    ));
                    self.failed(bad >= needed_bad);
                }
            }
            tokio::time::sleep(period).await;
        }
    }

    fn unhealthy(&self, message: String) {
        self.core.warning(&self.pod, Some(&self.container.name), "Unhealthy", message);
    }

    fn wake(&self) {
        self.core.workers.wake(&pod::uid(&self.pod));
    }

    /// Whether the probe is over.
    fn succeeded(&self) -> bool {
        let mut changed = false;
        if let Some(entry) = self.probes.0.lock().get_mut(&self.current.id) {
            match self.kind {
                Kind::Startup => {
                    entry.started.send_replace(true);
                    changed = true;
                }
                Kind::Liveness => entry.failed = None,
                Kind::Readiness => {
                    changed = !entry.ready;
                    entry.ready = true;
                }
            }
        }
        if changed {
            self.wake();
        }
        self.kind == Kind::Startup
    }

    fn failed(&self, enough: bool) {
        if !enough {
            return;
        }
        let mut changed = false;
        if let Some(entry) = self.probes.0.lock().get_mut(&self.current.id) {
            match self.kind {
                Kind::Readiness => {
                    changed = entry.ready;
                    entry.ready = false;
                }
                Kind::Startup | Kind::Liveness => {
                    changed = entry.failed.is_none();
                    entry.failed = Some(self.kind.name());
                }
            }
        }
        if changed {
            self.wake();
        }
    }

    async fn attempt(&self, timeout: Duration) -> Answer {
        if let Some(exec) = &self.probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return match self.core.runtime.exec_sync(&self.current.id, command, timeout).await {
                Ok((0, _)) => Answer::Good,
                Ok((_, output)) => Answer::Bad(short(&output)),
                Err(error) if error.is_timeout() => {
                    Answer::Bad(format!("command timed out after {}s", timeout.as_secs()))
                }
                Err(error) => Answer::Error(error.text()),
            };
        }
        let host = match &self.address {
            Some(address) => address.clone(),
            // Of the host's network, or not known when the container was found.
            None => match lifecycle::address(&self.core, &self.pod).await {
                Ok(host) => host,
                Err(error) => return Answer::Error(error.text()),
            },
        };
        if let Some(get) = &self.probe.http_get {
            let Some(request) = http::Request::of(get, &self.container, &host, "kube-probe") else {
                return Answer::Error("couldn't find port".to_owned());
            };
            return match http::get(&request, timeout).await {
                Ok((code, _)) if (200..300).contains(&code) => Answer::Good,
                Ok((code, body)) if (300..400).contains(&code) => {
                    let message = format!(
                        "{} probe warning: Probe terminated redirects, Response body: {}",
                        self.kind.title(),
                        short(&String::from_utf8_lossy(&body))
                    );
                    self.core.warning(&self.pod, Some(&self.container.name), "ProbeWarning", message);
                    Answer::Good
                }
                Ok((code, _)) => Answer::Bad(format!("HTTP probe failed with statuscode: {code}")),
                Err(text) => Answer::Bad(text),
            };
        }
        if let Some(tcp) = &self.probe.tcp_socket {
            let host = tcp.host.clone().filter(|host| !host.is_empty()).unwrap_or(host);
            let Some(port) = pod::resolve_port(&tcp.port, &self.container) else {
                return Answer::Error("couldn't find port".to_owned());
            };
            return match connect(&host, port, timeout).await {
                Ok(_) => Answer::Good,
                Err(text) => Answer::Bad(text),
            };
        }
        if let Some(probe) = &self.probe.grpc {
            let port = u16::try_from(probe.port).unwrap_or(0);
            let service = probe.service.clone().unwrap_or_default();
            return match grpc::check(&host, port, service, timeout).await {
                Ok(()) => Answer::Good,
                Err(text) => Answer::Bad(text),
            };
        }
        Answer::Error("missing probe handler".to_owned())
    }
}

/// Output in an event is cut at 10 KiB upstream; an event takes 1 KiB anyway.
fn short(output: &str) -> String {
    output.chars().take(1000).collect()
}

/// Connects by address only: names would need the host's resolver.
pub(crate) async fn connect(
    host: &str,
    port: u16,
    timeout: Duration,
) -> Result<tokio::net::TcpStream, String> {
    let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let Ok(ip) = host.parse() else { return Err(format!("dial tcp: lookup {host}: no such host")) };
    match tokio::time::timeout(timeout, tokio::net::TcpStream::connect(SocketAddr::new(ip, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(format!("dial tcp {shown}: connect: connection refused"))
        }
        Ok(Err(error)) => Err(format!("dial tcp {shown}: connect: {error}")),
        Err(_) => Err(format!("dial tcp {shown}: i/o timeout")),
    }
}
