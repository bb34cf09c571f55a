//! What can be typed. Parsing only: each command's work is in `commands`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

mod global;
mod keys;

pub(crate) use global::GlobalArgs;
pub(crate) use keys::{EncryptionCommand, RotateCaArgs};

/// Kubernetes for edge boards, laptops and small clusters, in one binary.
#[derive(Debug, Parser)]
#[command(name = "kedge", version, disable_help_subcommand = true, max_term_width = 100)]
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
    #[command(hide = true)]
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

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct DisableArgs {
    /// Their names
    #[arg(required = true, value_name = "ADDON")]
    pub(crate) addons: Vec<String>,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Only check this machine and say what is missing
    #[arg(long)]
    pub(crate) check: bool,
    /// Seconds to wait until the node is Ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    /// Return as soon as the service was started; no addon is enabled then
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Upgrade although the cluster stands still while this node restarts
    #[arg(long)]
    pub(crate) force: bool,
    /// Leave a basic addon out (repeat it for more)
    #[arg(long, value_name = "ADDON", value_parser = crate::addons::BASIC_ADDONS)]
    pub(crate) without: Vec<String>,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The data goes back too, to the moment before the upgrade; later changes are lost
    #[arg(long)]
    pub(crate) with_data: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Seconds to wait until the node is Ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    /// Keep the data folder, so that a later install brings the cluster back
    #[arg(long)]
    pub(crate) keep_data: bool,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Seconds to wait until Kedge answers
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
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

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Wait until the node is Ready
    #[arg(long)]
    pub(crate) wait_ready: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    /// How to print it
    #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
    pub(crate) format: Format,
}

impl StatusArgs {
    pub(crate) fn limit(&self) -> Option<Duration> {
        self.wait_ready.then(|| Duration::from_secs(self.timeout))
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Leave the terminal: used by `kedge start` where there is no service manager
    #[arg(long, hide = true)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ConfigArgs {
    /// The server's URL in the kubeconfig, e.g. https://192.0.2.1:6443 (repeat it for more)
    #[arg(long, value_name = "URL")]
    pub(crate) server: Vec<String>,
    #[command(subcommand)]
    pub(crate) command: Option<ConfigCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print this node's effective settings and where each was said
    Show {
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// How to print it
    #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
    pub(crate) format: Format,
    /// Write an archive for a bug report too (tar.gz); secrets are removed from it
    #[arg(long, value_name = "FILE")]
    pub(crate) tarball: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Reset although other nodes belong to the cluster; they are told when they answer
    #[arg(long)]
    pub(crate) force: bool,
    /// Leave a basic addon out (repeat it for more)
    #[arg(long, value_name = "ADDON", value_parser = ["dns"])]
    pub(crate) without: Vec<String>,
    /// Seconds to wait until the node is Ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct KubectlArgs {
    /// kubectl's own arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(crate) arguments: Vec<OsString>,
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
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// Remove images that no container of this node uses; pinned ones and Kedge's own stay
    Prune {
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// Write Kedge's own images to an archive: always the same bytes for the same binaries
    Build {
        /// The archive
        file: PathBuf,
        /// Binaries of Kedge, one for each architecture [default: this one]
        #[arg(long = "binary", value_name = "FILE")]
        binaries: Vec<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InvitationFormat {
    /// Sentences
    #[value(name = "text", alias = "pretty")]
    Pretty,
    /// The commands alone
    Short,
    /// YAML
    Yaml,
    /// JSON
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct AddNodeArgs {
    /// How long the token is valid: 90s, 15m, 1h, 7d
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = crate::config::parse_duration)]
    pub(crate) ttl: Duration,
    /// Let any number of nodes join with it
    #[arg(long)]
    pub(crate) reusable: bool,
    /// Let nodes join as workers only
    #[arg(long)]
    pub(crate) worker: bool,
    /// How to print it
    #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = InvitationFormat::Pretty)]
    pub(crate) format: InvitationFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// List them; the tokens themselves are shown only once, by add-node
    List {
        /// The same as --output json
        #[arg(long, hide = true)]
        json: bool,
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// Let nobody join with a token any more
    Revoke {
        /// Its id in the list, or the beginning of it
        id: String,
        #[command(flatten)]
        reported: Reported,
    },
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// What add-node printed: HOST:PORT/TOKEN/CA-HASH
    #[arg(value_name = "HOST:PORT/TOKEN/CA-HASH")]
    pub(crate) string: String,
    /// Run pods only, no control plane
    #[arg(long)]
    pub(crate) worker: bool,
    /// Join although pods run here: they are lost with this node's own cluster
    #[arg(long)]
    pub(crate) force: bool,
    /// Seconds to wait until the node is Ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// Leave pods behind, and go even when the cluster does not answer
    #[arg(long)]
    pub(crate) force: bool,
    /// Seconds to wait until the single node is Ready
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveNodeArgs {
    /// Its name, id or address
    pub(crate) node: String,
    /// Do not move its pods away first
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Save one, read it back, and say what is in it
    Save {
        /// Where to; DATA_DIR/snapshots otherwise
        file: Option<PathBuf>,
        /// Its name in DATA_DIR/snapshots [default: the time]
        #[arg(long, conflicts_with = "file")]
        name: Option<String>,
        /// One of that name gives way, once this one is whole
        #[arg(long, requires = "name")]
        replace: bool,
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// List those in DATA_DIR/snapshots
    List {
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// Read one to its end and say what is in it
    Verify {
        /// The file, or a name from the list
        file: PathBuf,
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// Make this node the only one of a cluster with what the snapshot holds
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The file, or a name from the list
    pub(crate) file: PathBuf,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Seconds to wait until the node is Ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Seconds to wait until the node is Ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// When they expire and are renewed; exit code 1 when one has expired
    Check {
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// Issue all but the authorities' again; listeners use the new ones at once
    Rotate {
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// Replace the whole cluster's authority by a new one; the old one is trusted too until --finish
    RotateCa(RotateCaArgs),
}

#[derive(Debug, Args)]
pub(crate) struct EnableArgs {
    /// Names, with arguments behind a colon: dns, dns:1.1.1.1,8.8.8.8, dns:replicas=2;upstream=1.1.1.1
    #[arg(required = true, value_name = "ADDON[:ARGUMENTS]")]
    pub(crate) addons: Vec<String>,
    /// Seconds to wait until each is healthy
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AddonsCommand {
    /// List them with their health
    List {
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// What an addon is and which arguments it takes
    Info {
        /// Its name
        addon: String,
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
    /// Folders and git repositories with more addons, on this node
    #[command(subcommand)]
    Repo(RepoCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum RepoCommand {
    /// Copy one to this node
    Add {
        /// A folder, or the URL of a git repository; addons are folders in it with an addon.yaml
        #[arg(value_name = "PATH-OR-URL")]
        source: String,
        /// How to call it here [default: the last part of the path or URL]
        #[arg(long)]
        name: Option<String>,
        /// A branch or tag of the git repository
        #[arg(long, value_name = "BRANCH")]
        branch: Option<String>,
        #[command(flatten)]
        reported: Reported,
    },
    /// Forget one; its addons that are enabled stay
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        reported: Reported,
    },
    /// Copy one again, or all of them, and upgrade their addons that are enabled
    Update {
        /// Its name
        name: Option<String>,
        #[command(flatten)]
        reported: Reported,
    },
    /// List them
    List {
        /// How to print it
        #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
        format: Format,
    },
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// How to print it
    #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = Format::Short)]
    pub(crate) format: Format,
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
            | Self::Images(ImagesCommand::Import { reported, .. } | ImagesCommand::Export { reported, .. })
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
            Self::Snapshot(SnapshotCommand::Save { format, .. })
            | Self::Images(ImagesCommand::Prune { format })
            | Self::Certs(CertsCommand::Rotate { format }) => *format,
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
    Cli::try_parse_from(arguments).map_err(|error| {
        // clap's own: help and version go to standard output with 0, mistakes to standard error with 2.
        let _ = error.print();
        if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_and_after_the_command() {
        for arguments in [["kedge", "--port", "7443", "status"], ["kedge", "status", "--port", "7443"]] {
            let cli = Cli::try_parse_from(arguments).unwrap();
            assert_eq!(cli.global.settings().get("port"), Some("7443"), "{arguments:?}");
        }
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
