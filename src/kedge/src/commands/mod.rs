//! One module per command. Each reads top to bottom as what the command does; the parts it uses are in
//! the modules beside this one.

pub(crate) mod addons;
pub(crate) mod authority;
mod before_upgrade;
mod certs;
mod change;
pub(crate) mod cluster;
pub(crate) mod config;
mod encryption;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod install;
pub(crate) mod join;
pub(crate) mod kubectl;
pub(crate) mod others;
pub(crate) mod recover;
pub(crate) mod reset;
pub(crate) mod restore;
pub(crate) mod rollback;
pub(crate) mod run;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod take_down;
pub(crate) mod uninstall;
pub(crate) mod version;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use crate::cli::{self, Command, Format, SnapshotCommand};
use crate::config::Config;
use crate::failure::{Failure, Remedied};
use crate::{output, preflight, reference};

/// Refuse before anything happens when the caller is not root.
fn require_root() -> Result<(), Failure> {
    match preflight::root() {
        None => Ok(()),
        Some(problem) => Err(Remedied::new(problem.what, problem.remedy).into()),
    }
}

/// Ask on the terminal; where nobody can answer, only `--yes` says yes.
fn confirm(question: &str, yes: bool) -> Result<bool, Failure> {
    use std::io::{BufRead as _, IsTerminal as _};
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("nobody can be asked here, and nothing was changed", "say --yes"));
    }
    output::write(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Data for people (`text`) or programs.
fn print(format: Format, short: &str, value: &impl serde::Serialize) -> anyhow::Result<()> {
    match format {
        Format::Short => output::write(short),
        Format::Json => output::say(&serde_json::to_string_pretty(value).context("write JSON")?),
        Format::Yaml => output::write(&serde_saphyr::to_string(value).context("write YAML")?),
    }
    Ok(())
}

/// Do what was typed.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<ExitCode, Failure> {
    let cli = match cli::parse(arguments) {
        Ok(cli) => cli,
        Err(code) => return Ok(code),
    };
    let given = cli.global.settings();
    if let Some(file) = &cli.global.config
        && !file.exists()
        && !matches!(cli.command, Command::Install(_) | Command::Uninstall(_) | Command::Join(_))
    {
        let what = format!("--config {}: there is no such file", file.display());
        return Err(Failure::usage(what, "write it, or leave --config out"));
    }
    let load =
        || Config::load(cli.global.config.as_deref(), &given).map_err(|faults| Failure::Usage(faults.into()));
    // For what starts the node, ends it, or takes its network away.
    let load_to_act = || {
        let config = load()?;
        take_down::same_network(&config)?;
        Ok::<_, Failure>(config)
    };
    match cli.command {
        Command::Install(args) => install::run(&load_to_act()?, &given, &args),
        Command::BeforeUpgrade(args) => before_upgrade::run(&load()?, &args),
        Command::Rollback(args) => rollback::run(&load_to_act()?, &args),
        Command::Uninstall(args) => uninstall::run(&load_to_act()?, &args),
        Command::Start(args) => start::run(&load_to_act()?, Duration::from_secs(args.timeout)),
        Command::Stop(_) => stop::run(&load()?),
        Command::Status(args) => status::run(&load()?, &args),
        Command::Run(args) => run::run(load()?, &args),
        Command::Inspect(args) => inspect::run(&load()?, &args),
        Command::Reset(args) => reset::run(&load_to_act()?, &args),
        Command::Config(args) => config::run(&load()?, &args),
        Command::Kubectl(args) => kubectl::run(&load()?, args.arguments),
        Command::Images(command) => images::run(&load()?, command),
        Command::AddNode(args) => cluster::add_node(&load()?, &args),
        Command::Token(command) => cluster::token(&load()?, &command),
        Command::Join(args) => join::join(&load_to_act()?, &given, &args),
        Command::Leave(args) => join::leave(&load_to_act()?, &args),
        Command::RemoveNode(args) => cluster::remove_node(&load()?, &args),
        Command::Snapshot(command) => match command {
            SnapshotCommand::Restore(args) => restore::run(&load_to_act()?, &given, &args),
            command => snapshot::run(&load()?, &command),
        },
        Command::Recover(args) => recover::run(&load_to_act()?, &given, &args),
        Command::Certs(command) => certs::run(&load()?, &command),
        Command::SecretsEncryption(command) => encryption::run(&load()?, &command),
        Command::Enable(args) => addons::enable(&load()?, &args),
        Command::Disable(args) => addons::disable(&load()?, &args.addons),
        Command::Addons(command) => addons::run(&load()?, &command),
        Command::Version(args) => {
            version::run(args.printed.format)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::command(), "kedge", &mut script);
            output::write(&String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => {
            reference::write_man(&cli::command(), &dir)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Reference { dir } => {
            reference::write(&cli::command(), &dir)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Dns(args) => crate::dns::run(*args),
        Command::Metrics(args) => crate::metrics::run(args),
        Command::Storage(args) => crate::storage::run(args),
        Command::Pause => Ok(crate::pause::run()),
        Command::Hello { version } => Ok(crate::hello::run(version)),
    }
}
