//! `kedge dns`: the cluster's DNS server, as the dns addon runs it in a pod.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_network::dns;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// How long what is under way may take when the server ends.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The server's flags; empty lists are what an addon's empty arguments become.
#[derive(Debug, clap::Args)]
pub(crate) struct DnsArgs {
    /// The cluster's domain
    #[arg(long, default_value = "cluster.local")]
    domain: String,
    /// Servers for other names, separated by commas; the pod's own when there are none
    #[arg(long, default_value = "")]
    upstream: String,
    /// Domains with servers of their own: DOMAIN=IP[,IP][;DOMAIN=IP]
    #[arg(long, default_value = "")]
    stub_domains: String,
    /// Where to answer, by UDP and TCP
    #[arg(long, default_value = "[::]:53")]
    listen: Vec<SocketAddr>,
    #[arg(long, default_value = "[::]:8080")]
    health: SocketAddr,
    #[arg(long, default_value = "[::]:8181")]
    ready: SocketAddr,
    #[arg(long, default_value = "[::]:9153")]
    metrics: SocketAddr,
    /// Files that name the servers for other names; the first useful one counts
    #[arg(long)]
    resolv_conf: Vec<PathBuf>,
    /// Seconds that the cluster's records may be remembered
    #[arg(long, default_value_t = 5)]
    ttl: u32,
    /// How many answers of other servers are remembered
    #[arg(long, default_value_t = 4096)]
    cache: usize,
    /// Seconds to go on after being told to stop
    #[arg(long, default_value_t = 5)]
    lameduck: u64,
    /// The pod's addresses, separated by commas
    #[arg(long, env = "POD_IPS", default_value = "", hide = true)]
    addresses: String,
}

impl DnsArgs {
    fn config(self) -> anyhow::Result<dns::Config> {
        let mut config = dns::Config {
            domain: self.domain,
            listen: self.listen,
            health: Some(self.health),
            ready: Some(self.ready),
            metrics: Some(self.metrics),
            upstreams: dns::parse_servers(&self.upstream)?,
            stub_domains: dns::parse_stub_domains(&self.stub_domains)?,
            ttl: self.ttl,
            cache_entries: self.cache,
            lameduck: Duration::from_secs(self.lameduck),
            ..dns::Config::default()
        };
        if !self.resolv_conf.is_empty() {
            config.resolv_conf = self.resolv_conf;
        }
        for address in self.addresses.split(',').filter(|address| !address.is_empty()) {
            let address: IpAddr = address.parse().with_context(|| format!("POD_IPS: {address:?}"))?;
            config.addresses.push(address);
        }
        Ok(config)
    }
}

/// Serve until SIGTERM.
pub(crate) fn run(args: DnsArgs) -> Result<ExitCode, Failure> {
    crate::memory::small_pages();
    crate::log::init();
    let config = args.config().map_err(Failure::Usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve(config))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: dns::Config) -> anyhow::Result<()> {
    let tasks = Tasks::new("dns");
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let client = kedge_client::https::in_cluster().context("reach the API server")?;
    let informers = Informers::new(client, &tasks);
    let server = dns::serve(config, &informers, &tasks).await.context("serve names")?;
    tasks.spawn_until_stopped("memory of the start", crate::memory::trim_after_start());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.stop().await;
    tasks.shutdown(STOP_LIMIT).await;
    Ok(())
}
