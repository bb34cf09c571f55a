//! What can be typed. Parsing only: each command's work is in `commands`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

mod addons;
mod cluster;
mod global;
mod keys;
mod node;

use crate::output::{self, Voice};

pub(crate) use addons::{AddonsCommand, DisableArgs, EnableArgs, RepoCommand};
pub(crate) use cluster::{
    AddNodeArgs, CertsCommand, InvitationFormat, JoinArgs, LeaveArgs, RecoverArgs, RemoveNodeArgs,
    RestoreArgs, SnapshotCommand, TokenCommand,
};
pub(crate) use global::GlobalArgs;
pub(crate) use keys::{EncryptionCommand, RotateCaArgs};
pub(crate) use node::{
    BeforeUpgradeArgs, ConfigArgs, ConfigCommand, InspectArgs, InstallArgs, KubectlArgs, ResetArgs,
    RollbackArgs, RunArgs, StatusArgs, StopArgs, UninstallArgs, WaitArgs,
};

/// Kubernetes for edge boards, laptops and small clusters, in one binary.
#[derive(Debug, Parser)]
#[command(name = "kedge", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make this machine a node: check it, install the service, start it, wait until it is Ready
    Install(InstallArgs),
    /// Run the version again that was installed before the last upgrade
    Rollback(RollbackArgs),
    /// Remove Kedge and everything it made from this machine
    Uninstall(UninstallArgs),
    /// Make this a fresh single node again, with the same configuration; the cluster's data is lost
    Reset(ResetArgs),
    /// Start Kedge
    Start(WaitArgs),
    /// Stop Kedge; containers keep running
    Stop(StopArgs),
    /// Show what Kedge is doing
    Status(StatusArgs),
    /// Run the node in the foreground (what the service does)
    Run(RunArgs),
    /// Look for what keeps this node from working, with a remedy each; exit code 1 when something fails
    Inspect(InspectArgs),
    /// Print a kubeconfig for this cluster's administrator, or show this node's configuration
    Config(ConfigArgs),
    /// Run kubectl with this cluster's kubeconfig
    #[command(disable_help_flag = true)]
    Kubectl(KubectlArgs),
    /// Images on this node
    #[command(subcommand)]
    Images(ImagesCommand),
    /// Print what to type on another machine to join it to this cluster
    AddNode(AddNodeArgs),
    /// Tokens that machines may join with
    #[command(subcommand)]
    Token(TokenCommand),
    /// Join this machine to a cluster; its own single-node cluster is replaced
    Join(JoinArgs),
    /// Leave the cluster and become a single node again
    Leave(LeaveArgs),
    /// Take another node off the cluster, dead or alive
    RemoveNode(RemoveNodeArgs),
    /// Copies of the whole cluster: save, list, verify, restore
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Rebuild the cluster from this node's copy when most control-plane nodes are lost for good
    Recover(RecoverArgs),
    /// This node's certificates
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Secrets (and more) encrypted where they are stored
    #[command(subcommand)]
    SecretsEncryption(EncryptionCommand),
    /// Enable addons, and wait until they are healthy
    Enable(EnableArgs),
    /// Disable addons: remove exactly what enabling them made
    Disable(DisableArgs),
    /// Addons of this cluster
    #[command(subcommand)]
    Addons(AddonsCommand),
    /// Print the version
    Version(VersionArgs),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a folder
    Man {
        /// The folder
        dir: PathBuf,
    },
    /// Write the reference of commands and configuration into a folder
    #[command(hide = true)]
    Reference {
        /// The folder
        dir: PathBuf,
    },
    /// Save the cluster before another version takes this one's place (what packages ask)
    #[command(hide = true)]
    BeforeUpgrade(BeforeUpgradeArgs),
    /// Hold a pod's namespaces (what the pause image runs)
    #[command(hide = true)]
    Pause,
    /// Answer the cluster's DNS questions (what the dns addon runs)
    #[command(hide = true)]
    Dns(Box<crate::dns::DnsArgs>),
    /// Serve what nodes and pods use (what the metrics addon runs)
    #[command(hide = true)]
    Metrics(crate::metrics::MetricsArgs),
    /// Make volumes on this node (what the hostpath-storage addon runs)
    #[command(hide = true)]
    Storage(crate::storage::StorageArgs),
    /// Answer HTTP requests with version, pod and node (what the hello image runs)
    #[command(hide = true)]
    Hello {
        /// The version to answer with; HELLO_VERSION otherwise
        version: Option<String>,
    },
}

/// How a command that does something says what it did.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Reported {
    /// How to say what was done: one object with "result", or with "error" and "remedy"
    #[arg(long = "output", short = 'o', value_name = "FORMAT", value_enum, default_value_t = Format::Short)]
    pub(crate) output: Format,
}

/// How a command that shows something prints it.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Printed {
    /// How to print it
    #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
    pub(crate) format: Format,
}

/// Whether a command asks before it does what cannot be undone.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Asked {
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// How long a command waits for the node that it started.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct UntilReady {
    /// Seconds to wait until the node is Ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

impl UntilReady {
    pub(crate) fn limit(self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[value(name = "text", alias = "short")]
    Short,
    /// YAML
    Yaml,
    /// JSON
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Import images from tar archives (docker save, OCI layout; plain, gzip or zstd)
    Import {
        /// The archives
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        reported: Reported,
    },
    /// Write images of this node to one archive that import, ctr and docker load read
    Export {
        /// The archive; compressed when it ends with .gz or .tgz
        file: PathBuf,
        /// The images [default: all that have a tag]
        #[arg(value_name = "IMAGE")]
        names: Vec<String>,
        #[command(flatten)]
        reported: Reported,
    },
    /// List the images that pods on this node can use
    List {
        #[command(flatten)]
        printed: Printed,
    },
    /// Remove images that no container of this node uses; pinned ones and Kedge's own stay
    Prune {
        #[command(flatten)]
        printed: Printed,
    },
    /// Write Kedge's own images to an archive: always the same bytes for the same binaries
    Build {
        /// The archive
        file: PathBuf,
        /// Binaries of Kedge, one for each architecture [default: this one]
        #[arg(long = "binary", value_name = "FILE")]
        binaries: Vec<PathBuf>,
        #[command(flatten)]
        reported: Reported,
    },
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    pub(crate) printed: Printed,
}

impl Command {
    /// In which format a command that does something says so; `None`: in sentences.
    pub(crate) fn report(&self) -> Option<Format> {
        let format = match self {
            Self::Install(args) => args.reported.output,
            Self::Rollback(args) => args.reported.output,
            Self::Uninstall(args) => args.reported.output,
            Self::Reset(args) => args.reported.output,
            Self::Start(args) => args.reported.output,
            Self::Stop(args) => args.reported.output,
            Self::Join(args) => args.reported.output,
            Self::Leave(args) => args.reported.output,
            Self::RemoveNode(args) => args.reported.output,
            Self::Recover(args) => args.reported.output,
            Self::Enable(args) => args.reported.output,
            Self::Disable(args) => args.reported.output,
            Self::Token(TokenCommand::Revoke { reported, .. })
            | Self::Images(
                ImagesCommand::Import { reported, .. }
                | ImagesCommand::Export { reported, .. }
                | ImagesCommand::Build { reported, .. },
            )
            | Self::Addons(AddonsCommand::Repo(
                RepoCommand::Add { reported, .. }
                | RepoCommand::Remove { reported, .. }
                | RepoCommand::Update { reported, .. },
            )) => reported.output,
            Self::Certs(CertsCommand::RotateCa(args)) => args.reported.output,
            Self::SecretsEncryption(
                EncryptionCommand::Enable { waiting, .. }
                | EncryptionCommand::Rotate { waiting }
                | EncryptionCommand::Disable { waiting },
            ) => waiting.reported.output,
            Self::Snapshot(SnapshotCommand::Restore(args)) => args.reported.output,
            Self::Snapshot(SnapshotCommand::Save { printed, .. })
            | Self::Images(ImagesCommand::Prune { printed })
            | Self::Certs(CertsCommand::Rotate { printed }) => printed.format,
            _ => return None,
        };
        (format != Format::Short).then_some(format)
    }
}

/// All that can be typed, for completion and documents.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Parse a command line.
///
/// # Errors
/// The exit code, when it was wrong or asked for help or the version; both were printed then.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Cli, ExitCode> {
    let arguments = without_pasted(arguments);
    let failures = asked_format(&arguments);
    let by_alias = arguments.iter().any(|word| {
        let word = word.to_string_lossy();
        word == "--format" || word.starts_with("--format=")
    });
    let parsed = Cli::try_parse_from(arguments);
    let (quiet, report) =
        parsed.as_ref().map(|cli| (cli.global.quiet, cli.command.report())).unwrap_or_default();
    output::speak_as(Voice { quiet, report, failures: failures.or(report) });
    parsed.map_err(|mut error| {
        in_typed_words(&mut error, by_alias);
        // clap's own: help and version go to standard output with 0, mistakes to standard error with 2.
        if error.use_stderr() && failures.is_some() {
            let text = error.render().to_string();
            let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
            output::fail(text.trim().trim_start_matches("error: "), tip.or(Some("try --help")));
        } else {
            let _ = error.print();
        }
        if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
    })
}

/// `kedge add-node` prints whole lines; who types `sudo kedge join` first and pastes one has the words twice.
fn without_pasted(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if let Some(place) = arguments.iter().position(|word| word == "join" || word == "kubectl")
        && arguments[place] == "join"
    {
        let after = place + 1;
        let pasted = [["sudo", "kedge", "join"].as_slice(), &["kedge", "join"]];
        let twice = |words: &&[&str]| {
            arguments.len() >= after + words.len()
                && arguments[after..].iter().zip(*words).all(|(a, b)| a == b)
        };
        let length = pasted.into_iter().find(twice).map_or(0, <[&str]>::len);
        arguments.drain(after..after + length);
    }
    arguments
}

/// The format that a program asks for: errors have it too, also when nothing else of the line is right.
fn asked_format(arguments: &[OsString]) -> Option<Format> {
    let words: Vec<&str> = arguments.iter().skip(1).map(|word| word.to_str().unwrap_or_default()).collect();
    // What stands behind it is kubectl's.
    let words = words.split(|word| *word == "kubectl").next()?;
    let flags = ["--output", "--format", "-o"];
    let format = words.iter().enumerate().find_map(|(place, word)| {
        if flags.contains(word) {
            return words.get(place + 1).copied();
        }
        flags.iter().find_map(|flag| word.strip_prefix(flag)?.strip_prefix('='))
    })?;
    Format::from_str(format, false).ok().filter(|format| *format != Format::Short)
}

/// clap names a flag by its first name, whichever was typed, and suggests commands that it hides.
fn in_typed_words(error: &mut clap::Error, by_alias: bool) {
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && by_alias
        && let Some(rest) = flag.strip_prefix("--output")
    {
        let typed = format!("--format{rest}");
        error.insert(ContextKind::InvalidArg, ContextValue::String(typed));
    }
    if let Some(ContextValue::Strings(names)) = error.get(ContextKind::SuggestedSubcommand) {
        let all = Cli::command();
        let shown = |name: &String| all.find_subcommand(name).is_none_or(|command| !command.is_hide_set());
        let names: Vec<String> = names.iter().filter(|name| shown(name)).cloned().collect();
        if names.is_empty() {
            error.remove(ContextKind::SuggestedSubcommand);
        } else {
            error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(names));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_are_told_in_the_words_that_were_typed() {
        let said = |line: &str, by_alias| {
            let mut error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            in_typed_words(&mut error, by_alias);
            error.to_string()
        };
        assert!(said("kedge status --format xml", true).contains("'--format <FORMAT>'"));
        assert!(said("kedge status --output xml", false).contains("'--output <FORMAT>'"));
        let suggested = said("kedge stat", false);
        assert!(suggested.contains("status") && !suggested.contains("storage"), "{suggested}");
        assert!(!said("kedge storag", false).contains("storage"));
    }

    #[test]
    fn global_flags_stand_before_and_after_the_command() {
        for arguments in [["kedge", "--port", "7443", "status"], ["kedge", "status", "--port", "7443"]] {
            let cli = Cli::try_parse_from(arguments).unwrap();
            assert_eq!(cli.global.settings().get("port"), Some("7443"), "{arguments:?}");
        }
    }

    #[test]
    fn a_pasted_join_may_have_its_words_twice() {
        let string = "192.0.2.1:25000/t/h";
        let plain = format!("kedge join {string} --worker");
        for typed in ["kedge join", "kedge join kedge join", "kedge join sudo kedge join"] {
            let line = format!("{typed} {string} --worker");
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let words: Vec<String> =
                without_pasted(words).into_iter().map(|word| word.into_string().unwrap()).collect();
            assert_eq!(words.join(" "), plain);
        }
        let alone: Vec<OsString> = ["kedge", "join"].map(OsString::from).into();
        assert_eq!(without_pasted(alone.clone()), alone);
    }

    #[test]
    fn kubectl_gets_its_arguments_untouched() {
        let cli = Cli::try_parse_from([
            "kedge",
            "kubectl",
            "expose",
            "deploy/x",
            "--port=80",
            "-o",
            "yaml",
            "--help",
        ])
        .unwrap();
        let Command::Kubectl(args) = cli.command else { panic!("not kubectl") };
        assert_eq!(args.arguments, ["expose", "deploy/x", "--port=80", "-o", "yaml", "--help"]);
        assert_eq!(cli.global.settings().get("port"), None);
    }

    #[test]
    fn errors_have_the_format_that_is_asked_for() {
        for (line, expected) in [
            ("kedge status -o json", Some(Format::Json)),
            ("kedge enable --outptu x --output=yaml", Some(Format::Yaml)),
            ("kedge --format json no-such", Some(Format::Json)),
            ("kedge status -o text", None),
            ("kedge status", None),
            ("kedge kubectl get nodes -o json", None),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(asked_format(&words), expected, "{line}");
        }
    }

    #[test]
    fn commands_that_do_something_say_it_in_json() {
        for line in [
            "install",
            "uninstall",
            "reset",
            "start",
            "stop",
            "join 192.0.2.1:25000/x/y",
            "leave",
            "remove-node a",
            "recover",
            "enable dns",
            "disable dns",
            "token revoke a",
            "images import a.tar",
            "images export a.tar",
            "images prune",
            "snapshot save",
            "snapshot restore a",
            "certs rotate",
            "certs rotate-ca",
            "secrets-encryption enable",
            "secrets-encryption rotate",
            "secrets-encryption disable",
            "addons repo add /x",
            "addons repo remove x",
            "addons repo update",
        ] {
            let parse = |end: &[&str]| {
                let words = std::iter::once("kedge").chain(line.split(' ')).chain(end.iter().copied());
                Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).command.report()
            };
            assert_eq!(parse(&[]), None, "{line}");
            assert_eq!(parse(&["-o", "json"]), Some(Format::Json), "{line}");
            assert_eq!(parse(&["--output", "yaml"]), Some(Format::Yaml), "{line}");
        }
    }

    #[test]
    fn formats_have_one_name_everywhere_and_keep_their_old_ones() {
        for arguments in [
            ["kedge", "status", "--format", "short"],
            ["kedge", "status", "--output", "text"],
            ["kedge", "inspect", "-o", "json"],
            ["kedge", "version", "-o", "yaml"],
            ["kedge", "add-node", "--format", "pretty"],
            ["kedge", "add-node", "--output", "short"],
        ] {
            Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        }
    }

    #[test]
    fn the_reference_is_up_to_date() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
        for (name, text) in crate::reference::files(&Cli::command()) {
            let found = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            assert!(
                found == text,
                "docs/reference/{name} is out of date; run: kedge reference docs/reference"
            );
        }
    }
}
