//! The administrator's kubeconfig: its text, and the copy that a starting node leaves on disk.

use std::net::IpAddr;

use anyhow::Context as _;

use crate::config::Config;
use crate::{admin, preflight};

/// Write the kubeconfig that `kedge kubectl` uses: it talks to this machine's own listener. A starting
/// node calls this once its certificates exist.
///
/// # Errors
/// When the certificates cannot be read or the file cannot be written.
pub(crate) fn write(config: &Config) -> anyhow::Result<()> {
    let text = text(config, &[url(preflight::local_address(config.bind_address()), config.port)])?;
    let path = config.kubeconfig();
    if kedge_base::read_optional(&path).ok().flatten().as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    kedge_base::write_atomic(&path, text.as_bytes(), 0o600)
        .with_context(|| format!("write {}", path.display()))
}

/// With these servers' URLs.
///
/// # Errors
/// When there is no cluster yet, or its keys cannot be read.
pub(crate) fn text(config: &Config, servers: &[String]) -> anyhow::Result<String> {
    kedge_cluster::admin_kubeconfig(&config.pki_dir(), servers).map_err(|error| match error {
        kedge_cluster::Error::File { path, source, .. } => admin::unreadable(config, &path, source),
        other => other.into(),
    })
}

/// Of an API server.
pub(crate) fn url(address: IpAddr, port: u16) -> String {
    format!("https://{}", std::net::SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_both_families() {
        assert_eq!(url("192.0.2.1".parse().unwrap(), 6443), "https://192.0.2.1:6443");
        assert_eq!(url("2001:db8::1".parse().unwrap(), 6443), "https://[2001:db8::1]:6443");
    }
}
