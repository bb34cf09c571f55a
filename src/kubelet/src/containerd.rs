//! Kedge's own containerd: its configuration, and a process that outlives Kedge.
//!
//! It has its own folders and socket, so that it disturbs no other containerd of the machine. It is
//! started in its own process group and adopted by the next Kedge: containers survive `kill -9`.

mod runtimes;
mod settings;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kedge_base::{Backoff, Tasks};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

use crate::Error;
use crate::runtime::Runtime;

pub use runtimes::Found;
pub use settings::{Detected, detect, render};

/// How long a started containerd may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Where containerd keeps its things, and what its CRI plugin must know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The containerd program.
    pub binary: PathBuf,
    /// Images and snapshots, e.g. `/var/lib/kedge/containerd`.
    pub root: PathBuf,
    /// Sockets, the pid file and the state of running containers, e.g. `/run/kedge/containerd`.
    pub state: PathBuf,
    /// Programs of the network plugins, e.g. `/usr/lib/cni`.
    pub cni_bin_dir: PathBuf,
    /// Configuration of the network plugins.
    pub cni_conf_dir: PathBuf,
    /// `hosts.toml` files for registries; may be missing.
    pub registry_dir: PathBuf,
    /// The image of sandboxes.
    pub pause_image: String,
    /// Where the streaming server of exec, attach and port-forward listens; loopback.
    pub stream_address: IpAddr,
}

impl Settings {
    /// containerd's gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join("containerd.sock")
    }

    /// The configuration file that is written for it.
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The process id of the running containerd.
    pub fn pid_file(&self) -> PathBuf {
        self.state.join("containerd.pid")
    }

    /// What containerd prints.
    pub fn log_file(&self) -> PathBuf {
        self.root.join("containerd.log")
    }
}

/// Starts containerd, or adopts the one that runs, and keeps one running until the tasks stop; it
/// is left running then. Returns when it answers.
///
/// # Errors
/// When it cannot be started or does not answer within a minute.
pub async fn supervise(settings: Settings, tasks: &Tasks) -> Result<(), Error> {
    let make = |dir: &Path| {
        std::fs::create_dir_all(dir)
            .map_err(|error| Error::io(format!("make folder {}", dir.display()), error))
    };
    make(&settings.root)?;
    make(&settings.state)?;
    let text = render(&settings, &detect(&settings.root));
    let file = settings.config_file();
    let before = kedge_base::read_optional(&file).unwrap_or_default();
    if before.as_deref() != Some(text.as_bytes()) {
        kedge_base::write_atomic(&file, text.as_bytes(), 0o644)
            .map_err(|error| Error::io(format!("write {}", file.display()), error))?;
        if running(&settings).is_some() && before.is_some() {
            tracing::info!("containerd's configuration changed, it is started again (containers go on)");
            stop(&settings).await?;
        }
    }
    let mut process = match running(&settings) {
        Some(pid) => {
            tracing::info!(pid, "containerd runs already, it is adopted");
            Process::adopt(pid)?
        }
        None => launch(&settings)?,
    };
    wait_until_ready(&settings, &mut process).await?;
    tasks.spawn_until_stopped("containerd", async move {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        loop {
            let since = tokio::time::Instant::now();
            process.ended().await;
            if since.elapsed() > Duration::from_secs(60) {
                backoff.reset();
            }
            tracing::warn!(log = %settings.log_file().display(), "containerd ended, it is started again");
            loop {
                tokio::time::sleep(backoff.next_delay()).await;
                match launch(&settings) {
                    Ok(started) => {
                        process = started;
                        break;
                    }
                    Err(error) => {
                        tracing::error!(error = %error.text(), "containerd not started, trying again");
                    }
                }
            }
        }
    });
    Ok(())
}

/// Ends containerd itself; its containers go on.
///
/// # Errors
/// When it does not end within half a minute.
pub async fn stop(settings: &Settings) -> Result<(), Error> {
    let Some(pid) = running(settings) else { return Ok(()) };
    let mut process = Process::adopt(pid)?;
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    if tokio::time::timeout(STOP_LIMIT, process.ended()).await.is_err() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        if tokio::time::timeout(STOP_LIMIT, process.ended()).await.is_err() {
            return Err(Error::other(format!("containerd (process {pid}) does not end")));
        }
    }
    let _ = std::fs::remove_file(settings.pid_file());
    Ok(())
}

/// Ends containerd when this process has begun it: the next start would adopt it with the mounts and the
/// network that a start which failed has given it. One that was there before, and all containers, go on.
///
/// # Errors
/// As [`stop`].
pub async fn stop_own(settings: &Settings) -> Result<(), Error> {
    let own = running(settings).is_some_and(|pid| {
        // After the program's name, which is in parentheses: state, parent.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        parent.and_then(|parent| parent.parse().ok()) == Some(std::process::id())
    });
    if own { stop(settings).await } else { Ok(()) }
}

/// Stops and removes every pod that containerd has, then ends it. For `kedge uninstall`.
///
/// # Errors
/// When a sandbox cannot be stopped.
pub async fn stop_everything(settings: &Settings) -> Result<(), Error> {
    if running(settings).is_some() {
        let runtime = Runtime::new(&settings.socket())?;
        for sandbox in runtime.list_sandboxes().await? {
            runtime.stop_sandbox(&sandbox.id).await?;
            runtime.remove_sandbox(&sandbox.id).await?;
        }
    }
    stop(settings).await
}

/// The process id of our containerd, when it is alive.
pub fn running(settings: &Settings) -> Option<i32> {
    let pid: i32 = std::fs::read_to_string(settings.pid_file()).ok()?.trim().parse().ok()?;
    // The number may belong to another process by now.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let config = settings.config_file().to_string_lossy().into_owned();
    let ours = line.split(|byte| *byte == 0).any(|word| word == config.as_bytes());
    ours.then_some(pid)
}

/// A containerd that is watched: our child, or one that a Kedge before us has started.
enum Process {
    Child(Box<tokio::process::Child>),
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    fn adopt(pid: i32) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::io(format!("watch process {pid}"), error);
        let target = rustix::process::Pid::from_raw(pid).ok_or_else(|| Error::other("not a process id"))?;
        let fd = rustix::process::pidfd_open(target, rustix::process::PidfdFlags::NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        #[expect(deprecated, reason = "its successor is unsafe; the descriptor is owned")]
        let fd = AsyncFd::new(fd).map_err(failed)?;
        Ok(Self::Adopted(fd))
    }

    async fn ended(&mut self) {
        match self {
            Self::Child(child) => {
                let _ = child.wait().await;
            }
            // A pidfd becomes readable when the process ends.
            Self::Adopted(fd) => {
                let _ = fd.readable().await;
            }
        }
    }
}

fn launch(settings: &Settings) -> Result<Process, Error> {
    let log = settings.log_file();
    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |error| Error::io(format!("start containerd ({what})"), error)
    };
    if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > 10 << 20) {
        let _ = std::fs::rename(&log, log.with_extension("log.1"));
    }
    let output = std::fs::OpenOptions::new().create(true).append(true).open(&log).map_err(failed(&log))?;
    let errors = output.try_clone().map_err(failed(&log))?;
    let mut command = tokio::process::Command::new(&settings.binary);
    command
        .arg("--config")
        .arg(settings.config_file())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        // Its own group: signals for Kedge's group do not reach it.
        .process_group(0)
        .kill_on_drop(false);
    let huge_pages_again = || {
        // Containers inherit from containerd, and huge pages are theirs to use. A kernel without says no.
        let _ = nix::sys::prctl::set_thp_disable(false);
        Ok(())
    };
    // SAFETY: between fork and exec one system call is made; it allocates nothing, takes no lock, and
    // changes a flag of the new process.
    #[allow(unsafe_code, reason = "nothing else runs in the child before containerd")]
    unsafe {
        command.pre_exec(huge_pages_again);
    }
    let child = command.spawn().map_err(failed(&settings.binary))?;
    let pid = child.id().unwrap_or(0);
    kedge_base::write_atomic(&settings.pid_file(), pid.to_string().as_bytes(), 0o644)
        .map_err(failed(&settings.pid_file()))?;
    Ok(Process::Child(Box::new(child)))
}

async fn wait_until_ready(settings: &Settings, process: &mut Process) -> Result<(), Error> {
    let runtime = Runtime::new(&settings.socket())?;
    let answers = async {
        // There is no event for "the plugin answers"; this ends after some hundred milliseconds.
        while runtime.health().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let log = settings.log_file();
    tokio::select! {
        answered = tokio::time::timeout(START_LIMIT, answers) => answered.map_err(|_| {
            Error::other(format!("containerd does not answer after {} s, see {}", START_LIMIT.as_secs(), log.display()))
        }),
        () = process.ended() => Err(Error::other(format!("containerd ended at its start, see {}", log.display()))),
    }
}
