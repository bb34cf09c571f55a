//! `kedge enable`, `disable`, `addons`: what runs on the cluster beside the users' own things.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_addons::{Catalog, Cluster, Error, Manager, State};

use super::{block_on, require_root};
use crate::cli::{AddonsCommand, EnableArgs, Failure, Format};
use crate::config::{Config, joined};
use crate::output::{self, Step};

/// The manager of this node's cluster, with a client for its API.
pub(crate) fn manager(config: &Config, client: kube::Client) -> anyhow::Result<Manager> {
    // A node that joined has its cluster's settings, whatever its own configuration says.
    let mut shared = config.clone();
    if let Some(admitted) = kedge_cluster::Admitted::read(&config.pki_dir())? {
        crate::node::shared::adopt(&mut shared, &admitted.config)?;
    }
    Ok(Manager::new(client, catalog(config)?, cluster(&shared)))
}

/// What manifests may know.
fn cluster(config: &Config) -> Cluster {
    Cluster {
        version: kedge_base::VERSION.to_owned(),
        cluster_dns: config.cluster_dns.to_string(),
        cluster_domain: config.cluster_domain.clone(),
        pod_cidr: joined(&config.pod_cidrs),
        data_dir: config.data_dir.display().to_string(),
    }
}

/// Embedded addons, and those of folders that were added.
fn catalog(config: &Config) -> anyhow::Result<Catalog> {
    let mut catalog = Catalog::embedded()?;
    let folder = config.data_dir.join("addons");
    if folder.is_dir() {
        catalog.load(&folder).context("load the added addons")?;
    }
    Ok(catalog)
}

/// Enable each in the order given; the first that fails ends it.
pub(crate) fn enable(config: &Config, args: &EnableArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    block_on(async {
        let manager = manager(config, super::admin_client(config)?)?;
        // Everything is parsed before anything is applied.
        let mut wanted: Vec<(&str, BTreeMap<String, String>)> = Vec::new();
        for word in &args.addons {
            let (name, arguments) = word.split_once(':').unwrap_or((word, ""));
            let addon = manager.catalog().get(name).map_err(usage)?;
            let given = addon.split_arguments(arguments).map_err(usage)?;
            addon.values(&given).map_err(usage)?;
            wanted.push((name, given));
        }
        for (name, given) in wanted {
            enable_with(&manager, name, &given, Duration::from_secs(args.timeout)).await?;
        }
        Ok(ExitCode::SUCCESS)
    })?
}

/// Enable one addon with its defaults, unless it is enabled already.
pub(crate) fn enable_one(config: &Config, name: &str, limit: Duration) -> Result<(), Failure> {
    block_on(async {
        let manager = manager(config, super::admin_client(config)?)?;
        if manager.is_enabled(name).await.context("ask for the addons")? {
            return Ok(());
        }
        enable_with(&manager, name, &BTreeMap::new(), limit).await
    })?
}

async fn enable_with(
    manager: &Manager,
    name: &str,
    given: &BTreeMap<String, String>,
    limit: Duration,
) -> Result<(), Failure> {
    let mut step = Step::begin(&format!("enabling {name}"));
    let result = manager
        .enable(name, given, limit, &mut |text| step.update(&format!("enabling {name}: {text}")))
        .await;
    if let Err(error) = result {
        step.abandon();
        return Err(Failure::Failed(anyhow::Error::from(error).context(format!("enable {name}"))));
    }
    step.done(&format!("{name} is enabled"));
    let notes = manager.catalog().get(name).map(|addon| addon.notes.trim().to_owned()).unwrap_or_default();
    if !notes.is_empty() {
        output::say(&notes);
    }
    Ok(())
}

/// Disable each in the order given.
pub(crate) fn disable(config: &Config, names: &[String]) -> Result<ExitCode, Failure> {
    require_root()?;
    block_on(async {
        let manager = manager(config, super::admin_client(config)?)?;
        for name in names {
            let mut step = Step::begin(&format!("disabling {name}"));
            let result =
                manager.disable(name, &mut |text| step.update(&format!("disabling {name}: {text}"))).await;
            match result {
                Ok(()) => step.done(&format!("{name} is disabled")),
                Err(error) => {
                    step.abandon();
                    return Err(usage(error));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })?
}

pub(crate) fn run(config: &Config, command: &AddonsCommand) -> Result<ExitCode, Failure> {
    match command {
        AddonsCommand::List { format } => list(config, *format),
        AddonsCommand::Info { addon } => info(config, addon),
    }
}

fn list(config: &Config, format: Format) -> Result<ExitCode, Failure> {
    require_root()?;
    let list = block_on(async {
        let manager = manager(config, super::admin_client(config)?)?;
        manager.list().await.context("list the addons")
    })??;
    match format {
        Format::Json => output::say(&serde_json::to_string_pretty(&list).context("write JSON")?),
        Format::Yaml => output::write(&serde_saphyr::to_string(&list).context("write YAML")?),
        Format::Short => {
            let width = list.iter().map(|addon| addon.name.len()).max().unwrap_or(0);
            for addon in &list {
                let state = match addon.state {
                    State::Enabled => "enabled",
                    State::Disabled => "disabled",
                    State::Unhealthy => "unhealthy",
                };
                output::say(&format!("{:width$}  {state:9}  {}", addon.name, addon.description));
                for reason in &addon.reasons {
                    output::say(&format!("{:width$}  {reason}", ""));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn info(config: &Config, name: &str) -> Result<ExitCode, Failure> {
    let catalog = catalog(config)?;
    let addon = catalog.get(name).map_err(usage)?;
    output::say(&format!("{} {}\n{}", addon.name, addon.version, addon.description));
    if !addon.requires.is_empty() {
        output::say(&format!("requires: {}", addon.requires.join(", ")));
    }
    for argument in &addon.arguments {
        output::say(&format!("  {} (default {}): {}", argument.name, argument.default, argument.description));
    }
    Ok(ExitCode::SUCCESS)
}

/// A wrong name or argument is wrong usage, everything else a failure.
fn usage(error: Error) -> Failure {
    match error {
        Error::Unknown { .. } | Error::Argument { .. } => Failure::Usage(error.to_string()),
        other => Failure::Failed(other.into()),
    }
}
