//! The addons of this node's cluster: their manager, and what commands and the starting node share.

pub(crate) mod flannel;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use kedge_addons::{Catalog, Cluster, Error, Manager, Repositories, State};

use crate::config::{Config, joined};
use crate::failure::Failure;

/// What every cluster needs; `--without` leaves one out.
pub(crate) const BASIC_ADDONS: [&str; 2] = ["dns", flannel::NAME];

/// The manager of this node's cluster, with a client for its API.
pub(crate) fn manager(config: &Config, client: kube::Client) -> anyhow::Result<Manager> {
    // A node that joined has its cluster's settings, whatever its own configuration says.
    let mut shared = config.clone();
    if let Some(admitted) = kedge_cluster::Admitted::read(&config.pki_dir())? {
        crate::node::shared::adopt(&mut shared, &admitted.config)?;
    }
    Ok(Manager::new(client, catalog(config)?, cluster(&shared)))
}

/// What manifests may know.
fn cluster(config: &Config) -> Cluster {
    Cluster {
        version: kedge_base::VERSION.to_owned(),
        cluster_dns: config.cluster_dns.to_string(),
        cluster_domain: config.cluster_domain.clone(),
        pod_cidr: joined(&config.pod_cidrs),
        data_dir: config.data_dir.display().to_string(),
    }
}

/// Embedded addons, and those of repositories that were added on this node.
pub(crate) fn catalog(config: &Config) -> anyhow::Result<Catalog> {
    let mut catalog = Catalog::embedded()?;
    for problem in repositories(config).load(&mut catalog) {
        tracing::warn!(error = %kedge_base::Chain(&problem), "a repository of addons is left out");
    }
    Ok(catalog)
}

pub(crate) fn repositories(config: &Config) -> Repositories {
    Repositories::new(config.data_dir.join("addons"))
}

/// `NAME[:ARGUMENTS]` each, with the arguments split; refuses names and arguments that no addon has.
pub(crate) fn parse(
    catalog: &Catalog,
    words: &[String],
) -> Result<Vec<(String, BTreeMap<String, String>)>, Failure> {
    words
        .iter()
        .map(|word| {
            let (name, arguments) = word.split_once(':').unwrap_or((word, ""));
            let addon = catalog.get(name).map_err(usage)?;
            let given = addon.split_arguments(arguments).map_err(usage)?;
            addon.values(&given).map_err(usage)?;
            Ok((name.to_owned(), given))
        })
        .collect()
}

/// Enables the addons that the configuration names, one after another, from inside the node.
///
/// # Errors
/// The first that is unknown or does not become healthy.
pub(crate) async fn enable_all(
    manager: &Manager,
    words: &[String],
    limit: Duration,
    progress: &mut (dyn FnMut(&str) + Send),
) -> anyhow::Result<()> {
    let wanted = parse(manager.catalog(), words).map_err(Failure::into_error)?;
    manager.check(&wanted).await.context("look at the addons")?;
    for (name, given) in wanted {
        if name == flannel::NAME {
            let said = &mut |text: &str| progress(&format!("enabling {name}: {text}"));
            flannel::enable(manager, &given, limit, said).await.map_err(Failure::into_error)?;
            continue;
        }
        if manager.is_enabled(&name).await.context("ask for the addons")? {
            continue;
        }
        manager
            .enable(&name, &given, limit, &mut |text| progress(&format!("enabling {name}: {text}")))
            .await
            .with_context(|| format!("enable {name}"))?;
    }
    Ok(())
}

/// For people.
pub(crate) fn word(state: State) -> &'static str {
    match state {
        State::Enabled => "enabled",
        State::Disabled => "disabled",
        State::Unhealthy => "unhealthy",
    }
}

/// A wrong name or argument is wrong usage, everything else a failure.
pub(crate) fn usage(error: Error) -> Failure {
    match error {
        Error::Unknown { .. } | Error::Argument { .. } | Error::BuiltIn { .. } => {
            Failure::Usage(error.into())
        }
        other => Failure::Failed(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_dns_addon_takes_its_server_understands() {
        let catalog = Catalog::embedded().unwrap();
        for (word, accepted) in [
            ("dns:192.0.2.1,192.0.2.2:5353,[2001:db8::53]:5353", true),
            ("dns:192.0.2.1,foo", false),
            ("dns:0.0.0.0", false),
            ("dns:stub_domains=corp.example=192.0.2.53;lab.example.=192.0.2.54:5353", true),
            ("dns:stub_domains=corp..example=192.0.2.53", false),
            ("dns:stub_domains==192.0.2.53", false),
        ] {
            let (_, text) = word.split_once(':').unwrap();
            let understood = match text.strip_prefix("stub_domains=") {
                Some(domains) => kedge_network::dns::parse_stub_domains(domains).is_ok(),
                None => kedge_network::dns::parse_servers(text).is_ok(),
            };
            assert_eq!(understood, accepted, "{word}");
            assert_eq!(parse(&catalog, &[word.to_owned()]).is_ok(), accepted, "{word}");
        }
    }
}
