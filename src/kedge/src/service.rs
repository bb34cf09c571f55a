//! How a node's process is kept alive: a systemd unit where systemd runs, a background process with a
//! pid file and a log file elsewhere. Both are started, stopped and asked the same way.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use crate::config::Config;
use crate::config::settings::SETTINGS;
use crate::origin::{self, Origin};
use crate::process::Process;

/// How long a node may take to stop its components.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long a process may take from its lock to its pid file, or from the end of that to its own.
const CLAIM_LIMIT: Duration = Duration::from_secs(30);

/// Does systemd run this machine (sd_booted(3))?
pub(crate) fn systemd_runs() -> bool {
    sd_notify::booted().unwrap_or(false)
}

/// The service that systemd knows this node by.
enum Unit {
    /// Written and removed by `install` and `uninstall`.
    Own { name: String, file: PathBuf },
    /// A package's: only started, stopped, enabled and disabled.
    Packaged { name: String, file: PathBuf },
    /// snapd's: reached through snapctl, which a confined snap may call too. The name is snapd's.
    Snap { service: String, name: String, file: PathBuf },
}

impl Unit {
    fn of(config: &Config) -> Self {
        Self::from(config, origin::origin())
    }

    fn from(config: &Config, origin: &Origin) -> Self {
        match origin {
            Origin::Package { unit } if config.service_name() == "kedge" => {
                Self::Packaged { name: "kedge".into(), file: unit.clone() }
            }
            Origin::Snap(snap) if config.data_dir.starts_with(&snap.common) => {
                let name = format!("snap.{}.daemon", snap.instance);
                let file = PathBuf::from(format!("/etc/systemd/system/{name}.service"));
                Self::Snap { service: format!("{}.daemon", snap.instance), name, file }
            }
            _ => {
                let name = config.service_name();
                let file = PathBuf::from(format!("/etc/systemd/system/{name}.service"));
                Self::Own { name, file }
            }
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Own { name, .. } | Self::Packaged { name, .. } | Self::Snap { name, .. } => name,
        }
    }

    /// Does a service manager look after this node?
    fn managed(&self) -> bool {
        let (Self::Own { file, .. } | Self::Packaged { file, .. } | Self::Snap { file, .. }) = self;
        systemd_runs() && file.exists()
    }

    fn start(&self) -> anyhow::Result<()> {
        match self {
            Self::Snap { service, .. } => run("snapctl", &["start", service]),
            // Without --no-block systemd would wait for READY; `status` says more while we wait.
            _ => systemctl(&["start", "--no-block", self.name()]),
        }
    }

    fn stop(&self) -> anyhow::Result<()> {
        match self {
            Self::Snap { service, .. } => run("snapctl", &["stop", service]),
            _ => systemctl(&["stop", self.name()]),
        }
    }
}

/// The unit whose lines in the journal are this node's log; `None`: it has a log file.
pub(crate) fn journal_unit(config: &Config) -> Option<String> {
    let unit = Unit::of(config);
    unit.managed().then(|| unit.name().to_owned())
}

/// Does a service manager start this node's process again when it ends?
pub(crate) fn is_managed(config: &Config) -> bool {
    Unit::of(config).managed()
}

/// The file of the unit that Kedge itself writes for this node; `None` when a package owns the unit.
pub(crate) fn own_unit_file(config: &Config) -> Option<PathBuf> {
    match Unit::of(config) {
        Unit::Own { file, .. } => Some(file),
        Unit::Packaged { .. } | Unit::Snap { .. } => None,
    }
}

/// Have the service started at boot; where no package brought a unit, write it.
pub(crate) fn install(config: &Config) -> anyhow::Result<()> {
    let unit_of_node = Unit::of(config);
    let file = match unit_of_node {
        Unit::Own { file, .. } => file,
        Unit::Packaged { name, .. } => {
            origin::take_over().context("put the package's files in the place of install.sh's")?;
            systemctl(&["daemon-reload"])?;
            return systemctl(&["enable", &name]);
        }
        // An unpacked tree where no snapd runs has no unit: the node runs in the background.
        Unit::Snap { file, .. } if !file.exists() => return Ok(()),
        Unit::Snap { service, .. } => return run("snapctl", &["start", "--enable", &service]),
    };
    let text = unit(config);
    let changed = fs::read_to_string(&file).ok().as_deref() != Some(text.as_str());
    if changed {
        kedge_base::write_atomic(&file, text.as_bytes(), 0o644)
            .with_context(|| format!("write {}", file.display()))?;
        systemctl(&["daemon-reload"])?;
    }
    systemctl(&["enable", &config.service_name()])
}

/// Take the unit away again.
pub(crate) fn uninstall(config: &Config) -> anyhow::Result<()> {
    let file = match Unit::of(config) {
        Unit::Own { file, .. } => file,
        Unit::Packaged { name, .. } => {
            systemctl(&["disable", &name])?;
            let _ = systemctl(&["reset-failed", &name]);
            return Ok(());
        }
        Unit::Snap { file, .. } if !file.exists() => return Ok(()),
        Unit::Snap { service, .. } => return run("snapctl", &["stop", "--disable", &service]),
    };
    if !file.exists() {
        return Ok(());
    }
    systemctl(&["disable", &config.service_name()])?;
    fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    systemctl(&["daemon-reload"])?;
    // A failed unit would stay in the list; one that did not fail has nothing to reset.
    let _ = systemctl(&["reset-failed", &config.service_name()]);
    Ok(())
}

/// Start the node unless it runs. Returns false when it ran already.
pub(crate) fn start(config: &Config) -> anyhow::Result<bool> {
    let binary = std::env::current_exe().context("find the running binary")?;
    start_from(config, &binary)
}

/// The same with a binary other than the running one (a unit names its own).
fn start_from(config: &Config, binary: &Path) -> anyhow::Result<bool> {
    let unit = Unit::of(config);
    let runs = settled(config)?.is_some();
    if unit.managed() {
        // Also when it runs: a stop that is under way comes first, and then this start.
        unit.start()?;
        return Ok(!runs);
    }
    if runs && !Process::is_stopping(&config.pid_file()).context("read the pid file")? {
        return Ok(false);
    }
    // Who wanted it stopped may have been cut off before it was. One that was just started by somebody else is not it.
    if runs {
        stop(config)?;
    }
    start_in_background(config, binary)?;
    Ok(true)
}

/// Stop the node. Returns false when it did not run. Containers keep running.
pub(crate) fn stop(config: &Config) -> anyhow::Result<bool> {
    let process = settled(config)?;
    let unit = Unit::of(config);
    if unit.managed() {
        // Also when no process runs: systemd may be about to start it again.
        unit.stop()?;
    }
    let Some(process) = process else { return Ok(false) };
    if process.alive() {
        // First the decision, then the deed: whoever comes next finishes it.
        process.record_stopping(&config.pid_file()).context("write the pid file")?;
    }
    process.signal(Signal::SIGTERM).context("send SIGTERM")?;
    if !process.wait_gone(STOP_LIMIT) {
        tracing::warn!(pid = process.pid, "kedge did not stop in time and is killed");
        process.signal(Signal::SIGKILL).context("send SIGKILL")?;
        if !process.wait_gone(Duration::from_secs(10)) {
            bail!("process {} does not end even when killed; a disk may hang (see dmesg)", process.pid);
        }
    }
    let _ = process.forget(&config.pid_file());
    Ok(true)
}

/// Stop what runs and start the installed binary, for an install or an upgrade in place.
pub(crate) fn restart(config: &Config) -> anyhow::Result<()> {
    stop(config)?;
    start_from(config, &origin::binary())?;
    Ok(())
}

/// The node's process, when it runs.
pub(crate) fn running(config: &Config) -> anyhow::Result<Option<Process>> {
    let file = config.pid_file();
    Process::recorded(&file).with_context(|| format!("read {}", file.display()))
}

/// Make this process the node's only one, for as long as it lives and the returned file is open. A pid file
/// cannot do that: of two that start at once, each finds the other one's missing.
///
/// # Errors
/// When another process is the node's.
pub(crate) fn claim(config: &Config) -> anyhow::Result<File> {
    fs::create_dir_all(&config.run_dir).with_context(|| format!("create {}", config.run_dir.display()))?;
    let path = config.lock_file();
    // Nobody but root may hold it.
    let lock = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let deadline = Instant::now() + CLAIM_LIMIT;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
            // Held for a moment by one who only looks, or by one who has not written its pid file yet.
            Err(TryLockError::WouldBlock) => {}
        }
        if let Some(other) = running(config)? {
            bail!(
                "kedge already runs here as process {}; stop it with kedge stop, or use another --run-dir",
                other.pid
            );
        }
        if Instant::now() >= deadline {
            bail!("another kedge run is starting or ending here ({} is locked)", path.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// [`running`], after whoever is just starting or ending has done so.
fn settled(config: &Config) -> anyhow::Result<Option<Process>> {
    let deadline = Instant::now() + CLAIM_LIMIT;
    loop {
        let process = running(config)?;
        if process.is_some() || !claimed(config) || Instant::now() >= deadline {
            return Ok(process);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Is a process the node's, whether or not its pid file says so?
fn claimed(config: &Config) -> bool {
    File::open(config.lock_file())
        .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The last lines of the log, for an error message.
pub(crate) fn log_tail(config: &Config, lines: usize) -> String {
    let unit = Unit::of(config);
    let text = if unit.managed() {
        Command::new("journalctl")
            .args(["-u", unit.name(), "-n", &lines.to_string(), "--no-pager", "-o", "cat"])
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default()
    } else {
        tail(&config.log_file(), lines)
    };
    text.trim_end().to_owned()
}

/// Where a person finds the log.
pub(crate) fn log_place(config: &Config) -> String {
    let unit = Unit::of(config);
    if unit.managed() {
        format!("journalctl -u {}", unit.name())
    } else {
        config.log_file().display().to_string()
    }
}

fn tail(file: &Path, lines: usize) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(file)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(64 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// `kedge run --detach` makes itself the leader of its own session before it does anything else.
fn start_in_background(config: &Config, binary: &Path) -> anyhow::Result<()> {
    let file = config.log_file();
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .with_context(|| format!("open {}", file.display()))?;
    let errors = log.try_clone().context("open the log twice")?;
    let mut child = Command::new(binary)
        .args(["run", "--detach"])
        .args(flags(config))
        .envs(config.join.as_ref().map(|join| ("KEDGE_JOIN", join)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .context("start kedge run")?;
    // It has written its pid file, another start was faster, or it has ended with a reason in the log.
    let deadline = Instant::now() + CLAIM_LIMIT;
    let won = loop {
        if let Some(process) = running(config)? {
            break process;
        }
        let ended = child.try_wait().context("wait for kedge run")?;
        if let Some(status) = ended.filter(|_| !claimed(config)) {
            bail!("kedge ended at once ({status}); its last words:\n{}", log_tail(config, 10));
        }
        if Instant::now() >= deadline {
            bail!("kedge run did not write {}; see {}", config.pid_file().display(), file.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if u32::try_from(won.pid) != Ok(child.id()) {
        child.wait().context("wait for the kedge run that came too late")?;
    }
    Ok(())
}

/// Every setting as a flag: the background process sees exactly what this command saw.
fn flags(config: &Config) -> Vec<String> {
    let mut flags = config.file_flags();
    for setting in &SETTINGS {
        // A join string is a secret: everybody may read the arguments of a process.
        if setting.key == "join" {
            continue;
        }
        // A file that a flag names must be there; the usual one and the environment's, which is inherited, need not.
        if setting.key == "registries" && !config.names_registries() {
            continue;
        }
        // A list that nobody gave is another thing than an empty one.
        if let Some(value) = config.value(setting.key) {
            flags.push(format!("--{}", setting.key));
            flags.push(value);
        }
    }
    flags
}

/// The unit that packages ship; ours differs in the command only.
const TEMPLATE: &str = include_str!("../../../packaging/kedge.service");
/// The template's command.
const PACKAGED_COMMAND: &str = "/usr/bin/kedge run";

/// The unit. The settings are in the configuration file, so that every other command sees them too.
fn unit(config: &Config) -> String {
    let mut command = vec![origin::binary().to_string_lossy().into_owned(), "run".to_owned()];
    // A further node of this machine must not write the first one's file: its settings stand here.
    command.extend(if config.owns_file() { config.file_flags() } else { flags(config) });
    let command: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    TEMPLATE.replace(PACKAGED_COMMAND, &command.join(" "))
}

/// A word of ExecStart: systemd expands % and $ and splits at spaces.
fn quoted(word: &str) -> String {
    let word = word.replace('%', "%%").replace('$', "$$");
    if word.contains([' ', '"', '\'', '\\']) {
        format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        word
    }
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    run("systemctl", arguments)
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    bail!("{program} {} failed: {}", arguments.join(" "), reason.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn config(given: &[(&'static str, &str)]) -> Config {
        let mut settings = Settings::default();
        for (key, value) in given {
            settings.insert(key, (*value).to_owned());
        }
        Config::load(Some(Path::new("/nonexistent/kedge config.yaml")), &settings).unwrap()
    }

    #[test]
    fn the_unit_leaves_containers_alone() {
        let text = unit(&config(&[]));
        for line in [
            "Type=notify",
            "KillMode=process",
            "Delegate=yes",
            "Restart=always",
            "OOMPolicy=continue",
            "LimitNOFILE=1048576",
            "ExecStart=/usr/local/bin/kedge run --config \"/nonexistent/kedge config.yaml\"",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn nodes_in_other_folders_have_other_units() {
        let config = config(&[("data-dir", "/srv/nodes/edge 2")]);
        assert!(config.log_file().ends_with("kedge-edge-2.log"));
        assert_eq!(
            own_unit_file(&config).as_deref(),
            Some(Path::new("/etc/systemd/system/kedge-edge-2.service"))
        );
    }

    #[test]
    fn the_unit_depends_on_where_the_binary_came_from() {
        let package = Origin::Package { unit: "/usr/lib/systemd/system/kedge.service".into() };
        let snap = Origin::Snap(crate::origin::Snap {
            instance: "kedge_two".into(),
            tree: "/snap/kedge_two/7".into(),
            common: "/var/snap/kedge_two/common".into(),
        });
        let usual = config(&[]);
        let further = config(&[("data-dir", "/srv/b")]);
        let snapped = config(&[("data-dir", "/var/snap/kedge_two/common/data")]);
        assert!(matches!(Unit::from(&usual, &Origin::Own), Unit::Own { name, .. } if name == "kedge"));
        assert!(matches!(Unit::from(&usual, &package), Unit::Packaged { name, .. } if name == "kedge"));
        assert!(matches!(Unit::from(&further, &package), Unit::Own { name, .. } if name == "kedge-b"));
        assert!(
            matches!(Unit::from(&snapped, &snap), Unit::Snap { name, .. } if name == "snap.kedge_two.daemon")
        );
        assert!(matches!(Unit::from(&further, &snap), Unit::Own { name, .. } if name == "kedge-b"));
    }

    #[test]
    fn the_background_process_sees_every_setting() {
        let config = config(&[("data-dir", "/tmp/a"), ("port", "7001"), ("node-ip", "192.0.2.9")]);
        let flags = flags(&config).join(" ");
        for pair in ["--data-dir /tmp/a", "--port 7001", "--node-ip 192.0.2.9", "--bridge-name kedge0"] {
            assert!(flags.contains(pair), "{pair} is not in {flags}");
        }
    }

    #[test]
    fn the_tail_of_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kedge.log");
        fs::write(&file, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&file, 2), "two\nthree");
        assert_eq!(tail(&dir.path().join("none"), 2), "");
    }
}
