//! `kedge enable`, `disable`, `addons`: what runs on the cluster beside the users' own things.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_addons::{Added, Listed, Manager, Repositories, Repository, State};
use serde_json::json;

use super::{print, require_root};
use crate::addons::{catalog, flannel, manager, parse, repositories, usage, word};
use crate::admin::{self, block_on};
use crate::cli::{AddonsCommand, EnableArgs, Format, RepoCommand};
use crate::config::Config;
use crate::failure::Failure;
use crate::output::{self, Step};

/// How long an upgraded addon may take until it is healthy.
const UPGRADE_LIMIT: Duration = Duration::from_secs(300);
/// How long nodes may take to give up their pod network.
const DISABLE_LIMIT: Duration = Duration::from_secs(60);

/// Enable each in the order given; the first that fails ends it.
pub(crate) fn enable(config: &Config, args: &EnableArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    block_on(async {
        let manager = manager(config, admin::client(config)?)?;
        // Everything is looked at before anything is applied.
        let wanted = parse(manager.catalog(), &args.addons)?;
        manager.check(&wanted).await.map_err(usage)?;
        for (name, given) in &wanted {
            enable_with(&manager, name, given, Duration::from_secs(args.timeout)).await?;
        }
        let names: Vec<&String> = wanted.iter().map(|(name, _)| name).collect();
        output::report("enabled", &json!({ "addons": names }));
        Ok(ExitCode::SUCCESS)
    })?
}

/// Enable one addon with its defaults, unless it is enabled already.
pub(crate) fn enable_one(config: &Config, name: &str, limit: Duration) -> Result<(), Failure> {
    block_on(async {
        let manager = manager(config, admin::client(config)?)?;
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
    let mut said = |text: &str| step.update(&format!("enabling {name}: {text}"));
    let result = if name == flannel::NAME {
        flannel::enable(manager, given, limit, &mut said).await
    } else {
        let result = manager.enable(name, given, limit, &mut said).await;
        result.map_err(|error| Failure::Failed(anyhow::Error::from(error).context(format!("enable {name}"))))
    };
    if let Err(failure) = result {
        step.abandon();
        return Err(failure);
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
        let manager = manager(config, admin::client(config)?)?;
        // Everything is looked at before anything is removed.
        let others: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| *name != flannel::NAME).collect();
        manager.check_removal(&others).await.map_err(usage)?;
        if others.len() < names.len() {
            flannel::check_removal(&manager).await?;
        }
        let mut kept = Vec::new();
        for name in names {
            let mut step = Step::begin(&format!("disabling {name}"));
            let mut said = |text: &str| step.update(&format!("disabling {name}: {text}"));
            let result = if name == flannel::NAME {
                flannel::disable(&manager, DISABLE_LIMIT, &mut said).await.map(|()| Vec::new())
            } else {
                manager.disable(name, &mut said).await.map_err(usage)
            };
            match result {
                Ok(remarks) => {
                    step.done(&format!("{name} is disabled"));
                    remarks.iter().for_each(|remark| output::confirm(remark));
                    kept.extend(remarks);
                }
                Err(failure) => {
                    step.abandon();
                    return Err(failure);
                }
            }
        }
        output::report("disabled", &json!({ "addons": names, "kept": kept }));
        Ok(ExitCode::SUCCESS)
    })?
}

pub(crate) fn run(config: &Config, command: &AddonsCommand) -> Result<ExitCode, Failure> {
    match command {
        AddonsCommand::List { printed } => list(config, printed.format),
        AddonsCommand::Info { addon, printed } => info(config, addon, printed.format),
        AddonsCommand::Repo(command) => repo(config, command),
    }
}

/// The cluster's addons with their health, for `kedge status`: `None` when the cluster does not say.
pub(crate) fn enabled(config: &Config, limit: Duration) -> Option<Vec<Listed>> {
    let list = block_on(async {
        let manager = manager(config, admin::client(config)?)?;
        anyhow::Ok(tokio::time::timeout(limit, listed(&manager)).await??)
    });
    let list = list.ok()?.ok()?;
    Some(list.into_iter().filter(|addon| addon.state != State::Disabled).collect())
}

/// All addons with their states.
async fn listed(manager: &Manager) -> anyhow::Result<Vec<Listed>> {
    let mut list = manager.list().await?;
    flannel::describe(manager, &mut list).await?;
    Ok(list)
}

fn list(config: &Config, format: Format) -> Result<ExitCode, Failure> {
    require_root()?;
    let list = block_on(async {
        let manager = manager(config, admin::client(config)?)?;
        listed(&manager).await.context("list the addons")
    })??;
    let width = list.iter().map(|addon| addon.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for addon in &list {
        let state = word(addon.state);
        text.push_str(&format!("{:width$}  {state:9}  {}\n", addon.name, addon.description));
        for reason in &addon.reasons {
            text.push_str(&format!("{:width$}  {reason}\n", ""));
        }
        if let Some(remedy) = &addon.remedy {
            text.push_str(&format!("{:width$}  remedy: {remedy}\n", ""));
        }
    }
    print(format, &text, &list)?;
    Ok(ExitCode::SUCCESS)
}

/// A default that is nothing is written in several ways.
fn in_words(default: &str) -> &str {
    if matches!(default, "null" | "[]" | "{}" | "\"\"" | "") { "none" } else { default }
}

fn info(config: &Config, name: &str, format: Format) -> Result<ExitCode, Failure> {
    let catalog = catalog(config)?;
    let addon = catalog.get(name).map_err(usage)?;
    let mut text = format!("{} {}\n{}\n", addon.name, addon.version, addon.description);
    for (title, list) in [("requires", &addon.requires), ("architectures", &addon.architectures)] {
        if !list.is_empty() {
            text.push_str(&format!("{title}: {}\n", list.join(", ")));
        }
    }
    if !addon.arguments.is_empty() {
        text.push_str("arguments:\n");
    }
    for argument in &addon.arguments {
        let range = match (argument.min, argument.max) {
            (Some(min), Some(max)) => format!(" from {min} to {max}"),
            _ if argument.values.is_empty() => String::new(),
            _ => format!(" [{}]", argument.values.join("|")),
        };
        text.push_str(&format!(
            "  {} {}{range} (default {}): {}\n",
            argument.name,
            argument.kind.as_str(),
            in_words(&argument.default.to_string()),
            argument.description
        ));
    }
    if !addon.health.is_empty() {
        text.push_str("healthy when, beside its own objects:\n");
    }
    for check in &addon.health {
        text.push_str(&format!("  {check}\n"));
    }
    if !addon.notes.trim().is_empty() {
        text.push_str(&format!("{}\n", addon.notes.trim()));
    }
    print(format, &text, addon)?;
    Ok(ExitCode::SUCCESS)
}

fn repo(config: &Config, command: &RepoCommand) -> Result<ExitCode, Failure> {
    let repositories = repositories(config);
    if let RepoCommand::List { printed } = command {
        let list = repositories.list().context("list the repositories")?;
        let line = |own: &Repository| format!("{}  {}  {}\n", own.name, own.source, own.addons.join(", "));
        print(printed.format, &list.iter().map(line).collect::<String>(), &list)?;
        return Ok(ExitCode::SUCCESS);
    }
    require_root()?;
    match command {
        RepoCommand::Add { source, name, branch, .. } => {
            let added = Added { source, name: name.as_deref(), reference: branch.as_deref() };
            let step = Step::begin(&format!("adding {source}"));
            match repositories.add(added, &catalog(config)?) {
                Ok(made) => {
                    step.done(&format!("{} is added: {}", made.name, made.addons.join(", ")));
                    output::report("added", &json!({ "name": made.name, "addons": made.addons }));
                }
                Err(error) => {
                    step.abandon();
                    return Err(Failure::Failed(error.into()));
                }
            }
        }
        RepoCommand::Remove { name, .. } => {
            let gone = repositories.remove(name).map_err(usage)?;
            output::confirm(&format!("{name} is removed"));
            tell_enabled(config, &gone);
            output::report("removed", &json!({ "name": name }));
        }
        RepoCommand::Update { name, .. } => {
            let names = update(config, &repositories, name.as_deref())?;
            output::report("updated", &json!({ "names": names }));
        }
        RepoCommand::List { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Addons that go on without their repository are worth a word.
fn tell_enabled(config: &Config, gone: &Repository) {
    let enabled = enabled(config, Duration::from_secs(5)).unwrap_or_default();
    for addon in enabled.iter().filter(|addon| gone.addons.contains(&addon.name)) {
        output::confirm(&format!("{} stays enabled; kedge disable {} removes it", addon.name, addon.name));
    }
}

fn update(config: &Config, repositories: &Repositories, name: Option<&str>) -> Result<Vec<String>, Failure> {
    let names: Vec<String> = match name {
        Some(name) => vec![name.to_owned()],
        None => {
            repositories.list().context("list the repositories")?.into_iter().map(|own| own.name).collect()
        }
    };
    for name in &names {
        let step = Step::begin(&format!("updating {name}"));
        match repositories.update(name, &catalog(config)?) {
            Ok(made) => step.done(&format!("{name} is up to date: {}", made.addons.join(", "))),
            Err(error) => {
                step.abandon();
                return Err(Failure::Failed(anyhow::Error::from(error).context(format!("update {name}"))));
            }
        }
    }
    if !config.kubeconfig().exists() {
        // A worker, or a node that was never started: the leader's next start upgrades.
        return Ok(names);
    }
    block_on(async {
        let manager = manager(config, admin::client(config)?)?;
        let step = Step::begin("upgrading enabled addons");
        let upgraded = manager.upgrade(UPGRADE_LIMIT).await;
        step.abandon();
        for (addon, result) in upgraded.context("upgrade the enabled addons")? {
            result.with_context(|| format!("upgrade {addon}"))?;
            output::confirm(&format!("{addon} is upgraded"));
        }
        Ok(names)
    })?
}
