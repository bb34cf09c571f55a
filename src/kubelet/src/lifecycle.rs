//! Hooks of containers, and the check of the user they run as (upstream `pkg/kubelet/lifecycle/handlers.go`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::core::Core;
use crate::images::Present;
use crate::probe::http;
use crate::{Error, pod};

/// Runs a postStart or preStop hook to its end.
pub(crate) async fn run(
    core: &Core,
    target: &Pod,
    name: &str,
    id: &str,
    hook: &LifecycleHandler,
) -> Result<(), Error> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let (code, output) = core.runtime.exec_sync(id, command.clone(), Duration::ZERO).await?;
        if code != 0 {
            return Err(Error::other(format!(
                "command '{}' exited with {code}: {output}",
                command.join(" ")
            )));
        }
        return Ok(());
    }
    if let Some(get) = &hook.http_get {
        let container = pod::find_container(target, name).unwrap_or_default();
        let default_host = address(core, target).await?;
        let request = http::Request::of(get, &container, &default_host, "kube-lifecycle")
            .ok_or_else(|| Error::other("the hook's port is not a port of the container"))?;
        let (code, _) = http::get(&request, Duration::from_secs(30)).await.map_err(Error::other)?;
        return if code >= 400 {
            Err(Error::other(format!("HTTP hook answered with status {code}")))
        } else {
            Ok(())
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err(Error::other("invalid handler: no action given"))
}

/// The pod's own address.
pub(crate) async fn address(core: &Core, target: &Pod) -> Result<String, Error> {
    if pod::host_network(target) {
        return Ok(core.config.node_ip());
    }
    let real = core.runtime.pod(&pod::uid(target)).await?;
    core.config
        .sorted(real.ips())
        .into_iter()
        .next()
        .ok_or_else(|| Error::other("the pod has no address yet"))
}

/// `runAsNonRoot` (upstream `security_context_others.go`, `verifyRunAsNonRoot`).
pub(crate) fn check_user(target: &Pod, container: &Container, image: &Present) -> Result<(), Error> {
    let of_pod = pod::spec(target).security_context.unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    if own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let about = format!(
        "(pod: \"{}_{}({})\", container: {})",
        pod::name(target),
        pod::namespace(target),
        pod::uid(target),
        container.name
    );
    match own.run_as_user.or(of_pod.run_as_user) {
        Some(0) => Err(Error::config(format!("container's runAsUser breaks non-root policy {about}"))),
        Some(_) => Ok(()),
        None if image.uid == Some(0) || (image.uid.is_none() && image.username.is_empty()) => {
            Err(Error::config(format!("container has runAsNonRoot and image will run as root {about}")))
        }
        None if image.uid.is_none() => Err(Error::config(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {about}",
            image.username
        ))),
        None => Ok(()),
    }
}
