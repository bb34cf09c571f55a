//! The flags of every command, made from the table of settings.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use crate::config::Settings;
use crate::config::settings::{Origin, SETTINGS};

/// The settings of [`config::settings::SETTINGS`](crate::config) as flags of every command, and a few more.
/// The order of precedence is: flag, environment, drop-ins, configuration file, default.
#[derive(Debug, Clone, Default)]
pub(crate) struct GlobalArgs {
    pub(crate) config: Option<PathBuf>,
    pub(crate) quiet: bool,
    given: Settings,
}

impl GlobalArgs {
    /// The settings that were given, by their names in the configuration file.
    pub(crate) fn settings(&self) -> Settings {
        self.given.clone()
    }
}

impl Args for GlobalArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let heading = "Options of every command";
        let command = command.next_help_heading(heading).arg(
            Arg::new("config")
                .long("config")
                .global(true)
                .env("KEDGE_CONFIG")
                .hide_env(true)
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("The configuration file; its keys are these flags' names [default: /etc/kedge/config.yaml]"),
        );
        let command = command.arg(
            Arg::new("quiet")
                .long("quiet")
                .short('q')
                .global(true)
                .action(ArgAction::SetTrue)
                .help("Print data and errors only"),
        );
        let command = SETTINGS.iter().fold(command, |command, setting| {
            command.arg(
                Arg::new(setting.key)
                    .long(setting.key)
                    .global(true)
                    .env(setting.env)
                    .hide_env(true)
                    // Many: with -h the command's own would be lost among them.
                    .hide_short_help(true)
                    .value_name(setting.value)
                    .help(format!("{} [default: {}]", setting.help, setting.default)),
            )
        });
        command.next_help_heading(None::<&'static str>)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GlobalArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Settings::default();
        for setting in &SETTINGS {
            if let Some(value) = matches.get_one::<String>(setting.key) {
                let origin = match matches.value_source(setting.key) {
                    Some(ValueSource::EnvVariable) => Origin::Environment,
                    _ => Origin::Flag,
                };
                given.insert_from(setting.key, value.clone(), origin);
            }
        }
        Ok(Self {
            config: matches.get_one::<PathBuf>("config").cloned(),
            quiet: matches.get_flag("quiet"),
            given,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn flags_and_variables_are_told_apart() {
        let matches = super::super::Cli::command().get_matches_from(["kedge", "status", "--node-name", "n7"]);
        let global = GlobalArgs::from_arg_matches(&matches).unwrap();
        assert_eq!(global.given.origin("node-name"), Some(&Origin::Flag));
        assert_eq!(global.given.origin("registries"), None);
    }
}
