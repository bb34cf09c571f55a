//! Processes as /proc shows them: identity that survives the reuse of process ids, and families.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that is really the one meant: id and start time together are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Clock ticks since boot (field 22 of /proc/PID/stat).
    started: u64,
}

/// The third line of the pid file of a process that was told to stop.
const STOPPING: &str = "stopping";

/// A line of the process table.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) process: Process,
    pub(crate) parent: i32,
    /// The arguments, separated by spaces.
    pub(crate) command: String,
}

impl Process {
    /// The process with this id, when there is one.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, _, started) = parse_stat(&stat)?;
        (state != 'Z').then_some(Self { pid, started })
    }

    /// This process.
    pub(crate) fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Is it still there (and not another one with its id)?
    pub(crate) fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Read a pid file written by [`Process::record`]; `None` when the process is gone.
    pub(crate) fn recorded(file: &Path) -> io::Result<Option<Self>> {
        Ok(Self::named(file)?.filter(|process| process.alive()))
    }

    /// The process that a pid file names, whatever became of it.
    fn named(file: &Path) -> io::Result<Option<Self>> {
        let Some(bytes) = kedge_base::read_optional(file)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        let pid = lines.next().and_then(|line| line.trim().parse().ok());
        let started = lines.next().and_then(|line| line.trim().parse().ok());
        Ok(pid.zip(started).map(|(pid, started)| Self { pid, started }))
    }

    /// Remove its pid file, unless it is another one's by now.
    pub(crate) fn forget(self, file: &Path) -> io::Result<()> {
        if Self::named(file)? == Some(self) { fs::remove_file(file) } else { Ok(()) }
    }

    /// Write the pid file: the id on the first line, the start time on the second.
    pub(crate) fn record(self, file: &Path) -> io::Result<()> {
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        self.write(file, "")
    }

    /// Note in its pid file that it has been told to stop, for whoever finds it still there.
    pub(crate) fn record_stopping(self, file: &Path) -> io::Result<()> {
        self.write(file, &format!("{STOPPING}\n"))
    }

    /// The node and commands may write at the same time, each a file of its own until it is whole.
    fn write(self, file: &Path, more: &str) -> io::Result<()> {
        let own = file.with_extension(format!("{}.new", std::process::id()));
        fs::write(&own, format!("{}\n{}\n{more}", self.pid, self.started))?;
        fs::rename(own, file)
    }

    /// Was the process of this pid file told to stop?
    pub(crate) fn is_stopping(file: &Path) -> io::Result<bool> {
        let Some(bytes) = kedge_base::read_optional(file)? else { return Ok(false) };
        Ok(String::from_utf8_lossy(&bytes).lines().nth(2) == Some(STOPPING))
    }

    /// Send a signal; a process that is gone is no error.
    pub(crate) fn signal(self, signal: Signal) -> io::Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Wait until it is gone; false when it is still there after `limit`.
    pub(crate) fn wait_gone(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

/// All processes of the machine by id.
pub(crate) fn table() -> BTreeMap<i32, Entry> {
    let mut table = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return table };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((state, parent, started)) = parse_stat(&stat) else { continue };
        if state == 'Z' {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        table.insert(pid, Entry { process: Process { pid, started }, parent, command });
    }
    table
}

/// `roots` and everything below them, children before parents.
pub(crate) fn family(table: &BTreeMap<i32, Entry>, roots: &[i32]) -> Vec<Process> {
    let mut order: Vec<i32> = roots.iter().copied().filter(|pid| table.contains_key(pid)).collect();
    order.dedup();
    let mut next = 0;
    while next < order.len() {
        let parent = order[next];
        next += 1;
        for (pid, entry) in table {
            if entry.parent == parent && !order.contains(pid) {
                order.push(*pid);
            }
        }
    }
    order.reverse();
    order.iter().map(|pid| table[pid].process).collect()
}

/// State, parent and start time. The command's name stands in parentheses and may hold anything.
fn parse_stat(stat: &str) -> Option<(char, i32, u64)> {
    let rest = &stat[stat.rfind(')')? + 1..];
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_is_no_trap() {
        let stat = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9";
        assert_eq!(parse_stat(stat), Some(('S', 7, 123_456)));
        assert_eq!(parse_stat("42 (cut"), None);
    }

    #[test]
    fn a_pid_file_of_another_process_with_the_same_id_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run/kedge.pid");
        let own = Process::own().unwrap();
        own.record(&file).unwrap();
        assert_eq!(Process::recorded(&file).unwrap(), Some(own));
        assert!(!Process::is_stopping(&file).unwrap());
        own.record_stopping(&file).unwrap();
        assert_eq!(Process::recorded(&file).unwrap(), Some(own));
        assert!(Process::is_stopping(&file).unwrap());
        Process { pid: own.pid, started: own.started + 1 }.record(&file).unwrap();
        assert_eq!(Process::recorded(&file).unwrap(), None);
        assert_eq!(Process::recorded(&dir.path().join("none")).unwrap(), None);
    }

    #[test]
    fn families_come_children_first() {
        let entry =
            |pid, parent| Entry { process: Process { pid, started: 1 }, parent, command: String::new() };
        let table: BTreeMap<i32, Entry> = [(1, 0), (10, 1), (11, 10), (12, 11), (20, 1)]
            .into_iter()
            .map(|(p, q)| (p, entry(p, q)))
            .collect();
        let pids: Vec<i32> = family(&table, &[10, 99]).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [12, 11, 10]);
    }

    #[test]
    fn this_test_is_in_the_table() {
        let own = Process::own().unwrap();
        assert_eq!(table()[&own.pid].process, own);
    }
}
