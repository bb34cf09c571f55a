//! The whole text, from recorded files of both hierarchies.

use std::collections::HashMap;

use super::*;
use crate::cgroup::recorded::{split_machine, unified_machine};

const CONTAINER: &str = "kubepods/burstable/podu/c1";

fn sample<'a>(text: &'a str, series: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
}

/// One head before each family, all of a family together, and no series twice.
fn check(text: &str) {
    let (mut told, mut series) = (HashSet::new(), HashSet::new());
    let mut kinds = HashMap::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            assert_eq!(name, current, "the help comes before the type");
            kinds.insert(name, kind);
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            current = rest.split(' ').next().expect("a name");
            assert!(told.insert(current), "{current} has two heads");
        } else {
            let (one, value) = line.rsplit_once(' ').expect("a value");
            assert_eq!(one.split('{').next(), Some(current), "{line} stands in another family");
            assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
            assert!(series.insert(one), "{one} is told twice");
        }
    }
    for (name, kind) in kinds {
        // cAdvisor's own exceptions from the rule.
        let counts =
            name.ends_with("_failcnt") || (name.ends_with("_total") && name != "container_fs_inodes_total");
        assert_eq!(kind == "counter", counts, "{name}");
    }
}

#[test]
fn a_container_its_sandbox_and_the_machine() {
    for unified in [false, true] {
        let dir = tempfile::tempdir().expect("a folder");
        let own = std::process::id();
        let cgroups = if unified {
            unified_machine(dir.path(), CONTAINER, own)
        } else {
            split_machine(dir.path(), CONTAINER, own)
        };
        let of = |path: &str, container: &str| Wanted {
            path: path.into(),
            container: container.into(),
            image: "registry.example/app:1".into(),
            name: "c1".into(),
            namespace: "shop".into(),
            pod: "web-\"0".into(),
            network: container.is_empty(),
            created: Some(1_700_000_000_500_000_000),
        };
        // The files of one group stand for the sandbox too; what is gone is passed over.
        let root = Wanted { network: true, ..Wanted::default() };
        let gone = of("kubepods/burstable/podu/gone", "app");
        let rows = look(&cgroups, &[root, of(CONTAINER, "app"), gone], &[dir.path().to_path_buf()]);
        let mut out = Exposition::default();
        write(&mut out, &rows);
        write_machine(&mut out, &Machine { cpus: 4, memory: 1 << 30, ..Machine::default() });
        let text = out.finish();
        check(&text);
        let labels = "container=\"app\",id=\"/kubepods/burstable/podu/c1\",image=\"registry.example/app:1\",\
                      name=\"c1\",namespace=\"shop\",pod=\"web-\\\"0\"";
        let device = device_name(&mut BTreeMap::new(), "254:0");
        for (name, more, expected) in [
            ("container_cpu_usage_seconds_total", ",cpu=\"total\"", None),
            ("container_cpu_cfs_throttled_periods_total", "", Some("12")),
            ("container_memory_working_set_bytes", "", Some("1048576")),
            ("container_memory_failures_total", ",failure_type=\"pgfault\",scope=\"hierarchy\"", Some("712")),
            ("container_spec_memory_limit_bytes", "", Some("33554432")),
            ("container_spec_cpu_quota", "", Some("20000")),
            ("container_start_time_seconds", "", Some("1700000000")),
            ("container_fs_writes_bytes_total", &format!(",device=\"{device}\""), Some("8192")),
            ("container_threads", "", Some("3")),
        ] {
            let found = sample(&text, &format!("{name}{{{labels}{more}}}"));
            assert!(
                found.is_some() && (expected.is_none() || found == expected),
                "{name}: {found:?} in {text}"
            );
        }
        assert!(!text.contains("/gone"), "{text}");
        // The root of v1 has no files here, as the recorded group is all there is.
        let root = "{container=\"\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"";
        assert_eq!(
            text.contains(&format!("container_cpu_usage_seconds_total{root},cpu=\"total\"}} 98.0")),
            unified
        );
        assert_eq!(text.contains(&format!("container_fs_limit_bytes{root},device=")), unified);
        let machine = "{boot_id=\"\",machine_id=\"\",system_uuid=\"\"}";
        assert_eq!(sample(&text, &format!("machine_cpu_cores{machine}")), Some("4"));
        assert_eq!(sample(&text, &format!("machine_memory_bytes{machine}")), Some("1073741824"));
    }
}

#[test]
fn networks_are_told_with_the_sandbox_only() {
    let dir = tempfile::tempdir().expect("a folder");
    let cgroups = unified_machine(dir.path(), CONTAINER, std::process::id());
    let with = |network| Wanted { path: CONTAINER.into(), network, ..Wanted::default() };
    let rows = look(&cgroups, &[with(false), with(true)], &[]);
    assert!(rows[0].interfaces.is_empty());
    let own = std::fs::read_to_string("/proc/self/net/dev").expect("read");
    assert_eq!(rows[1].interfaces.len(), interfaces(&own).len());
}

#[test]
fn lines_of_net_dev() {
    let text = "Inter-|   Receive                            |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo: 275523 325 0 0 0 0 0 0 275523 325 0 0 0 0 0 0\n  \
        eth0: 3773804715  109180    1    2    0     0          0         0  6354545   76915    3    4    0     0       0          0\n\
        veth12: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
    assert_eq!(
        interfaces(text),
        [("eth0".to_owned(), [3_773_804_715, 109_180, 1, 2, 6_354_545, 76_915, 3, 4])]
    );
}

#[test]
fn cores_are_counted_once() {
    let dir = tempfile::tempdir().expect("a folder");
    assert_eq!(topology(dir.path()), (None, None));
    for (cpu, socket, core) in
        [("cpu0", "0", "0"), ("cpu1", "0", "0"), ("cpu2", "0", "1"), ("cpu3", "1", "0")]
    {
        let folder = dir.path().join(cpu).join("topology");
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::write(folder.join("physical_package_id"), socket).expect("written");
        std::fs::write(folder.join("core_id"), core).expect("written");
    }
    assert_eq!(topology(dir.path()), (Some(3), Some(2)));
}
