//! Files as kernels have written them, for both kinds of hierarchy.

use std::path::Path;

use super::*;

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let file = dir.join(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        std::fs::write(file, text).expect("written");
    }
}

/// A machine with cgroup v1 and the group `path` of a container with limits (kernel 6.18).
pub(crate) fn split_machine(dir: &Path, path: &str, process: u32) -> Cgroups {
    write(dir, &[("cpu/x", ""), ("memory/x", "")]);
    let at = |controller: &str, file: &str| format!("{controller}/{path}/{file}");
    let process = format!("{process}\n");
    let files = [
        (at("cpuacct", "cpuacct.usage"), "1531842307\n"),
        (at("cpuacct", "cpuacct.stat"), "user 120\nsystem 31\n"),
        (
            at("cpu", "cpu.stat"),
            "nr_periods 310\nnr_throttled 12\nthrottled_time 904117725\nnr_bursts 0\nburst_time 0\n",
        ),
        (at("cpu", "cpu.shares"), "51\n"),
        (at("cpu", "cpu.cfs_period_us"), "100000\n"),
        (at("cpu", "cpu.cfs_quota_us"), "20000\n"),
        (
            at("memory", "memory.stat"),
            "cache 8192\nrss 401408\nmapped_file 4096\nswap 0\npgfault 700\npgmajfault 3\ninactive_file 1\n\
             total_cache 12288\ntotal_rss 405504\ntotal_mapped_file 8192\ntotal_swap 0\ntotal_pgfault 712\n\
             total_pgmajfault 4\ntotal_inactive_file 4096\ntotal_active_file 8192\n",
        ),
        (at("memory", "memory.usage_in_bytes"), "1052672\n"),
        (at("memory", "memory.max_usage_in_bytes"), "2097152\n"),
        (at("memory", "memory.kmem.usage_in_bytes"), "315392\n"),
        (at("memory", "memory.failcnt"), "5\n"),
        (at("memory", "memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        (at("memory", "memory.limit_in_bytes"), "33554432\n"),
        (at("memory", "memory.memsw.limit_in_bytes"), "33554432\n"),
        (at("memory", "memory.soft_limit_in_bytes"), "9223372036854771712\n"),
        (
            at("blkio", "blkio.throttle.io_service_bytes_recursive"),
            "254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 12288\n254:0 Async 0\n254:0 Discard 0\n\
             254:0 Total 12288\nTotal 12288\n",
        ),
        (
            at("blkio", "blkio.throttle.io_serviced_recursive"),
            "254:0 Read 1\n254:0 Write 2\n254:0 Sync 3\n254:0 Total 3\nTotal 3\n",
        ),
        (at("pids", "pids.current"), "3\n"),
        (at("pids", "pids.max"), "max\n"),
        (at("memory", "cgroup.procs"), process.as_str()),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    write(dir, &files);
    Cgroups::at(dir, "", "kubepods").expect("controllers")
}

/// The same with cgroup v2 (kernel 6.12).
pub(crate) fn unified_machine(dir: &Path, path: &str, process: u32) -> Cgroups {
    write(
        dir,
        &[
            ("cgroup.controllers", "cpuset cpu io memory hugetlb pids\n"),
            ("kubepods/besteffort/cpu.weight", "100\n"),
            ("cpu.stat", "usage_usec 98000000\nuser_usec 50000000\nsystem_usec 48000000\n"),
            ("memory.stat", "anon 300000000\nfile 200000000\ninactive_file 100000000\n"),
        ],
    );
    let at = |file: &str| format!("{path}/{file}");
    let process = format!("{process}\n");
    let files = [
        (
            at("cpu.stat"),
            "usage_usec 1531842\nuser_usec 1200000\nsystem_usec 331842\nnice_usec 0\n\
             core_sched.force_idle_usec 0\nnr_periods 310\nnr_throttled 12\nthrottled_usec 904117\nnr_bursts 0\n\
             burst_usec 0\n",
        ),
        (at("cpu.weight"), "2\n"),
        (at("cpu.max"), "20000 100000\n"),
        (
            at("memory.stat"),
            "anon 405504\nfile 12288\nkernel 315392\nfile_mapped 8192\ninactive_file 4096\nactive_file 8192\n\
             pgfault 712\npgmajfault 4\n",
        ),
        (at("memory.current"), "1052672\n"),
        (at("memory.peak"), "2097152\n"),
        (at("memory.swap.current"), "0\n"),
        (at("memory.events"), "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\noom_group_kill 1\n"),
        (at("memory.max"), "33554432\n"),
        (at("memory.swap.max"), "0\n"),
        (at("memory.min"), "0\n"),
        (
            at("cpu.pressure"),
            "some avg10=0.00 avg60=0.11 avg300=0.05 total=250000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=90\n",
        ),
        (at("io.stat"), "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:3\n"),
        (at("pids.current"), "3\n"),
        (at("pids.max"), "max\n"),
        (at("cgroup.procs"), process.as_str()),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    write(dir, &files);
    Cgroups::at(dir, "", "kubepods").expect("controllers")
}

#[test]
fn both_hierarchies_say_the_same() {
    let path = "kubepods/burstable/podu/c";
    let (v1, v2) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let of_v1 = split_machine(v1.path(), path, 4711).stats(path).expect("a group");
    let of_v2 = unified_machine(v2.path(), path, 4711).stats(path).expect("a group");
    // Figure, v1, v2.
    let cases = [
        (Figure::CpuUsage, Some(1_531_842_307), Some(1_531_842_000)),
        (Figure::CpuUser, Some(1_200_000_000), Some(1_200_000_000)),
        (Figure::CpuSystem, Some(310_000_000), Some(331_842_000)),
        (Figure::Periods, Some(310), Some(310)),
        (Figure::ThrottledPeriods, Some(12), Some(12)),
        (Figure::Throttled, Some(904_117_725), Some(904_117_000)),
        (Figure::CpuSome, None, Some(250_000_000)),
        (Figure::CpuFull, None, Some(90_000)),
        (Figure::Shares, Some(51), Some(28)),
        (Figure::Period, Some(100_000), Some(100_000)),
        (Figure::Quota, Some(20_000), Some(20_000)),
        (Figure::Memory, Some(1_052_672), Some(1_052_672)),
        (Figure::MaxMemory, Some(2_097_152), Some(2_097_152)),
        (Figure::WorkingSet, Some(1_048_576), Some(1_048_576)),
        (Figure::Rss, Some(405_504), Some(405_504)),
        (Figure::Cache, Some(12_288), Some(12_288)),
        (Figure::Mapped, Some(8192), Some(8192)),
        (Figure::Swap, Some(0), Some(0)),
        (Figure::Kernel, Some(315_392), Some(315_392)),
        (Figure::ActiveFile, Some(8192), Some(8192)),
        (Figure::InactiveFile, Some(4096), Some(4096)),
        (Figure::Failures, Some(5), Some(5)),
        (Figure::OomKills, Some(1), Some(1)),
        (Figure::Faults, Some(700), Some(712)),
        (Figure::AllFaults, Some(712), Some(712)),
        (Figure::MajorFaults, Some(3), Some(4)),
        (Figure::AllMajorFaults, Some(4), Some(4)),
        (Figure::MemoryLimit, Some(33_554_432), Some(33_554_432)),
        (Figure::SwapLimit, Some(33_554_432), Some(0)),
        (Figure::Reservation, Some(0), Some(0)),
        (Figure::IoSome, None, None),
        (Figure::Processes, Some(1), Some(1)),
        (Figure::Threads, Some(3), Some(3)),
        (Figure::MaxThreads, Some(0), Some(0)),
    ];
    for (figure, v1, v2) in cases {
        assert_eq!((of_v1.get(figure), of_v2.get(figure)), (v1, v2), "{figure:?}");
    }
    let disk = DiskUse { device: "254:0".into(), read_bytes: 4096, written_bytes: 8192, reads: 1, writes: 2 };
    assert_eq!(
        (of_v1.disks.as_slice(), of_v2.disks.as_slice()),
        ([disk.clone()].as_slice(), [disk].as_slice())
    );
    for stats in [of_v1, of_v2] {
        assert_eq!(stats.process, Some(4711));
        assert!(stats.get(Figure::Created) > Some(1_500_000_000_000_000_000));
    }
}

#[test]
fn the_root_and_what_is_gone() {
    let dir = tempfile::tempdir().expect("a folder");
    let cgroups = unified_machine(dir.path(), "kubepods/podu/c", 1);
    let root = cgroups.stats("").expect("the root");
    assert_eq!(root.get(Figure::CpuUsage), Some(98_000_000_000));
    assert_eq!(root.get(Figure::Memory), Some(500_000_000));
    assert_eq!(root.get(Figure::WorkingSet), Some(400_000_000));
    assert_eq!((root.get(Figure::Quota), root.get(Figure::MemoryLimit)), (None, None));
    assert!(cgroups.stats("kubepods/podu/other").is_none());
}

#[test]
fn without_a_quota_nothing_is_told_of_throttling() {
    for unified in [false, true] {
        let dir = tempfile::tempdir().expect("a folder");
        let path = "kubepods/podu/c";
        let (cgroups, file, none) = if unified {
            (unified_machine(dir.path(), path, 1), "kubepods/podu/c/cpu.max", "max 100000\n")
        } else {
            (split_machine(dir.path(), path, 1), "cpu/kubepods/podu/c/cpu.cfs_quota_us", "-1\n")
        };
        std::fs::write(dir.path().join(file), none).expect("written");
        let stats = cgroups.stats(path).expect("a group");
        for figure in [Figure::Quota, Figure::Periods, Figure::Throttled] {
            assert_eq!(stats.get(figure), None, "{figure:?}");
        }
        assert_eq!(stats.get(Figure::Period), Some(100_000));
    }
}
