//! The scheduler: decides on which node each pod runs, with the names and semantics of upstream's
//! default profile. It talks to any conformant API server through `kedge-client` and nothing else.
//!
//! One task owns all state ([`scheduler`]). Informers send it changes; between cycles it applies
//! them to the cache and the queue, and in a cycle it works on the cache directly, without locks,
//! copies or awaits. Requests (bindings, conditions, evictions) run as tasks of their own.

mod binding;
mod cache;
mod cycle;
mod framework;
mod lookup;
mod node;
mod plugins;
mod pod;
mod preemption;
mod queue;
mod resources;
mod scheduler;
mod selector;
#[cfg(test)]
mod testing;

use kedge_base::Tasks;
use kedge_client::Informers;

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods whose `spec.schedulerName` is this are placed; also the events' component.
    pub scheduler_name: String,
    /// How many bindings may be under way at once.
    pub max_bindings: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".to_owned(), max_bindings: 64 }
    }
}

/// The scheduler could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting makes no sense.
    #[error("invalid scheduler configuration: {0}")]
    Config(&'static str),
}

/// Starts the scheduler as tasks of `tasks`. Where there may be more than one scheduler of this name, whoever
/// calls leads the store, and stops `tasks` when it does not any more.
///
/// # Errors
/// When the configuration is not valid.
pub fn start(config: Config, informers: &Informers, tasks: &Tasks) -> Result<(), Error> {
    if config.scheduler_name.is_empty() {
        return Err(Error::Config("the scheduler's name is empty"));
    }
    if config.max_bindings == 0 {
        return Err(Error::Config("at least one binding has to be allowed at a time"));
    }
    scheduler::spawn(config, informers.clone(), tasks.clone());
    Ok(())
}
