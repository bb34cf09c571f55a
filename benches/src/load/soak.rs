//! A node with the addons dns and metrics, left alone for half an hour: memory, processor time, bytes
//! written and wake-ups, by process and, in Kedge itself, by thread.
//!
//! Everything is read from /proc twice, and once a minute between, so that threads which come and go are
//! counted; the driver sleeps otherwise. A wake-up is a voluntary context switch: a thread that gave its
//! processor up was woken again. Involuntary ones say how busy the machine is, not the node.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kedge_tests::{Cluster, processes_naming};

use crate::process;
use crate::table::Table;

/// Between two looks: long enough that looking is no load.
const LOOK: Duration = Duration::from_secs(60);
/// Before the first look: what the start left to do is not idleness.
const SETTLE: Duration = Duration::from_secs(60);
/// What somebody who looks at an idle board with `top` should see.
const WAKE_UPS: f64 = 50.0;

/// Counters that only grow, of a thread.
#[derive(Clone, Copy, Default)]
struct Counters {
    /// Seconds on a processor.
    cpu: f64,
    /// Bytes that reached the block layer.
    written: f64,
    wake_ups: f64,
    preempted: f64,
}

impl Counters {
    fn add(&mut self, now: Self, before: Self) {
        self.cpu += now.cpu - before.cpu;
        self.written += now.written - before.written;
        self.wake_ups += now.wake_ups - before.wake_ups;
        self.preempted += now.preempted - before.preempted;
    }
}

/// A process of the node: its id and what it is there for.
struct Member {
    pid: u32,
    role: String,
}

/// What was counted, by role and thread name.
#[derive(Default)]
struct Book {
    last: BTreeMap<(u32, u32), Counters>,
    threads: BTreeMap<(String, String), Counters>,
    /// The largest resident memory in MiB by role, summed over a role's processes at one look.
    resident: BTreeMap<String, f64>,
    peak: BTreeMap<String, f64>,
    processes: BTreeMap<String, usize>,
}

impl Book {
    /// Reads everything; what grew since the last look is added. The first look adds nothing.
    fn look(&mut self, members: &[Member]) {
        let first = self.last.is_empty();
        self.resident.clear();
        self.processes.clear();
        for member in members {
            let memory = process::resident(member.pid).unwrap_or_default();
            *self.resident.entry(member.role.clone()).or_default() += memory;
            *self.processes.entry(member.role.clone()).or_default() += 1;
            for (thread, name, now) in threads(member.pid) {
                let before = self.last.insert((member.pid, thread), now);
                if first {
                    continue;
                }
                let row = self.threads.entry((member.role.clone(), name)).or_default();
                row.add(now, before.unwrap_or_default());
            }
        }
        for (role, memory) in &self.resident {
            let peak = self.peak.entry(role.clone()).or_default();
            *peak = peak.max(*memory);
        }
    }

    fn of_role(&self, role: &str) -> Counters {
        let mut sum = Counters::default();
        for (_, counters) in self.threads.iter().filter(|((owner, _), _)| owner == role) {
            sum.add(*counters, Counters::default());
        }
        sum
    }
}

/// The threads of a process with their counters; one that ended meanwhile is left out.
fn threads(pid: u32) -> Vec<(u32, String, Counters)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let thread: u32 = entry.file_name().to_str()?.parse().ok()?;
            let folder = format!("/proc/{pid}/task/{thread}");
            let name = fs::read_to_string(format!("{folder}/comm")).ok()?.trim().to_owned();
            let status = format!("{folder}/status");
            let scheduled = fs::read_to_string(format!("{folder}/schedstat")).ok()?;
            let nanoseconds: f64 = scheduled.split_whitespace().next()?.parse().ok()?;
            let counters = Counters {
                cpu: nanoseconds / 1e9,
                written: process::field(&format!("{folder}/io"), "write_bytes:").ok()?,
                wake_ups: process::field(&status, "voluntary_ctxt_switches:").ok()?,
                preempted: process::field(&status, "nonvoluntary_ctxt_switches:").ok()?,
            };
            Some((thread, group(&name), counters))
        })
        .collect()
}

/// Threads of a pool are one row.
fn group(name: &str) -> String {
    name.trim_end_matches(|letter: char| letter.is_ascii_digit() || matches!(letter, '-' | '#' | ':'))
        .to_owned()
}

/// Kedge, its containerd, the shims and what runs in the pods.
fn members(kedge: u32, folder: &Path) -> Vec<Member> {
    let parents = parents();
    let mut members = vec![Member { pid: kedge, role: "kedge".to_owned() }];
    for process in processes_naming(folder) {
        let Ok(pid) = u32::try_from(process.pid) else { continue };
        let program = process.command.split(' ').next().unwrap_or_default();
        let program = program.rsplit('/').next().unwrap_or_default();
        if program.starts_with("containerd-shim") {
            members.push(Member { pid, role: "containerd-shim".to_owned() });
            for (child, _) in parents.iter().filter(|(_, parent)| **parent == pid) {
                members.push(Member { pid: *child, role: contained(*child) });
            }
        } else if program == "containerd" {
            members.push(Member { pid, role: "containerd".to_owned() });
        }
    }
    members
}

/// What a container's process is: the word after the program's name where there is one.
fn contained(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut words = text.split('\0');
    let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
    match words.next() {
        Some(word) if program == "kedge" && !word.is_empty() => format!("pod: {word}"),
        _ => format!("pod: {program}"),
    }
}

fn parents() -> BTreeMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect()
}

/// Enables the addons, waits until all is healthy, then looks for `minutes`.
pub(crate) async fn measure(cluster: &Cluster, minutes: u64, table: &mut Table) -> anyhow::Result<()> {
    cluster.kedge(&["enable", "dns", "metrics"]).ok();
    for deployment in ["kube-dns", "metrics-server"] {
        let name = format!("deployment/{deployment}");
        let out = cluster.kubectl(&["-n", "kube-system", "rollout", "status", &name, "--timeout=300s"]);
        if out.code != 0 {
            bail!("{deployment} does not become healthy: {}", out.stderr);
        }
    }
    tokio::time::sleep(SETTLE).await;

    let pid = cluster.pid();
    let mut book = Book::default();
    // Children that were waited for are in no thread: probes that run programs, runc.
    let children = process::children(pid)?;
    let before = sizes(&cluster.dir().join("log"));
    let start = Instant::now();
    book.look(&members(pid, cluster.dir()));
    let end = start + Duration::from_secs(minutes * 60);
    while Instant::now() < end {
        tokio::time::sleep(LOOK.min(end.saturating_duration_since(Instant::now()))).await;
        book.look(&members(pid, cluster.dir()));
    }
    let took = start.elapsed().as_secs_f64();
    if !book.processes.contains_key("pod: metrics") || !book.processes.contains_key("pod: dns") {
        bail!("the addons' processes were not found: {:?}", book.processes);
    }
    let logged = sizes(&cluster.dir().join("log")) - before;
    report(&book, took, table);
    let children = process::children(pid)? - children;
    table.note("processor time of kedge's ended children", format!("{children:.2} s"));
    table.note("the node's log grew", format!("{:.0} KB an hour", logged / 1e3 / took * 3600.0));
    Ok(())
}

fn report(book: &Book, took: f64, table: &mut Table) {
    let an_hour = |bytes: f64| bytes / 1e6 / took * 3600.0;
    let kedge = book.of_role("kedge");
    let title = format!("{:.0} idle minutes with dns and metrics", took / 60.0);
    let peak = |role: &str| book.peak.get(role).copied().unwrap_or_default();
    table.at_most(&format!("{title}: kedge, memory at most (RSS)"), peak("kedge"), "MiB", 40.0);
    table.at_most(&format!("{title}: kedge, CPU"), kedge.cpu / took * 100.0, "% of a core", 1.0);
    table.at_most(&format!("{title}: kedge, disk writes"), an_hour(kedge.written), "MB an hour", 5.0);
    table.at_most(&format!("{title}: kedge, wake-ups"), kedge.wake_ups / took, "a second", WAKE_UPS);
    let mut all = Counters::default();
    for counters in book.threads.values() {
        all.add(*counters, Counters::default());
    }
    table.at_most(&format!("{title}: all processes, CPU"), all.cpu / took * 100.0, "% of a core", 4.4);
    table.at_most(&format!("{title}: all processes, disk writes"), an_hour(all.written), "MB an hour", 176.0);
    let memory: f64 = book.peak.values().sum();
    table.note(&format!("{title}: all processes, memory (RSS)"), format!("{memory:.0} MiB"));

    table.heading(&["process", "memory at the end, at most", "CPU", "written", "wake-ups a second"]);
    for (role, count) in &book.processes {
        let sum = book.of_role(role);
        let memory = book.resident.get(role).copied().unwrap_or_default();
        table.line(&[
            format!("{role} ({count})"),
            format!("{memory:.1}, {:.1} MiB", peak(role)),
            format!("{:.2} s, {:.3} %", sum.cpu, sum.cpu / took * 100.0),
            format!("{:.0} KB, {:.2} MB an hour", sum.written / 1e3, an_hour(sum.written)),
            format!("{:.2} (preempted {:.2})", sum.wake_ups / took, sum.preempted / took),
        ]);
    }
    table.heading(&["thread of kedge", "CPU", "written", "share of what is written", "wake-ups a second"]);
    let mut threads: Vec<_> = book.threads.iter().filter(|((role, _), _)| role == "kedge").collect();
    threads.sort_by(|left, right| right.1.wake_ups.total_cmp(&left.1.wake_ups));
    for ((_, name), sum) in threads {
        let share = if kedge.written > 0.0 { sum.written / kedge.written * 100.0 } else { 0.0 };
        table.line(&[
            name.clone(),
            format!("{:.2} s, {:.3} %", sum.cpu, sum.cpu / took * 100.0),
            format!("{:.0} KB, {:.2} MB an hour", sum.written / 1e3, an_hour(sum.written)),
            format!("{share:.0} %"),
            format!("{:.2}", sum.wake_ups / took),
        ]);
    }
}

/// The bytes of the files of a folder.
fn sizes(folder: &Path) -> f64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0.0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|file| file.len() as f64).sum()
}

/// `--minutes N` among the words, and the words without it.
pub(crate) fn minutes(words: &mut Vec<String>) -> anyhow::Result<u64> {
    let Some(at) = words.iter().position(|word| word == "--minutes") else { return Ok(30) };
    let value = words.get(at + 1).context("--minutes needs a number")?;
    let minutes = value.parse().with_context(|| format!("--minutes {value} is no number"))?;
    if minutes == 0 {
        bail!("--minutes must be at least 1");
    }
    words.drain(at..=at + 1);
    Ok(minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_one_row() {
        for (name, row) in [
            ("tokio-rt-worker", "tokio-rt-worker"),
            ("worker-12", "worker"),
            ("containerd", "containerd"),
            ("kedge:3", "kedge"),
        ] {
            assert_eq!(group(name), row);
        }
    }

    #[test]
    fn what_grew_between_looks_is_counted_once() {
        let own = std::process::id();
        let members = [Member { pid: own, role: "own".to_owned() }];
        let mut book = Book::default();
        book.look(&members);
        assert!(book.threads.is_empty(), "the first look is where counting begins");
        let handle = std::thread::spawn(|| {
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::park();
        });
        while book.of_role("own").wake_ups < 20.0 {
            std::thread::sleep(Duration::from_millis(5));
            book.look(&members);
        }
        assert!(book.peak["own"] > 0.5);
        handle.thread().unpark();
        handle.join().unwrap();
    }

    #[test]
    fn minutes_are_a_number() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut given = words("soak --minutes 5 idle");
        assert_eq!(minutes(&mut given).unwrap(), 5);
        assert_eq!(given, words("soak idle"));
        assert_eq!(minutes(&mut words("soak")).unwrap(), 30);
        for wrong in ["soak --minutes", "soak --minutes x", "soak --minutes 0"] {
            assert!(minutes(&mut words(wrong)).is_err(), "{wrong}");
        }
    }
}
