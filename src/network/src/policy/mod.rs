//! NetworkPolicies: which connections the pods of this node may make and take, in an nftables table of
//! their own. The kernel checks a whole table with every new rule, so what changes with pods' labels stays
//! apart from the Services.
//!
//! `build` turns policies, pods and namespaces into the wanted content, `content` says what has to change
//! for it, `run` writes it and heals the table. A cluster without policies has no table, and its nodes
//! follow neither all pods nor all namespaces.
//!
//! Semantics are those of networking.k8s.io/v1 (KEP-2079 for port ranges). What the API leaves open:
//! connections that exist already go on when a policy comes; a node always reaches its own pods and is
//! reached by them; pods of the host's network are neither isolated nor peers; a new pod is isolated once
//! its address is known, and is nobody's peer before.

mod build;
#[cfg(test)]
mod build_tests;
mod content;
mod rules;
mod run;

use std::sync::Arc;

use kedge_base::Tasks;
use kedge_client::Informers;
use tokio::sync::{Mutex, watch};

use crate::Error;
use run::{Kernel, Sources};

/// What is needed to know which pods are this node's.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// As in `spec.nodeName`.
    pub node_name: String,
    /// The service proxy's table; the policies' is named after it.
    pub table_name: String,
}

/// The policies' table beside the service proxy's.
pub(crate) fn table_name(proxy_table: &str) -> String {
    format!("{proxy_table}-policies")
}

/// Policies at work. They stop with the tasks they were started in; the table stays, so that pods are
/// isolated while Kedge restarts (see [`crate::cleanup`]).
#[derive(Debug, Clone)]
pub struct Policies {
    writes: watch::Receiver<u64>,
}

impl Policies {
    /// Returns when the kernel was brought up to date for the first time, or the policies have stopped.
    pub async fn ready(&self) {
        let mut writes = self.writes.clone();
        let _ = writes.wait_for(|writes| *writes > 0).await;
    }
}

/// Start to follow NetworkPolicies and, when there are some, Pods and Namespaces.
///
/// # Errors
/// When the kernel offers no nftables.
pub fn start_policies(
    config: &PolicyConfig,
    informers: &Informers,
    tasks: &Tasks,
) -> Result<Policies, Error> {
    let kernel = Kernel::open(table_name(&config.table_name))
        .map_err(|source| Error::netlink("open a netlink socket for nftables", source))?;
    let sources = Sources::new(config.node_name.clone(), informers.clone());
    let state = Arc::new(Mutex::new((kernel, sources)));
    let (sender, writes) = watch::channel(0);
    tasks.spawn_restarting("network policies", move || run::run(state.clone(), sender.clone()));
    Ok(Policies { writes })
}
