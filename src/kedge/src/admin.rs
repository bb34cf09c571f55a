//! This cluster's administrator: what commands ask the API server as, and where they wait for the answer.

use std::io;
use std::path::Path;

use anyhow::Context as _;
use kedge_cluster::{Admitted, Role};

use crate::config::Config;
use crate::failure::{Failure, Remedied};

/// A client of this cluster's administrator, made from the kubeconfig that the running node wrote.
pub(crate) fn client(config: &Config) -> anyhow::Result<kube::Client> {
    let file = config.kubeconfig();
    let text = std::fs::read_to_string(&file).map_err(|error| unreadable(config, &file, error))?;
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

/// Why a file of the administrator's cannot be read, and what helps.
pub(crate) fn unreadable(config: &Config, file: &Path, error: io::Error) -> anyhow::Error {
    let worker = Admitted::read(&config.pki_dir())
        .is_ok_and(|joined| joined.is_some_and(|joined| joined.facts.role == Role::Worker));
    if worker {
        return Remedied::new("this node is a worker", "run the command on a control-plane node").into();
    }
    let file = file.display();
    let known = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Remedied::new(format!("{file} is readable by root only"), "put sudo before the command")
        }
        io::ErrorKind::NotFound => {
            Remedied::new("there is no cluster in this data folder yet", "run kedge install")
        }
        _ => return anyhow::Error::new(error).context(format!("read {file}")),
    };
    anyhow::Error::new(error).context(known).context(format!("read {file}"))
}

/// A small runtime for commands that ask containerd or the kernel something.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Boxed: the runtime is compiled once for each result instead of once for each command.
    let future: std::pin::Pin<Box<dyn Future<Output = F::Output> + '_>> = Box::pin(future);
    Ok(runtime.block_on(future))
}
