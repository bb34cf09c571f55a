//! One container for CRI (upstream `kuberuntime_container.go`, `generateContainerConfig`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};

use crate::core::{Core, Shared};
use crate::env;
use crate::runtime::keys;
use crate::{Error, hosts, pod, resources, sandbox_config, volumes};

const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

/// What a container hides of /proc and /sys by default (moby's list, which upstream uses).
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What is known when a container is about to be made.
pub(crate) struct Making {
    pub(crate) core: Shared,
    pub(crate) pod: Pod,
    pub(crate) container: Container,
    pub(crate) restart_count: u32,
    /// The image id that the container runs.
    pub(crate) image: String,
    pub(crate) pod_ips: Vec<String>,
    /// Where each volume of the pod is on the host.
    pub(crate) volumes: HashMap<String, PathBuf>,
    /// The container whose process namespace is joined.
    pub(crate) target_id: Option<String>,
}

/// The configuration, after the files that it mounts were made.
pub(crate) async fn make(making: Making) -> Result<cri::ContainerConfig, Error> {
    let Making { core, pod: target, container, .. } = &making;
    let facts = core.facts(making.pod_ips.clone());
    let links = target.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let services = env::of_services(&core.services.list(), pod::namespace(target), links);
    let variables = env::make(target, container, services, &core.objects, &facts).await?;
    // A volume may lie on a file system that hangs.
    volumes::blocking(move || with_files(&making, &variables)).await
}

fn with_files(making: &Making, variables: &[(String, String)]) -> Result<cri::ContainerConfig, Error> {
    let Making { core, pod: target, container, .. } = making;
    let uid = pod::uid(target);
    let mut mounts = volume_mounts(making, variables)?;
    hosts_file(making, &mut mounts)?;
    let message_path = container.termination_message_path.clone().unwrap_or(DEFAULT_MESSAGE_PATH.to_owned());
    if !message_path.is_empty() {
        let host_path = message_file(core, &uid, &container.name, making.restart_count)?;
        mounts.push(cri::Mount { container_path: message_path.clone(), host_path, ..Default::default() });
    }
    let labels = HashMap::from([
        (keys::POD_NAME.to_owned(), pod::name(target).to_owned()),
        (keys::POD_NAMESPACE.to_owned(), pod::namespace(target).to_owned()),
        (keys::POD_UID.to_owned(), uid),
        (keys::CONTAINER_NAME.to_owned(), container.name.clone()),
    ]);
    let mut annotations = HashMap::from([
        (keys::HASH.to_owned(), pod::container_hash(container)),
        (keys::RESTART_COUNT.to_owned(), making.restart_count.to_string()),
        (keys::MESSAGE_PATH.to_owned(), message_path),
        (
            keys::MESSAGE_POLICY.to_owned(),
            container.termination_message_policy.clone().unwrap_or("File".to_owned()),
        ),
        (keys::GRACE.to_owned(), pod::grace_period(target).to_string()),
    ]);
    if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
        // The hook is still known when the object is gone at a restart of the kubelet.
        annotations.insert(keys::PRE_STOP.to_owned(), serde_json::to_string(hook).unwrap_or_default());
    }
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: container.name.clone(),
            attempt: making.restart_count,
        }),
        image: Some(cri::ImageSpec {
            image: making.image.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: env::expand_all(container.command.as_ref(), variables),
        args: env::expand_all(container.args.as_ref(), variables),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: variables
            .iter()
            .map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts,
        labels,
        annotations,
        log_path: format!("{}/{}.log", container.name, making.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(linux_resources(core, target, container)),
            security_context: Some(security_context(making)),
        }),
        ..Default::default()
    })
}

/// CPU shares and quota, memory limit, OOM score, and what only cgroup v2 has.
pub(crate) fn linux_resources(
    core: &Core,
    target: &Pod,
    container: &Container,
) -> cri::LinuxContainerResources {
    let (requests, limits) = (resources::requests(container), resources::limits(container));
    let cpu_limit = limits.get("cpu").map_or(0, resources::milli);
    cri::LinuxContainerResources {
        cpu_period: resources::PERIOD,
        cpu_quota: resources::cpu_quota(cpu_limit),
        cpu_shares: resources::cpu_shares(requests.get("cpu").map_or(0, resources::milli)),
        memory_limit_in_bytes: limits.get("memory").map_or(0, resources::value),
        oom_score_adj: resources::oom_score_adj(target, container, core.machine.memory),
        unified: core.cgroups.container_files(),
        ..Default::default()
    }
}

fn security_context(making: &Making) -> cri::LinuxContainerSecurityContext {
    let of_pod = pod::spec(&making.pod).security_context.unwrap_or_default();
    let own: SecurityContext = making.container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let mut namespaces = sandbox_config::namespaces(&making.pod);
    if let Some(target) = &making.target_id {
        namespaces.pid = cri::NamespaceMode::Target as i32;
        namespaces.target_id.clone_from(target);
    }
    let user = own.run_as_user.or(of_pod.run_as_user);
    let group = own.run_as_group.or(of_pod.run_as_group);
    let mut groups = of_pod.supplemental_groups.clone().unwrap_or_default();
    groups.extend(of_pod.fs_group);
    let policy = match of_pod.supplemental_groups_policy.as_deref() {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict,
        _ => cri::SupplementalGroupsPolicy::Merge,
    };
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| -> Vec<String> {
        if unmasked || privileged { Vec::new() } else { list.iter().map(|&path| path.to_owned()).collect() }
    };
    let selinux = own.se_linux_options.or(of_pod.se_linux_options).map(|options| cri::SeLinuxOption {
        user: options.user.unwrap_or_default(),
        role: options.role.unwrap_or_default(),
        r#type: options.type_.unwrap_or_default(),
        level: options.level.unwrap_or_default(),
    });
    let apparmor = own.app_armor_profile.or(of_pod.app_armor_profile).map(|profile| {
        use cri::security_profile::ProfileType;
        let kind = match profile.type_.as_str() {
            "Localhost" => ProfileType::Localhost,
            "Unconfined" => ProfileType::Unconfined,
            _ => ProfileType::RuntimeDefault,
        };
        let localhost_ref = profile.localhost_profile.unwrap_or_default();
        cri::SecurityProfile { profile_type: kind as i32, localhost_ref }
    });
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces),
        selinux_options: selinux,
        run_as_user: user.map(|value| cri::Int64Value { value }),
        // CRI refuses a group without a user.
        run_as_group: group.filter(|_| user.is_some()).map(|value| cri::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups,
        supplemental_groups_policy: policy as i32,
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(sandbox_config::seccomp(
            own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()),
        )),
        apparmor,
        ..Default::default()
    }
}

fn volume_mounts(making: &Making, variables: &[(String, String)]) -> Result<Vec<cri::Mount>, Error> {
    let mut mounts = Vec::new();
    let sub_paths = making.core.config.pod_dir(&pod::uid(&making.pod)).join("volume-subpaths");
    for (index, mount) in making.container.volume_mounts.iter().flatten().enumerate() {
        let volume = making.volumes.get(&mount.name).ok_or_else(|| {
            Error::config(format!(
                "cannot find volume {:?} to mount into container {:?}",
                mount.name, making.container.name
            ))
        })?;
        let mut sub_path = mount.sub_path.clone().unwrap_or_default();
        if let Some(expression) = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()) {
            sub_path = env::expand(expression, |name| {
                variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
            });
        }
        let host_path = if sub_path.is_empty() {
            volume.clone()
        } else {
            let at = sub_paths.join(&mount.name).join(&making.container.name).join(index.to_string());
            volumes::sub_path(volume, &sub_path, &at).map_err(|error| {
                Error::config(format!(
                    "failed to prepare subPath for volumeMount {:?}: {}",
                    mount.name,
                    error.text()
                ))
            })?
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
            _ => cri::MountPropagation::PropagationPrivate,
        };
        let container_path = if mount.mount_path.starts_with('/') {
            mount.mount_path.clone()
        } else {
            format!("/{}", mount.mount_path)
        };
        let read_only =
            mount.read_only.unwrap_or(false) || volumes::always_read_only(&making.pod, &mount.name);
        mounts.push(cri::Mount {
            container_path,
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: read_only,
            propagation: propagation as i32,
            ..Default::default()
        });
    }
    Ok(mounts)
}

/// Kubelet's own `/etc/hosts`, unless the container mounts one itself.
fn hosts_file(making: &Making, mounts: &mut Vec<cri::Mount>) -> Result<(), Error> {
    let path = "/etc/hosts";
    if mounts.iter().any(|mount| mount.container_path == path) {
        return Ok(());
    }
    let target = &making.pod;
    let text = if pod::host_network(target) {
        let host = std::fs::read_to_string(path).unwrap_or_default();
        hosts::host_network(&host, target)
    } else {
        let (hostname, domain) = hosts::names(target, &making.core.config.cluster_domain);
        hosts::own_network(&making.pod_ips, &hostname, &domain, target)
    };
    let file = making.core.config.pod_dir(&pod::uid(target)).join("etc-hosts");
    write_in_place(&file, &text)?;
    mounts.push(cri::Mount {
        container_path: path.to_owned(),
        host_path: file.to_string_lossy().into_owned(),
        readonly: false,
        ..Default::default()
    });
    Ok(())
}

/// Not by rename: containers that run already have this very file mounted.
fn write_in_place(file: &Path, text: &str) -> Result<(), Error> {
    let failed = |error| Error::io(format!("write {}", file.display()), error);
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    std::fs::write(file, text).map_err(failed)?;
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(failed)
}

/// An empty file, writable by whatever user the container runs as.
fn message_file(core: &Core, uid: &str, container: &str, attempt: u32) -> Result<String, Error> {
    let file = core.config.pod_dir(uid).join("containers").join(container).join(format!("{attempt}.message"));
    write_in_place(&file, "")?;
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .map_err(|error| Error::io(format!("set mode of {}", file.display()), error))?;
    Ok(file.to_string_lossy().into_owned())
}
