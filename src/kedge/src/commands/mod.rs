//! One module per command. Each reads top to bottom as what the command does; the parts it uses are in
//! the modules beside this one.

pub(crate) mod addons;
pub(crate) mod certs;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod flannel;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod install;
pub(crate) mod join;
pub(crate) mod kubectl;
pub(crate) mod recover;
pub(crate) mod reset;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod uninstall;
pub(crate) mod version;

use anyhow::Context as _;

use crate::cli::Failure;
use crate::config::Config;
use crate::preflight;

/// A client of this cluster's administrator, made from the kubeconfig that the running node wrote.
pub(crate) fn admin_client(config: &Config) -> anyhow::Result<kube::Client> {
    let file = config.kubeconfig();
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!("read {}; run this on a control-plane node that was started", file.display())
    })?;
    let parsed: serde_json::Value =
        serde_saphyr::from_str(&text).with_context(|| format!("parse {}", file.display()))?;
    let text_at =
        |pointer: &str| parsed.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default();
    let decoded = |pointer: &str| -> anyhow::Result<String> {
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text_at(pointer))
            .with_context(|| format!("decode {pointer} of {}", file.display()))?;
        Ok(String::from_utf8(bytes)?)
    };
    let identity = kedge_client::https::Identity::Certificate {
        chain: decoded("/users/0/user/client-certificate-data")?,
        key: decoded("/users/0/user/client-key-data")?,
    };
    let ca = decoded("/clusters/0/cluster/certificate-authority-data")?;
    Ok(kedge_client::https::client(text_at("/clusters/0/cluster/server"), &ca, identity, "default")?)
}

/// Refuse before anything happens when the caller is not root.
fn require_root() -> Result<(), Failure> {
    match preflight::root() {
        None => Ok(()),
        Some(problem) => Err(Failure::Failed(anyhow::anyhow!("{}; {}", problem.what, problem.remedy))),
    }
}

/// Ask on the terminal; where nobody can answer, only `--yes` says yes.
fn confirm(question: &str, yes: bool) -> Result<bool, Failure> {
    use std::io::{BufRead as _, IsTerminal as _};
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage("nobody can be asked here; nothing was changed: say --yes".into()));
    }
    crate::output::write(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Data for people (`text`) or programs.
fn print(format: crate::cli::Format, short: &str, value: &impl serde::Serialize) -> anyhow::Result<()> {
    use crate::cli::Format;
    match format {
        Format::Short => crate::output::write(short),
        Format::Json => crate::output::say(&serde_json::to_string_pretty(value).context("write JSON")?),
        Format::Yaml => crate::output::write(&serde_saphyr::to_string(value).context("write YAML")?),
    }
    Ok(())
}

/// A small runtime for commands that ask containerd or the kernel something.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Boxed: the runtime is compiled once for each result instead of once for each command.
    let future: std::pin::Pin<Box<dyn Future<Output = F::Output> + '_>> = Box::pin(future);
    Ok(runtime.block_on(future))
}
