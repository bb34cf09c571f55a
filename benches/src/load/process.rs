//! What /proc says about the process under test.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// An idle node's use of the machine.
pub(crate) struct Idle {
    pub(crate) cpu_percent: f64,
    /// Bytes that reached the block layer, in units of 1,000,000.
    pub(crate) written_mib_an_hour: f64,
}

/// Resident memory in MiB.
pub(crate) fn resident(pid: u32) -> anyhow::Result<f64> {
    Ok(field(&format!("/proc/{pid}/status"), "VmRSS:")? / 1024.0)
}

/// Looks at the process for a while.
pub(crate) async fn idle(pid: u32, time: Duration) -> anyhow::Result<Idle> {
    let io = format!("/proc/{pid}/io");
    let (cpu, written, start) = (cpu_seconds(pid)?, field(&io, "write_bytes:")?, Instant::now());
    tokio::time::sleep(time).await;
    let took = start.elapsed().as_secs_f64();
    Ok(Idle {
        cpu_percent: (cpu_seconds(pid)? - cpu) / took * 100.0,
        written_mib_an_hour: (field(&io, "write_bytes:")? - written) / 1e6 / took * 3600.0,
    })
}

/// Processor seconds (user and system) of the server and of this driver.
#[derive(Clone, Copy)]
pub(crate) struct Spent {
    server: f64,
    driver: f64,
}

impl Spent {
    /// Since the start of each.
    pub(crate) fn now(server: u32) -> anyhow::Result<Self> {
        Ok(Self { server: cpu_seconds(server)?, driver: cpu_seconds(std::process::id())? })
    }

    /// What came after `before`, for the table.
    pub(crate) fn since(self, before: Self) -> String {
        format!("server {:.2}, driver {:.2}", self.server - before.server, self.driver - before.driver)
    }
}

/// User and system time in seconds. The kernel counts in hundredths of a second here, whatever its own clock is.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    times(pid, 11)
}

/// The same of its children that ended and were waited for.
pub(crate) fn children(pid: u32) -> anyhow::Result<f64> {
    times(pid, 13)
}

fn times(pid: u32, first: usize) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let rest = text.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    let (user, system) =
        ticks(first).zip(ticks(first + 1)).with_context(|| format!("{path} has no times"))?;
    Ok((user + system) / 100.0)
}

/// The first number of a line of a file of /proc.
pub(crate) fn field(path: &str, name: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path} has no {name}"))
}
