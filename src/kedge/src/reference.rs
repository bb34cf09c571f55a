//! Manual pages, and the reference in docs/reference: both made from the same definitions that parse the
//! command line and the configuration. A test compares the files with what this makes.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::{Arg, ArgAction, Command};

use crate::config::settings::SETTINGS;

/// The files of docs/reference with their content.
pub(crate) fn files(command: &Command) -> [(&'static str, String); 2] {
    [("cli.md", commands(command)), ("config.md", configuration())]
}

/// # Errors
/// When a file cannot be written.
pub(crate) fn write(command: &Command, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    for (name, text) in files(command) {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// One page for each command: kedge.1, kedge-install.1, kedge-snapshot-save.1.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write_man(command: &Command, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    clap_mangen::generate_to(command, dir).with_context(|| format!("write pages into {}", dir.display()))
}

fn commands(command: &Command) -> String {
    let mut command = command.clone();
    command.build();
    let mut text = String::from(
        "# Commands\n\n<!-- Made by `kedge reference docs/reference`; do not edit. -->\n\n\
         Exit codes: 0 done, 1 failed (or: not ready, not well), 2 wrong usage or configuration.\n\n\
         Data goes to standard output, progress and errors to standard error. `--output` takes `text` (or \
         `short`; with `add-node` that is less), `json` or `yaml`. Colour follows `NO_COLOR`, `CLICOLOR` and `CLICOLOR_FORCE`.\n\n\
         What is about the whole cluster is typed on a control-plane node, and refused on a worker: `add-node`, `token`, \
         `remove-node`, `kubectl`, `config` (not `config show`), `enable`, `disable`, `addons list`, `snapshot save` and \
         `restore`, `recover`, `secrets-encryption`, `certs rotate-ca`.\n\n\
         ## Options of every command\n\n\
         The settings in [config.md](config.md) (`--help` lists them, `-h` does not), and:\n\n",
    );
    let setting = |arg: &&Arg| SETTINGS.iter().any(|setting| arg.get_id() == setting.key);
    for arg in command.get_arguments().filter(|arg| arg.is_global_set() && !setting(arg)) {
        let _ = writeln!(text, "- `{}`: {}{}", shown(arg), help(arg), notes(arg));
    }
    describe(&command, &mut text);
    text
}

fn describe(command: &Command, text: &mut String) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        let name = sub.get_bin_name().unwrap_or(sub.get_name());
        let _ = write!(text, "\n## {name}\n\n{}.\n", about(sub));
        let own: Vec<&Arg> = sub
            .get_arguments()
            .filter(|arg| !arg.is_hide_set() && !arg.is_global_set() && arg.get_id() != "help")
            .collect();
        let has_commands = sub.get_subcommands().any(|sub| !sub.is_hide_set() && sub.get_name() != "help");
        let _ = write!(
            text,
            "\n```\n{}\n```\n",
            usage(name, &own, has_commands.then(|| sub.is_subcommand_required_set()))
        );
        if !own.is_empty() {
            text.push('\n');
        }
        for arg in own {
            let _ = writeln!(text, "- `{}`: {}{}", shown(arg), help(arg), notes(arg));
        }
        describe(sub, text);
    }
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn help(arg: &Arg) -> String {
    arg.get_help().map(ToString::to_string).unwrap_or_default()
}

fn value(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    names.first().map_or_else(|| arg.get_id().to_string().to_uppercase(), ToString::to_string)
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// `-o, --output FORMAT` or `FILE`.
fn shown(arg: &Arg) -> String {
    let Some(long) = arg.get_long() else { return value(arg) };
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let value = if takes_value(arg) { format!(" {}", value(arg)) } else { String::new() };
    format!("{short}--{long}{value}")
}

fn notes(arg: &Arg) -> String {
    let mut notes = Vec::new();
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if takes_value(arg) && !values.is_empty() {
        notes.push(format!("one of {}", values.join(", ")));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if takes_value(arg) && !defaults.is_empty() && !arg.is_hide_default_value_set() {
        notes.push(format!("default `{}`", defaults.join(" ")));
    }
    if let Some(aliases) = arg.get_visible_aliases().filter(|aliases| !aliases.is_empty()) {
        let aliases: Vec<String> = aliases.iter().map(|alias| format!("`--{alias}`")).collect();
        notes.push(format!("also {}", aliases.join(", ")));
    }
    if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) }
}

/// `commands`: there are some, and one is required.
fn usage(name: &str, own: &[&Arg], commands: Option<bool>) -> String {
    let mut line = name.to_owned();
    if own.iter().any(|arg| arg.get_long().is_some()) {
        line.push_str(" [OPTIONS]");
    }
    for arg in own.iter().filter(|arg| arg.get_long().is_none()) {
        let many = if matches!(arg.get_action(), ArgAction::Append) { "..." } else { "" };
        let value = value(arg);
        let _ = if arg.is_required_set() {
            write!(line, " {value}{many}")
        } else {
            write!(line, " [{value}]{many}")
        };
    }
    match commands {
        Some(true) => line.push_str(" COMMAND"),
        Some(false) => line.push_str(" [COMMAND]"),
        None => {}
    }
    line
}

fn configuration() -> String {
    let mut text = String::from(
        "# Configuration\n\n<!-- Made by `kedge reference docs/reference`; do not edit. -->\n\n\
         Every key of `/etc/kedge/config.yaml` is a flag of every command and an environment variable. A flag wins \
         over the variable, the variable over drop-ins (`/etc/kedge/config.yaml.d/*.yaml` and `*.yml`, a later name over an \
         earlier one), drop-ins over the file. `kedge config show` prints what counts and where it was said. A key \
         that nobody knows is refused, with the nearest one that is known.\n\n\
         | Key | Environment | Value | Default | Meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for setting in &SETTINGS {
        let list = if setting.list.is_some() { "; a YAML list too" } else { "" };
        let first = if setting.first_start { " (counts when a node starts for the first time)" } else { "" };
        let _ = writeln!(
            text,
            "| `{}` | `{}` | {}{list} | {} | {}{first} |",
            setting.key,
            setting.env,
            setting.value.replace('|', " or "),
            setting.default,
            setting.help
        );
    }
    text.push_str(
        "\nFurther variables: `KEDGE_CONFIG` (the file), `KEDGE_LOG` (what is logged, e.g. \
         `info,kedge_kubelet=debug`; a release tells nothing finer than `debug`), `KEDGE_LOG_FORMAT=json`.\n\n\
         ## A whole node from one file\n\n\
         A new node reads what it is to become from the same file at its first start: it joins the cluster that \
         `join` names, or begins one with the `addons` named. Where `join` cannot be reached yet, it tries again \
         until it can; `kedge status` says what it waits for. Later starts ignore these keys. \
         `kedge leave` and `kedge reset --force` make the node a new one; the `join` and the `virtual-address` that the \
         files had then are of the cluster that it left, and are passed over until they are changed or the node joins \
         again.\n\n\
         With cloud-init, the first node:\n\n\
         ```yaml\n#cloud-config\nwrite_files:\n- path: /etc/kedge/config.yaml\n  permissions: \"0600\"\n  content: |\n    \
         node-labels: {disk: ssd}\n    addons: [dns]\nruncmd:\n- [kedge, install]\n```\n\n\
         Make a token that several nodes may use (`kedge add-node --reusable --ttl 1d`), and a worker:\n\n\
         ```yaml\n#cloud-config\nwrite_files:\n- path: /etc/kedge/config.yaml\n  permissions: \"0600\"\n  content: |\n    \
         join: 192.0.2.10:25000/TOKEN/CA-HASH\n    role: worker\n    node-labels: {zone: attic}\n    \
         node-taints: [\"edge=yes:NoSchedule\"]\n    mirrors: {docker.io: \"https://mirror.example:5000\"}\nruncmd:\n- [kedge, install]\n```\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Command {
        Command::new("kedge").subcommand(
            Command::new("save")
                .about("Save one")
                .arg(Arg::new("file").value_name("FILE").required(true).help("Where to"))
                .arg(
                    Arg::new("output")
                        .long("output")
                        .short('o')
                        .visible_alias("format")
                        .value_name("FORMAT")
                        .default_value("text")
                        .help("How to print it"),
                )
                .arg(Arg::new("yes").long("yes").action(ArgAction::SetTrue).help("Do not ask")),
        )
    }

    #[test]
    fn a_command_with_its_arguments() {
        let [(_, text), _] = files(&example());
        for line in [
            "## kedge save",
            "kedge save [OPTIONS] FILE",
            "- `FILE`: Where to",
            "- `-o, --output FORMAT`: How to print it (default `text`; also `--format`)",
            "- `--yes`: Do not ask",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn every_setting_is_in_the_reference() {
        let text = configuration();
        for setting in &SETTINGS {
            assert!(text.contains(&format!("| `{}` |", setting.key)), "{}", setting.key);
        }
    }

    #[test]
    fn pages_for_all_commands() {
        let dir = tempfile::tempdir().unwrap();
        write_man(&example(), dir.path()).unwrap();
        let page = fs::read_to_string(dir.path().join("kedge-save.1")).unwrap();
        assert!(page.contains("Save one") && page.contains("Do not ask"), "{page}");
        assert!(dir.path().join("kedge.1").exists());
    }
}
