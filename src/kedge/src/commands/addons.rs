//! `kedge enable`, `disable`, `addons`: what runs on the cluster beside the users' own things.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_addons::{Catalog, Cluster, Error, Manager, State};

use super::{block_on, require_root};
use crate::cli::{AddonsCommand, EnableArgs, Failure, Format};
use crate::config::Config;
use crate::output::{self, Step};

/// The manager of this node's cluster, with a client for its API.
pub(crate) fn manager(config: &Config, client: kube::Client) -> anyhow::Result<Manager> {
    Ok(Manager::new(client, catalog(config)?, cluster(config)))
}

/// What manifests may know.
fn cluster(config: &Config) -> Cluster {
    Cluster {
        version: kedge_base::VERSION.to_owned(),
        cluster_dns: config.cluster_dns.to_string(),
        cluster_domain: config.cluster_domain.clone(),
        pod_cidr: config.pod_cidr.to_string(),
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

/// Refuses names and arguments that no addon has, before anything is changed.
pub(crate) fn known(config: &Config, words: &[String]) -> Result<(), Failure> {
    parse(&catalog(config)?, words).map(drop)
}

/// `NAME[:ARGUMENTS]` each, with the arguments split.
fn parse(catalog: &Catalog, words: &[String]) -> Result<Vec<(String, BTreeMap<String, String>)>, Failure> {
    words
        .iter()
        .map(|word| {
            let (name, arguments) = word.split_once(':').unwrap_or((word, ""));
            let addon = catalog.get(name).map_err(usage)?;
            let given = addon.split_arguments(arguments).map_err(usage)?;
            addon.values(&given).map_err(usage)?;
            Ok((name.to_owned(), given))
        })
        .collect()
}

/// Enables the addons that the configuration names, one after another, from inside the node.
///
/// # Errors
/// The first that is unknown or does not become healthy.
pub(crate) async fn enable_all(
    manager: &Manager,
    words: &[String],
    limit: Duration,
    progress: &mut (dyn FnMut(&str) + Send),
) -> anyhow::Result<()> {
    let wanted = parse(manager.catalog(), words).map_err(|failure| match failure {
        Failure::Usage(text) => anyhow::anyhow!(text),
        Failure::Failed(error) => error,
    })?;
    for (name, given) in wanted {
        if manager.is_enabled(&name).await.context("ask for the addons")? {
            continue;
        }
        manager
            .enable(&name, &given, limit, &mut |text| progress(&format!("enabling {name}: {text}")))
            .await
            .with_context(|| format!("enable {name}"))?;
    }
    Ok(())
}

/// Enable each in the order given; the first that fails ends it.
pub(crate) fn enable(config: &Config, args: &EnableArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    block_on(async {
        let manager = manager(config, super::admin_client(config)?)?;
        // Everything is parsed before anything is applied.
        for (name, given) in parse(manager.catalog(), &args.addons)? {
            enable_with(&manager, &name, &given, Duration::from_secs(args.timeout)).await?;
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
        output::confirm(&notes);
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
        AddonsCommand::Info { addon, format } => info(config, addon, *format),
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

fn info(config: &Config, name: &str, format: Format) -> Result<ExitCode, Failure> {
    let catalog = catalog(config)?;
    let addon = catalog.get(name).map_err(usage)?;
    let mut short = format!("{} {}\n{}\n", addon.name, addon.version, addon.description);
    if !addon.requires.is_empty() {
        short.push_str(&format!("requires: {}\n", addon.requires.join(", ")));
    }
    for argument in &addon.arguments {
        short.push_str(&format!(
            "  {} (default {}): {}\n",
            argument.name, argument.default, argument.description
        ));
    }
    let arguments: Vec<serde_json::Value> = addon
        .arguments
        .iter()
        .map(|argument| {
            serde_json::json!({
                "name": argument.name,
                "default": argument.default.to_string(),
                "description": argument.description,
            })
        })
        .collect();
    let value = serde_json::json!({
        "name": addon.name,
        "version": addon.version,
        "description": addon.description,
        "requires": addon.requires,
        "arguments": arguments,
    });
    super::print(format, &short, &value)?;
    Ok(ExitCode::SUCCESS)
}

/// A wrong name or argument is wrong usage, everything else a failure.
fn usage(error: Error) -> Failure {
    match error {
        Error::Unknown { .. } | Error::Argument { .. } => Failure::Usage(error.to_string()),
        other => Failure::Failed(other.into()),
    }
}
