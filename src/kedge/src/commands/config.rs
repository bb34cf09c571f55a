//! `kedge config`: the administrator's kubeconfig, and the copy that a starting node leaves on disk.

use std::io;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::{ConfigArgs, ConfigCommand, Failure};
use crate::config::Config;
use crate::{output, preflight, status};

/// Print the kubeconfig with the URLs given, or with the address that other machines can reach.
pub(crate) fn run(config: &Config, args: &ConfigArgs) -> Result<ExitCode, Failure> {
    if let Some(ConfigCommand::Show { format }) = &args.command {
        super::print(*format, &config.show(), &config.effective())?;
        return Ok(ExitCode::SUCCESS);
    }
    let servers = args.server.as_slice();
    if let Some(wrong) = servers.iter().find(|url| !url.starts_with("https://")) {
        return Err(Failure::Usage(format!(
            "--server {wrong:?} is not a URL such as https://192.0.2.1:6443"
        )));
    }
    let servers = if servers.is_empty() { vec![announced(config)] } else { servers.to_vec() };
    output::write(&text(config, &servers)?);
    Ok(ExitCode::SUCCESS)
}

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

fn text(config: &Config, servers: &[String]) -> anyhow::Result<String> {
    kedge_cluster::admin_kubeconfig(&config.pki_dir(), servers).map_err(|error| {
        let denied = matches!(&error, kedge_cluster::Error::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
        let hint = if denied {
            "the keys are readable by root only; put sudo before the command"
        } else {
            "there is no cluster in this data folder yet; run kedge install"
        };
        anyhow::Error::new(error).context(hint)
    })
}

/// The address that the running node announces; this machine's loopback when none is known.
fn announced(config: &Config) -> String {
    let address = config
        .node_ips
        .first()
        .copied()
        .or_else(|| {
            let status = status::ask(&config.status_socket()).ok().flatten()?;
            status.addresses.iter().find_map(|address| address.parse().ok())
        })
        .unwrap_or_else(|| preflight::local_address(config.bind_address()));
    url(address, config.port)
}

fn url(address: IpAddr, port: u16) -> String {
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
