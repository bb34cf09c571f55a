//! `kedge install`: make this machine a node. Everything is checked before anything is changed, and
//! running it again is an upgrade in place: containers keep running.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::status::wait_started;
use crate::addons::{BASIC_ADDONS, flannel};
use crate::cli::InstallArgs;
use crate::config::{Config, Settings};
use crate::failure::Failure;
use crate::inspect::Moment;
use crate::node::shared;
use crate::origin::{self, Origin};
use crate::output::{self, Step};
use crate::status::{State, Status};
use crate::upgrade::{self, Upgrade};
use crate::{preflight, service};

/// Check, install, start, wait.
pub(crate) fn run(config: &Config, given: &Settings, args: &InstallArgs) -> Result<ExitCode, Failure> {
    let problems = preflight::check(config, Moment::Install);
    if !problems.is_empty() {
        return Err(preflight::refusal(&problems).into());
    }
    if kedge_cluster::Admitted::read(&config.pki_dir())?.is_none() {
        shared::check_networks(config)?;
    }
    if args.check {
        output::confirm("this machine is ready for kedge install");
        output::report("checked", &json!({}));
        return Ok(ExitCode::SUCCESS);
    }

    // Addons that are there from the beginning; what somebody disabled later stays so.
    let first = !config.store_dir().exists();
    let (mut config, mut given) = (config.clone(), given.clone());
    if args.without.iter().any(|addon| addon == flannel::NAME) {
        if !first {
            return Err(Failure::usage(
                "--without flannel: this node has a cluster already",
                "run kedge disable flannel",
            ));
        }
        // Before the first start: a node that has begun with a pod network has pods in it.
        given.insert("pod-network", "none".to_owned());
        config.own_pod_network = false;
    }
    let (config, given) = (&config, &given);

    let limit = args.ready.limit();
    let mut step = Step::begin("installing the service");
    let upgrade = match upgrade::prepare(config, args.force, &mut step) {
        Ok(upgrade) => upgrade,
        Err(error) => {
            step.abandon();
            return Err(error.into());
        }
    };
    let installed = files(config, given).and_then(|()| {
        step.update("starting kedge");
        service::restart(config)
    });
    if let Err(error) = installed {
        return Err(or_step_back(config, upgrade.as_ref(), error, limit, step));
    }
    if args.no_wait {
        step.done("kedge was started; kedge status --wait-ready waits for it");
        output::report("started", &json!({ "node": config.node_name }));
        return Ok(ExitCode::SUCCESS);
    }

    match wait_started(config, limit, &mut step) {
        Ok(status) if status.lacks_network() => {
            step.done(&format!("node {} runs, and waits for a pod network", status.node));
            output::confirm(&bring_your_own(config));
            output::report(
                "installed",
                &json!({ "node": status.node, "ready": false, "version": status.version }),
            );
            Ok(ExitCode::SUCCESS)
        }
        Ok(status) if status.state == State::Ready => {
            let replaced = upgrade.as_ref().map(|upgrade| upgrade.from.as_str());
            step.done(&format!("node {} is Ready{}", status.node, upgraded(replaced, &status.version)));
            if first {
                basic_addons(config, &args.without, limit)?;
            }
            if replaced.is_none() {
                output::confirm(next_steps(config).trim_end());
            }
            output::report(
                "installed",
                &json!({ "node": status.node, "ready": true, "version": status.version, "replaced": replaced }),
            );
            Ok(ExitCode::SUCCESS)
        }
        Ok(status) => {
            let error = not_ready(config, &status, args.ready.timeout);
            Err(or_step_back(config, upgrade.as_ref(), error, limit, step))
        }
        Err(error) => Err(or_step_back(config, upgrade.as_ref(), error, limit, step)),
    }
}

/// An upgrade that failed is taken back. What was not Ready before is not the upgrade's doing: the new version
/// goes on trying.
fn or_step_back(
    config: &Config,
    upgrade: Option<&Upgrade>,
    error: anyhow::Error,
    limit: Duration,
    mut step: Step,
) -> Failure {
    let Some(upgrade) = upgrade.filter(|upgrade| upgrade.was_ready) else {
        step.abandon();
        return error.into();
    };
    let back = upgrade::step_back(config, upgrade, limit, &mut step);
    step.abandon();
    Failure::Failed(match back {
        Ok(with_data) => error.context(format!(
            "this version ({}) did not become Ready; {} runs again{}",
            kedge_base::VERSION,
            upgrade.from,
            if with_data { ", with the data from before the upgrade" } else { ", and nothing was lost" }
        )),
        Err(back) => error.context(format!(
            "this version ({}) did not become Ready, and neither did {} again: {back:#}",
            kedge_base::VERSION,
            upgrade.from
        )),
    })
}

/// What a new cluster has from the beginning. A node that joined has its cluster's; and what the
/// configuration names, the node enables itself at its first start.
pub(crate) fn basic_addons(config: &Config, without: &[String], limit: Duration) -> Result<(), Failure> {
    if config.addons.is_some() || kedge_cluster::Admitted::read(&config.pki_dir())?.is_some() {
        return Ok(());
    }
    // The pod network is on without being enabled.
    let wanted = |name: &&&str| **name != flannel::NAME && !without.iter().any(|out| out == **name);
    for addon in BASIC_ADDONS.iter().filter(wanted) {
        super::addons::enable_one(config, addon, limit)?;
    }
    Ok(())
}

/// The same for a node that became single again. Without a pod network nothing can become healthy yet.
pub(crate) fn addons_of_new_cluster(
    config: &Config,
    without: &[String],
    limit: Duration,
) -> Result<(), Failure> {
    if config.own_pod_network { basic_addons(config, without, limit) } else { Ok(()) }
}

fn bring_your_own(config: &Config) -> String {
    let plugins = config.cni_bin_dirs().first().map(|dir| dir.display().to_string()).unwrap_or_default();
    format!(
        "\nThe node becomes Ready when a pod network's CNI configuration appears in {} (plugins: {plugins}).\n\
         Then: sudo kedge enable dns\nOr take Kedge's own: sudo kedge enable flannel",
        config.cni_conf_dir.display()
    )
}

/// What the next start finds. Where a service manager runs, it must find the node after the next boot too.
pub(crate) fn for_next_start(config: &Config, given: &Settings) -> anyhow::Result<()> {
    if service::systemd_runs() { files(config, given) } else { config.keep(given) }
}

/// The settings, the binary and, where systemd runs, the unit.
fn files(config: &Config, given: &Settings) -> anyhow::Result<()> {
    config.keep(given)?;
    if matches!(origin::origin(), Origin::Own) {
        let own = std::env::current_exe().context("find the running binary")?;
        let target = origin::binary();
        install_binary(&own, &target).with_context(|| format!("install {}", target.display()))?;
    }
    if service::systemd_runs() {
        service::install(config)?;
    }
    Ok(())
}

/// Copy beside the target and rename: a running process keeps its old file.
fn install_binary(own: &Path, target: &Path) -> io::Result<()> {
    if own.canonicalize()? == target.canonicalize().unwrap_or_default() {
        return Ok(());
    }
    let temporary = target.with_extension("new");
    if let Some(dir) = target.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::copy(own, &temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, target)
}

fn not_ready(config: &Config, status: &Status, timeout: u64) -> anyhow::Error {
    let mut text = format!("the node is not Ready after {timeout} s\n{}", status.to_short());
    let tail = service::log_tail(config, 10);
    if !tail.is_empty() {
        text.push_str("the log's last lines:\n");
        text.push_str(&tail);
        text.push('\n');
    }
    text.push_str(&format!(
        "it goes on trying; see kedge status and the log ({})",
        service::log_place(config)
    ));
    anyhow::anyhow!(text)
}

/// What was done to a node that was there, and the way back.
fn upgraded(from: Option<&str>, to: &str) -> String {
    match from {
        None => String::new(),
        Some(from) if from == to => {
            format!(", with another build of {to}\nback to the one before: kedge rollback")
        }
        Some(from) => format!(", upgraded from {from} to {to}\nback to {from}: kedge rollback"),
    }
}

fn next_steps(config: &Config) -> String {
    // What the environment already says (a snap's does) need not be typed.
    let known = std::env::var_os("KEDGE_CONFIG").is_some_and(|file| Path::new(&file) == config.file);
    let flags = if known { Vec::new() } else { config.file_flags() };
    let flags: String = flags.iter().map(|flag| format!(" {flag}")).collect();
    format!(
        "\nTry next:\n  \
         sudo kedge{flags} kubectl get nodes -o wide\n  \
         sudo kedge{flags} kubectl create deployment hello --image=kedge.dev/hello:1.0 --replicas=2\n  \
         sudo kedge{flags} kubectl expose deployment hello --type=NodePort --port=8080\n  \
         sudo kedge{flags} kubectl get pods,services -o wide\n\
         For your own kubectl:\n  \
         mkdir -p ~/.kube; (umask 077; sudo kedge{flags} config > ~/.kube/kedge.config)\n  \
         export KUBECONFIG=~/.kube/kedge.config\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_says_from_what_to_what() {
        assert_eq!(upgraded(None, "v2"), "");
        let text = upgraded(Some("v1"), "v2");
        assert!(text.contains("from v1 to v2") && text.ends_with("back to v1: kedge rollback"), "{text}");
        assert!(upgraded(Some("v2"), "v2").contains("another build of v2"));
    }

    #[test]
    fn the_binary_is_replaced_by_a_rename() {
        let dir = tempfile::tempdir().unwrap();
        let (own, target) = (dir.path().join("new-kedge"), dir.path().join("bin/kedge"));
        fs::write(&own, "two").unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(&target, "one").unwrap();
        let running = fs::File::open(&target).unwrap();
        install_binary(&own, &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "two");
        assert_eq!(io::read_to_string(running).unwrap(), "one", "the old file lives on");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
        // Onto itself: nothing happens.
        install_binary(&target, &target).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("bin")).unwrap().count(), 1);
    }
}
