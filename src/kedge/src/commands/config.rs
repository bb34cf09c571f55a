//! `kedge config`: the administrator's kubeconfig, and this node's settings.

use std::process::ExitCode;

use crate::cli::{ConfigArgs, ConfigCommand};
use crate::config::Config;
use crate::failure::Failure;
use crate::{kubeconfig, output, preflight, status};

/// Print the kubeconfig with the URLs given, or with the address that other machines can reach.
pub(crate) fn run(config: &Config, args: &ConfigArgs) -> Result<ExitCode, Failure> {
    if let Some(ConfigCommand::Show { printed }) = &args.command {
        super::print(printed.format, &config.show(), &config.effective())?;
        return Ok(ExitCode::SUCCESS);
    }
    let servers = args.server.as_slice();
    if let Some(wrong) = servers.iter().find(|url| !url.starts_with("https://")) {
        let what = format!("--server {wrong:?} is not a URL such as https://192.0.2.1:6443");
        return Err(Failure::Usage(anyhow::Error::msg(what)));
    }
    let servers = if servers.is_empty() { vec![announced(config)?] } else { servers.to_vec() };
    output::write(&kubeconfig::text(config, &servers)?);
    Ok(ExitCode::SUCCESS)
}

/// The cluster's own address if it has one, else that which the running node announces; this machine's loopback
/// when none is known.
fn announced(config: &Config) -> anyhow::Result<String> {
    let mut shared = config.clone();
    match kedge_cluster::Admitted::read(&config.pki_dir())? {
        Some(joined) => crate::node::shared::adopt(&mut shared, &joined.config)?,
        None => drop(crate::node::left::pass_over(&mut shared)?),
    }
    let mut known = shared.virtual_addresses.iter().chain(&config.node_ips);
    let address = known
        .next()
        .copied()
        .or_else(|| {
            let status = status::ask(&config.status_socket()).ok().flatten()?;
            status.addresses.iter().find_map(|address| address.parse().ok())
        })
        .unwrap_or_else(|| preflight::local_address(config.bind_address()));
    Ok(kubeconfig::url(address, config.port))
}
