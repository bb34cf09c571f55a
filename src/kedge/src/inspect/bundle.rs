//! The archive for bug reports: what helps to understand a node, without secrets. Keys, kubeconfigs, the
//! datastore and Secret objects are never read into it, and every text passes the redactor.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;

use super::redact::Redactor;
use super::{Finding, to_text};
use crate::admin::{self, block_on};
use crate::config::Config;
use crate::{config, service, status};

/// The end of a log is what counts.
const LOG_BYTES: u64 = 8 << 20;
const POD_LOG_BYTES: u64 = 256 << 10;
const ANSWER: Duration = Duration::from_secs(20);
const OBJECTS: [(&str, &str, &str); 11] = [
    ("", "v1", "Node"),
    ("", "v1", "Pod"),
    ("", "v1", "Service"),
    ("", "v1", "Event"),
    ("", "v1", "PersistentVolumeClaim"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "DaemonSet"),
    ("apps", "v1", "StatefulSet"),
    ("batch", "v1", "Job"),
    ("coordination.k8s.io", "v1", "Lease"),
    ("discovery.k8s.io", "v1", "EndpointSlice"),
];

/// Writes the archive; readable by its owner only, because no redaction is perfect.
///
/// # Errors
/// When the file cannot be written. What cannot be collected stands in the archive as an error's text.
pub(crate) fn write(
    config: &Config,
    findings: &[Finding],
    file: &Path,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    let mut redactor = Redactor::new().context("make the patterns of secrets")?;
    learn(config, &mut redactor);
    progress("objects of the cluster");
    let objects = objects(config, &mut redactor);

    let temporary = file.with_extension("part");
    let output = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("create {}", temporary.display()))?;
    let mut archive = Archive {
        tar: tar::Builder::new(GzEncoder::new(output, Compression::default())),
        redactor: &redactor,
        mtime: u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default(),
    };
    let result = fill(config, findings, &objects, &mut archive, progress).and_then(|()| {
        let mut output = archive.tar.into_inner()?.finish()?;
        output.flush()?;
        output.sync_all()?;
        fs::rename(&temporary, file)
    });
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.with_context(|| format!("write {}", file.display()))
}

fn fill(
    config: &Config,
    findings: &[Finding],
    objects: &[(String, String)],
    archive: &mut Archive<'_>,
    progress: &mut dyn FnMut(&str),
) -> io::Result<()> {
    archive.text("inspect.txt", &to_text(findings, &|_, word| word.to_owned()))?;
    archive.text("inspect.json", &serde_json::to_string_pretty(findings).unwrap_or_default())?;
    archive
        .text("version.txt", &format!("kedge {} ({})\n", kedge_base::VERSION, kedge_base::git_version()))?;
    let status = match status::ask(&config.status_socket()) {
        Ok(Some(status)) => serde_json::to_string_pretty(&status).unwrap_or_default(),
        Ok(None) => format!("kedge does not run; {:?}\n", status::last_failure(config)),
        Err(error) => format!("{error}\n"),
    };
    archive.text("status.json", &status)?;
    archive.text("config/effective.yaml", &config.show())?;
    for file in config::files(&config.file) {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        archive.text(&format!("config/{name}"), &fs::read_to_string(&file).unwrap_or_default())?;
    }
    progress("logs");
    archive.text("logs/kedge.log", &log(config))?;
    archive.text("logs/dmesg.txt", &output_of("dmesg", &["--ctime"], LOG_BYTES / 8))?;
    pod_logs(config, archive)?;
    progress("the machine");
    for (name, path) in [
        ("cmdline", "/proc/cmdline"),
        ("cpuinfo", "/proc/cpuinfo"),
        ("meminfo", "/proc/meminfo"),
        ("loadavg", "/proc/loadavg"),
        ("uptime", "/proc/uptime"),
        ("mounts", "/proc/self/mounts"),
        ("cgroups", "/proc/cgroups"),
        ("cgroup.controllers", "/sys/fs/cgroup/cgroup.controllers"),
        ("modules", "/proc/modules"),
        ("os-release", "/etc/os-release"),
        ("resolv.conf", "/etc/resolv.conf"),
        ("model", "/proc/device-tree/model"),
    ] {
        if let Ok(bytes) = fs::read(path) {
            archive.text(&format!("machine/{name}"), &String::from_utf8_lossy(&bytes))?;
        }
    }
    for (name, program, arguments) in [
        ("uname.txt", "uname", ["-a"].as_slice()),
        ("df.txt", "df", &["-h"]),
        ("addresses.txt", "ip", &["-details", "address"]),
        ("routes.txt", "ip", &["route", "show", "table", "all"]),
        ("neighbours.txt", "ip", &["neighbour"]),
        ("listeners.txt", "ss", &["-lntup"]),
        ("processes.txt", "ps", &["-eo", "pid,ppid,stat,etimes,rss,nlwp,comm"]),
        ("nft.txt", "nft", &["list", "table", "inet", &config.table_name]),
        ("nft-chains.txt", "nft", &["list", "chains"]),
    ] {
        archive.text(&format!("machine/{name}"), &output_of(program, arguments, LOG_BYTES))?;
    }
    for (name, text) in objects {
        archive.text(&format!("cluster/{name}"), text)?;
    }
    Ok(())
}

/// Everything that is secret on this node, so that it is recognized wherever it appears.
fn learn(config: &Config, redactor: &mut Redactor) {
    redactor.add_keys_of(&config.pki_dir());
    redactor.add_keys_of(&config.data_dir.join("join"));
    redactor.add_values_of(&config.kubeconfig());
    for file in config::files(&config.file) {
        redactor.add_values_of(&file);
    }
    redactor.add_values_of(&config.registries);
    if let Some(join) = &config.join {
        redactor.add(join);
        join.split('/').nth(1).into_iter().for_each(|token| redactor.add(token));
    }
}

/// The cluster's objects, as files; the Secrets' values only teach the redactor.
fn objects(config: &Config, redactor: &mut Redactor) -> Vec<(String, String)> {
    if !config.kubeconfig().exists() {
        return vec![(
            "error.txt".into(),
            "this node has no kubeconfig (a worker, or it never started)\n".into(),
        )];
    }
    let collected = block_on(async {
        let client = admin::client(config)?;
        let everything = ListParams::default();
        let secrets =
            tokio::time::timeout(ANSWER, Api::<Secret>::all(client.clone()).list(&everything)).await??;
        let mut lists = Vec::new();
        for (group, version, kind) in OBJECTS {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            let list = tokio::time::timeout(ANSWER, api.list(&everything)).await;
            let value = match list {
                Ok(Ok(list)) => serde_json::to_value(&list).unwrap_or_default(),
                Ok(Err(error)) => serde_json::json!({ "error": error.to_string() }),
                Err(_) => serde_json::json!({ "error": "no answer in time" }),
            };
            lists.push((format!("{}.json", resource.plural), value));
        }
        anyhow::Ok((secrets.items, lists))
    });
    let error = match collected {
        Ok(Ok((secrets, lists))) => {
            for secret in secrets {
                redactor.add_secret(&secret.data.unwrap_or_default());
            }
            return lists.into_iter().map(|(name, list)| (name, redactor.clean_objects(list))).collect();
        }
        Ok(Err(error)) => crate::failure::text(&error),
        Err(_) => "no runtime".to_owned(),
    };
    vec![("error.txt".into(), format!("the API server was not asked: {error}\n"))]
}

/// The node's own log, from the journal where systemd keeps it.
fn log(config: &Config) -> String {
    if let Some(unit) = service::journal_unit(config) {
        return output_of(
            "journalctl",
            &["-u", &unit, "--no-pager", "-n", "20000", "-o", "short-iso"],
            LOG_BYTES,
        );
    }
    tail(&config.log_file(), LOG_BYTES)
}

/// Logs of Kedge's own pods; users' pods may say anything.
fn pod_logs(config: &Config, archive: &mut Archive<'_>) -> io::Result<()> {
    let Ok(pods) = fs::read_dir(config.log_dir.join("pods")) else { return Ok(()) };
    for pod in pods.flatten() {
        let name = pod.file_name().to_string_lossy().into_owned();
        if !name.starts_with("kube-system_") {
            continue;
        }
        let containers = fs::read_dir(pod.path()).into_iter().flatten().flatten();
        for container in containers {
            let container_name = container.file_name().to_string_lossy().into_owned();
            for file in fs::read_dir(container.path()).into_iter().flatten().flatten() {
                let entry =
                    format!("logs/pods/{name}/{container_name}/{}", file.file_name().to_string_lossy());
                archive.text(&entry, &tail(&file.path(), POD_LOG_BYTES))?;
            }
        }
    }
    Ok(())
}

fn tail(file: &Path, limit: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(file)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // Whole lines only: half a secret would not be recognized.
        Ok(if length > limit {
            text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned())
        } else {
            text
        })
    };
    read().unwrap_or_else(|error| format!("{}: {error}\n", file.display()))
}

fn output_of(program: &str, arguments: &[&str], limit: u64) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    match output {
        Ok(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            let excess = text.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
            if excess > 0 {
                let start =
                    text.char_indices().map(|(at, _)| at).find(|at| *at >= excess).unwrap_or(text.len());
                text = text.split_off(start);
            }
            if !output.status.success() {
                text.push_str(&format!(
                    "\n{program} {}: {}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
            text
        }
        Err(error) => format!("{program}: {error}\n"),
    }
}

struct Archive<'a> {
    tar: tar::Builder<GzEncoder<File>>,
    redactor: &'a Redactor,
    mtime: u64,
}

impl Archive<'_> {
    fn text(&mut self, name: &str, text: &str) -> io::Result<()> {
        let clean = self.redactor.clean(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(clean.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.mtime);
        self.tar.append_data(&mut header, format!("kedge-inspect/{name}"), clean.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn planted_secrets_are_in_no_file_of_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for folder in ["data/pki", "run", "log"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        let key =
            "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqPLANTED\n-----END PRIVATE KEY-----\n";
        fs::write(path("data/pki/ca.key"), key).unwrap();
        fs::write(path("registries.yaml"), "configs: {r.example: {auth: {password: PLANTED-registry}}}\n")
            .unwrap();
        let hash = "0123456789abcdef".repeat(2);
        // Letters of a token's alphabet.
        let token = format!("p1anted{}", "0".repeat(45));
        let settings = [
            ("data-dir", path("data").display().to_string()),
            ("run-dir", path("run").display().to_string()),
            ("log-dir", path("log").display().to_string()),
            ("registries", path("registries.yaml").display().to_string()),
            ("join", format!("192.0.2.1:25000/{token}/{hash}")),
        ];
        let text: String = settings.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        fs::write(path("config.yaml"), text).unwrap();
        let config = Config::load(Some(&path("config.yaml")), &Settings::default()).unwrap();
        fs::write(
            config.log_file(),
            format!("started\nkey {key}\nMIGHAgEAMBMGByqGSM49AgEGCCqPLANTED\nlogin PLANTED-registry\ntoken=PLANTED-value\n"),
        )
        .unwrap();
        let finding = Finding {
            check: "kedge".into(),
            state: super::super::Verdict::Fail,
            message: format!("join string 192.0.2.1:25000/{token}/x"),
            remedy: None,
        };
        let file = path("report.tar.gz");
        write(&config, &[finding], &file, &mut |_| {}).unwrap();

        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&file).unwrap()));
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            assert!(!text.contains("PLANTED") && !text.contains("p1anted"), "{name} holds a secret:\n{text}");
            if name.ends_with("kedge.log") {
                assert!(text.contains("started"), "{text}");
            }
            names.push(name);
        }
        for wanted in [
            "inspect.json",
            "status.json",
            "config/config.yaml",
            "config/effective.yaml",
            "logs/kedge.log",
            "machine/nft.txt",
        ] {
            assert!(names.iter().any(|name| name.ends_with(wanted)), "{wanted} is not in {names:?}");
        }
        assert!(!path("report.tar.part").exists());
    }
}
