//! `/metrics/cadvisor`: what the containers, the pods and the machine use, under cAdvisor's names and labels
//! (`github.com/google/cadvisor/metrics`, upstream `pkg/kubelet/server/server.go`). Everything is read when it is
//! asked for, so samples have no times of their own. Only cgroups of Kubernetes have rows, and the machine's root.
//! Reads cgroups, /proc and /sys.

mod families;

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use kedge_base::prometheus::{Exposition, Kind, Nanoseconds, labels};
use nix::sys::statvfs::{Statvfs, statvfs};

use self::families::{DISK, FIGURES, FILE_SYSTEM, NETWORK, Unit};
use super::{Answer, Refusal, exposition};
use crate::cgroup::{Cgroups, Stats};
use crate::core::Shared;
use crate::node::Machine;
use crate::runtime::keys;
use crate::{Error, pod};

/// Interfaces that cAdvisor passes over: the loopback, and the host's ends of the pods' own.
const PASSED_OVER: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];

/// A cgroup that is to be looked at, and whose it is.
#[derive(Clone, Debug, Default)]
struct Wanted {
    /// From the mount's root, without a leading slash.
    path: String,
    container: String,
    image: String,
    /// The id of the container or sandbox.
    name: String,
    namespace: String,
    pod: String,
    /// The network is told of with this group: it is a sandbox with a network of its own, or the machine.
    network: bool,
    /// As the runtime says it, in nanoseconds since 1970; other groups have the times of their folders.
    created: Option<u64>,
}

/// What was found of one group.
#[derive(Debug)]
struct Row {
    labels: String,
    stats: Stats,
    interfaces: Vec<(String, [u64; NETWORK.len()])>,
    file_systems: Vec<(String, [u64; FILE_SYSTEM.len()])>,
}

pub(super) async fn metrics(core: &Shared) -> Result<Answer, Refusal> {
    let mut failed = false;
    let wanted = wanted(core).await.unwrap_or_else(|error| {
        tracing::warn!(error = %error.text(), "the containers of /metrics/cadvisor are not known");
        failed = true;
        Vec::new()
    });
    let (cgroups, machine) = (core.cgroups.clone(), core.machine.clone());
    let folders = [core.config.root_dir.clone(), core.config.image_dir.clone()];
    // Hundreds of small files: not for a thread that others wait for.
    let text = tokio::task::spawn_blocking(move || {
        let rows = look(&cgroups, &wanted, &folders);
        let mut out = Exposition::with_capacity(rows.len() * 8 * 1024 + 4096);
        write(&mut out, &rows);
        let help = "1 if there was an error while getting container metrics, 0 otherwise";
        out.single("container_scrape_error", Kind::Gauge, help, u8::from(failed));
        write_machine(&mut out, &machine);
        out.finish()
    });
    text.await
        .map(exposition)
        .map_err(|error| Refusal::internal(&Error::other(format!("the cgroups could not be read: {error}"))))
}

/// The groups of the pods that run here, from what the runtime has.
async fn wanted(core: &Shared) -> Result<Vec<Wanted>, Error> {
    let state = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 };
    let filter = cri::ContainerFilter { state: Some(state), ..Default::default() };
    let containers = core.runtime.list_containers(Some(filter)).await?;
    let sandboxes = core.runtime.list_sandboxes().await?;
    let uid_of = |labels: &std::collections::HashMap<String, String>| labels.get(keys::POD_UID).cloned();
    let mut all = vec![Wanted { network: true, ..Wanted::default() }];
    all.extend(core.cgroups.classes().map(|path| Wanted { path, ..Wanted::default() }));
    for target in core.pods.list() {
        let uid = Some(pod::uid(&target));
        let path = core.cgroups.parent_of(&target).trim_start_matches('/').to_owned();
        let of_pod = Wanted {
            path: path.clone(),
            namespace: pod::namespace(&target).to_owned(),
            pod: pod::name(&target).to_owned(),
            ..Wanted::default()
        };
        let ready = sandboxes.iter().filter(|one| one.state == cri::PodSandboxState::SandboxReady as i32);
        for sandbox in ready.filter(|one| uid_of(&one.labels) == uid) {
            all.push(Wanted {
                path: format!("{path}/{}", sandbox.id),
                image: core.config.pause_image.clone(),
                name: sandbox.id.clone(),
                network: !pod::host_network(&target),
                created: u64::try_from(sandbox.created_at).ok(),
                ..of_pod.clone()
            });
        }
        for one in containers.iter().filter(|one| uid_of(&one.labels) == uid) {
            let container = one.labels.get(keys::CONTAINER_NAME).cloned().unwrap_or_default();
            // The runtime knows the image by its digest.
            let named = pod::find_container(&target, &container).and_then(|known| known.image);
            all.push(Wanted {
                path: format!("{path}/{}", one.id),
                image: named.or_else(|| one.image.clone().map(|image| image.image)).unwrap_or_default(),
                container,
                name: one.id.clone(),
                created: u64::try_from(one.created_at).ok(),
                ..of_pod.clone()
            });
        }
        all.push(of_pod);
    }
    Ok(all)
}

/// Groups that are gone meanwhile are passed over.
fn look(cgroups: &Cgroups, wanted: &[Wanted], folders: &[PathBuf]) -> Vec<Row> {
    let mut names = BTreeMap::new();
    let row = |one: &Wanted| {
        let mut stats = cgroups.stats(&one.path)?;
        if let Some(created) = one.created {
            stats.set(crate::cgroup::Figure::Created, Some(created));
        }
        for disk in &mut stats.disks {
            disk.device = device_name(&mut names, &disk.device);
        }
        let id = format!("/{}", one.path);
        let labels = labels(&[
            ("container", &one.container),
            ("id", &id),
            ("image", &one.image),
            ("name", &one.name),
            ("namespace", &one.namespace),
            ("pod", &one.pod),
        ]);
        let machine = one.path.is_empty();
        let process = if machine { Some("self".to_owned()) } else { stats.process.map(|id| id.to_string()) };
        let interfaces = process.filter(|_| one.network).and_then(|process| {
            let text = std::fs::read_to_string(format!("/proc/{process}/net/dev")).ok()?;
            Some(interfaces(&text))
        });
        let file_systems = if machine { file_systems(&mut names, folders) } else { Vec::new() };
        Some(Row { labels, stats, interfaces: interfaces.unwrap_or_default(), file_systems })
    };
    wanted.iter().filter_map(row).collect()
}

/// `/dev/NAME` of `MAJOR:MINOR`, or that itself where no disk has the number.
fn device_name(known: &mut BTreeMap<String, String>, number: &str) -> String {
    let name = known.entry(number.to_owned()).or_insert_with(|| {
        let link = std::fs::read_link(Path::new("/sys/dev/block").join(number)).ok();
        let name = link.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        name.map_or(number.to_owned(), |name| format!("/dev/{name}"))
    });
    name.clone()
}

/// The file systems of the pods' folders and of the images, each once.
fn file_systems(
    names: &mut BTreeMap<String, String>,
    folders: &[PathBuf],
) -> Vec<(String, [u64; FILE_SYSTEM.len()])> {
    let mut told = HashSet::new();
    let look = |folder: &PathBuf| {
        let device = std::fs::metadata(folder).ok()?.dev();
        let stat: Statvfs = statvfs(folder).ok().filter(|_| told.insert(device))?;
        let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let size = stat.fragment_size();
        let used = stat.blocks().saturating_sub(stat.blocks_free()) * size;
        let figures = [stat.files_free(), stat.files(), stat.blocks() * size, used];
        Some((device_name(names, &number), figures))
    };
    folders.iter().filter_map(look).collect()
}

/// What `/proc/PID/net/dev` says, in the order of [`NETWORK`].
fn interfaces(text: &str) -> Vec<(String, [u64; NETWORK.len()])> {
    let line = |line: &str| {
        let (name, figures) = line.split_once(':')?;
        let name = name.trim();
        if PASSED_OVER.iter().any(|beginning| name.starts_with(beginning)) {
            return None;
        }
        let figures: Vec<u64> = figures.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // Received: bytes, packets, errors, dropped and four more; then the same of what was sent.
        let places = [0, 1, 2, 3, 8, 9, 10, 11];
        (figures.len() >= 12).then(|| (name.to_owned(), places.map(|place| figures[place])))
    };
    text.lines().filter_map(line).collect()
}

fn write(out: &mut Exposition, rows: &[Row]) {
    let help = "Last time a container was seen by the exporter";
    let mut family = out.family("container_last_seen", Kind::Gauge, help);
    let now = jiff::Timestamp::now().as_second();
    rows.iter().for_each(|row| family.sample(&row.labels, now));
    for of_family in FIGURES.chunk_by(|a, b| a.name == b.name) {
        let mut family = out.family(of_family[0].name, of_family[0].kind, of_family[0].help);
        for row in rows {
            for one in of_family {
                let Some(value) = row.stats.get(one.figure) else { continue };
                match one.unit {
                    Unit::Plain => family.sample_with(&row.labels, one.more, value),
                    Unit::Seconds => family.sample_with(&row.labels, one.more, Nanoseconds(value)),
                    Unit::WholeSeconds => family.sample_with(&row.labels, one.more, value / 1_000_000_000),
                }
            }
        }
    }
    for (place, (name, help)) in NETWORK.iter().enumerate() {
        let mut family = out.family(name, Kind::Counter, help);
        for row in rows {
            for (interface, figures) in &row.interfaces {
                family.sample_with(&row.labels, &labels(&[("interface", interface)]), figures[place]);
            }
        }
    }
    for (place, (name, help)) in FILE_SYSTEM.iter().enumerate() {
        let mut family = out.family(name, Kind::Gauge, help);
        for row in rows {
            for (device, figures) in &row.file_systems {
                family.sample_with(&row.labels, &labels(&[("device", device)]), figures[place]);
            }
        }
    }
    for (name, help, figure) in DISK {
        let mut family = out.family(name, Kind::Counter, help);
        for row in rows {
            for disk in &row.stats.disks {
                family.sample_with(&row.labels, &labels(&[("device", &disk.device)]), figure(disk));
            }
        }
    }
}

fn write_machine(out: &mut Exposition, machine: &Machine) {
    let labels = labels(&[
        ("boot_id", &machine.boot_id),
        ("machine_id", &machine.machine_id),
        ("system_uuid", &machine.system_uuid),
    ]);
    let (cores, sockets) = topology(Path::new("/sys/devices/system/cpu"));
    let all = [
        ("machine_cpu_cores", "Number of logical CPU cores.", u64::try_from(machine.cpus).ok()),
        ("machine_cpu_physical_cores", "Number of physical CPU cores.", cores),
        ("machine_cpu_sockets", "Number of CPU sockets.", sockets),
        (
            "machine_memory_bytes",
            "Amount of memory installed on the machine.",
            u64::try_from(machine.memory).ok(),
        ),
        ("machine_swap_bytes", "Amount of swap memory available on the machine.", crate::node::swap()),
    ];
    for (name, help, value) in all {
        if let Some(value) = value {
            out.family(name, Kind::Gauge, help).sample(&labels, value);
        }
    }
    let help = "1 if there was an error while getting machine metrics, 0 otherwise.";
    out.single("machine_scrape_error", Kind::Gauge, help, 0);
}

/// Cores and sockets; `None` where the kernel does not say.
fn topology(dir: &Path) -> (Option<u64>, Option<u64>) {
    let mut cores = HashSet::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(entry.path().join("topology").join(file)).ok();
        if let (Some(socket), Some(core)) = (read("physical_package_id"), read("core_id")) {
            cores.insert((socket, core));
        }
    }
    let sockets: HashSet<&String> = cores.iter().map(|(socket, _)| socket).collect();
    let some = |count: usize| u64::try_from(count).ok().filter(|count| *count > 0);
    (some(cores.len()), some(sockets.len()))
}

#[cfg(test)]
mod tests;
