//! This cluster's administrator: what commands ask the API server as, and where they wait for the answer.

use anyhow::Context as _;

use crate::config::Config;
use crate::failure::Failure;

/// A client of this cluster's administrator, made from the kubeconfig that the running node wrote.
pub(crate) fn client(config: &Config) -> anyhow::Result<kube::Client> {
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

/// A small runtime for commands that ask containerd or the kernel something.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Boxed: the runtime is compiled once for each result instead of once for each command.
    let future: std::pin::Pin<Box<dyn Future<Output = F::Output> + '_>> = Box::pin(future);
    Ok(runtime.block_on(future))
}
