//! `kedge kubectl`: the kubectl of this machine with this cluster's kubeconfig.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::config::{Config, Settings};
use crate::failure::{Failure, Remedied};
use crate::{admin, config, preflight};

/// How a machine without kubectl gets one; README.md and docs/tutorial.md say the same.
const INSTALL: [&str; 2] = [
    "snap install kubectl --classic",
    "curl -Lo /usr/local/bin/kubectl https://dl.k8s.io/release/v1.36.0/bin/linux/$(dpkg --print-architecture)/kubectl \
     && chmod +x /usr/local/bin/kubectl",
];

/// Replace this process by kubectl.
pub(crate) fn run(config: &Config, arguments: Vec<OsString>) -> Result<ExitCode, Failure> {
    let kubeconfig = config.kubeconfig();
    match std::fs::File::open(&kubeconfig) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let what = format!("{} is readable by root only", kubeconfig.display());
            let remedy =
                "put sudo before the command, or give yourself a copy: sudo kedge config > ~/.kube/config";
            return Err(anyhow::Error::new(error).context(Remedied::new(what, remedy)).into());
        }
        Err(error) => return Err(admin::unreadable(config, &kubeconfig, error).into()),
    }
    let Some(mut command) = find() else {
        let [snap, curl] = INSTALL;
        return Err(Failure::Failed(anyhow::anyhow!(
            "no kubectl was found on this machine; as root install one and run this again: {snap}, or without snapd: \
             {curl}"
        )));
    };
    command.args(arguments).env("KUBECONFIG", &kubeconfig);
    // Only returns when kubectl could not be started.
    let error = command.exec();
    Err(Failure::Failed(anyhow::Error::new(error).context(format!("start {:?}", command.get_program()))))
}

/// Called by the name `kubectl` or `kedge-kubectl`: every argument is kubectl's, the settings come from
/// the environment's `KEDGE_CONFIG` and `KEDGE_DATA_DIR` and the configuration file.
pub(crate) fn run_bare(arguments: Vec<OsString>) -> Result<ExitCode, Failure> {
    let mut given = Settings::default();
    if let Ok(dir) = std::env::var("KEDGE_DATA_DIR") {
        given.insert("data-dir", dir);
    }
    let file = std::env::var_os("KEDGE_CONFIG").map(PathBuf::from);
    let config =
        config::Config::load(file.as_deref(), &given).map_err(|faults| Failure::Usage(faults.into()))?;
    run(&config, arguments)
}

/// kubectl itself, or a distribution's binary that contains it.
fn find() -> Option<Command> {
    let own = std::env::current_exe().ok().and_then(|path| path.canonicalize().ok());
    // A link of that name to Kedge itself would call us for ever.
    let foreign = |path: &Path| path.canonicalize().ok() != own;
    let kubectl = preflight::find_program("kubectl")
        .into_iter()
        .chain(["/usr/bin/kubectl", "/usr/local/bin/kubectl", "/snap/bin/kubectl"].map(PathBuf::from))
        .find(|path| path.is_file() && foreign(path));
    if let Some(path) = kubectl {
        return Some(Command::new(path));
    }
    ["k3s", "k0s"].into_iter().find_map(preflight::find_program).map(|path| {
        let mut command = Command::new(path);
        command.arg("kubectl");
        command
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_says_how_to_get_one() {
        for command in INSTALL {
            for document in
                [include_str!("../../../../README.md"), include_str!("../../../../docs/tutorial.md")]
            {
                assert!(document.contains(command), "{command}");
            }
        }
        assert!(INSTALL[1].contains(kedge_base::KUBERNETES_VERSION));
    }
}
