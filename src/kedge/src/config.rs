//! The settings of one node: flag over environment over file over default, checked as a whole.
//!
//! The file is a flat YAML map whose keys are the flags' names, so there is one vocabulary to learn. All
//! faults are collected and shown at once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::commands::cluster::parse_duration;

mod networks;

pub(crate) use networks::joined;

/// Where the configuration is looked for when nobody says otherwise; it need not exist.
pub(crate) const DEFAULT_FILE: &str = "/etc/kedge/config.yaml";

/// Every key of the file, which is every global flag but `--config`.
pub(crate) const KEYS: [&str; 21] = [
    "data-dir",
    "run-dir",
    "log-dir",
    "node-name",
    "bind-address",
    "node-ip",
    "port",
    "cluster-port",
    "kubelet-port",
    "pod-cidr",
    "service-cidr",
    "cluster-dns",
    "cluster-domain",
    "table-name",
    "bridge-name",
    "failure-domain",
    "containerd",
    "cni-bin-dir",
    "snapshot-interval",
    "snapshot-keep",
    "registries",
];

/// Settings that were given, as text, by key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings(BTreeMap<&'static str, String>);

impl Settings {
    pub(crate) fn insert(&mut self, key: &'static str, value: String) {
        self.0.insert(key, value);
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(key, value)| (*key, value.as_str()))
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Faults(Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => f.write_str(only),
            all => {
                write!(f, "{} settings are wrong:", all.len())?;
                all.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

/// The checked settings of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file that was read, or would have been.
    pub(crate) file: PathBuf,
    /// Everything that must survive a reboot.
    pub(crate) data_dir: PathBuf,
    /// Sockets and process ids; may vanish at a reboot.
    pub(crate) run_dir: PathBuf,
    /// `kedge.log`, `pods/` and `containers/` are below it.
    pub(crate) log_dir: PathBuf,
    /// The Node object's name.
    pub(crate) node_name: String,
    /// Where listeners bind, when the operator chose it; see [`Config::bind_address`].
    pub(crate) bind_address: Option<IpAddr>,
    /// The addresses to announce that the operator chose, at most one an IP family.
    pub(crate) node_ips: Vec<IpAddr>,
    /// The Kubernetes API.
    pub(crate) port: u16,
    /// Between nodes.
    pub(crate) cluster_port: u16,
    /// The kubelet's HTTPS server.
    pub(crate) kubelet_port: u16,
    /// All pods of the cluster: one network an IP family, the default one first.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// All cluster IPs, likewise.
    pub(crate) service_cidrs: Vec<IpNet>,
    /// What pods get as name server.
    pub(crate) cluster_dns: IpAddr,
    /// For instance `cluster.local`.
    pub(crate) cluster_domain: String,
    /// The nftables table.
    pub(crate) table_name: String,
    /// The bridge of pods.
    pub(crate) bridge_name: String,
    /// The datastore's voters are spread over as many of these as there are.
    pub(crate) failure_domain: Option<String>,
    /// The containerd program, when the operator chose one.
    pub(crate) containerd: Option<PathBuf>,
    /// The folder of CNI plugins, when the operator chose one.
    pub(crate) cni_bin_dir: Option<PathBuf>,
    /// How often a snapshot is kept in [`Config::snapshot_dir`]; `None`: never.
    pub(crate) snapshot_interval: Option<Duration>,
    /// How many of these are kept.
    pub(crate) snapshot_keep: usize,
    /// Mirrors and logins of registries; the file need not exist.
    pub(crate) registries: PathBuf,
}

impl Config {
    /// Read `file` (the default one when `None`; a missing one is empty), put `given` over it and check
    /// everything.
    pub(crate) fn load(file: Option<&Path>, given: &Settings) -> Result<Self, Faults> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // `install --config FILE` may be about to make it; other commands have checked.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Faults(vec![format!("cannot read {}: {error}", path.display())])),
        };
        Self::from_parts(path, &text, given)
    }

    /// The rules of [`Config::load`] without the disk.
    fn from_parts(path: &Path, text: &str, given: &Settings) -> Result<Self, Faults> {
        let mut faults = Vec::new();
        let mut settings = parse_file(path, text, &mut faults);
        for (key, value) in given.iter() {
            settings.insert(key, (value.to_owned(), format!("--{key}")));
        }
        let mut reader = Reader { settings, faults };
        let service_cidrs = reader.networks("service-cidr", [10, 96, 0, 0], 16);
        let config = Self {
            file: path.into(),
            data_dir: reader.folder("data-dir", "/var/lib/kedge"),
            run_dir: reader.folder("run-dir", "/run/kedge"),
            log_dir: reader.folder("log-dir", "/var/log"),
            node_name: reader.node_name(),
            bind_address: reader.optional("bind-address", "an IP address"),
            node_ips: reader.addresses("node-ip"),
            port: reader.port("port", 6443),
            cluster_port: reader.port("cluster-port", 25000),
            kubelet_port: reader.port("kubelet-port", 10250),
            pod_cidrs: reader.networks("pod-cidr", [10, 244, 0, 0], 16),
            cluster_dns: reader.cluster_dns(&service_cidrs),
            service_cidrs,
            cluster_domain: reader.name("cluster-domain", "cluster.local", 253, is_domain),
            table_name: reader.name("table-name", "kedge", 200, is_identifier),
            // Linux cuts interface names at 15 characters.
            bridge_name: reader.name("bridge-name", "kedge0", 15, is_identifier),
            failure_domain: reader.optional("failure-domain", "a name"),
            containerd: reader.optional("containerd", "a path"),
            cni_bin_dir: reader.optional("cni-bin-dir", "a path"),
            snapshot_interval: reader.interval("snapshot-interval", "12h"),
            snapshot_keep: reader.count("snapshot-keep", 5),
            registries: reader.folder("registries", "/etc/kedge/registries.yaml"),
        };
        config.check_together(&mut reader);
        if reader.faults.is_empty() { Ok(config) } else { Err(Faults(reader.faults)) }
    }

    /// Settings that are right one by one but not beside each other.
    fn check_together(&self, reader: &mut Reader) {
        let ports =
            [("port", self.port), ("cluster-port", self.cluster_port), ("kubelet-port", self.kubelet_port)];
        for (index, (key, port)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports[..index].iter().find(|(_, taken)| taken == port) {
                reader.faults.push(format!("{key} and {other} are both {port}; give each its own port"));
            }
        }
        self.check_networks(reader);
        if !self.service_cidrs.iter().any(|services| services.contains(&self.cluster_dns)) {
            // A DNS server outside of the cluster is a choice one can make.
            tracing::debug!(dns = %self.cluster_dns, "the DNS server is not a Service of this cluster");
        }
    }

    /// Keys, certificates, `time-floor`.
    pub(crate) fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// The replicated store's folder.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.data_dir.join("store")
    }

    /// Where this node keeps snapshots.
    pub(crate) fn snapshot_dir(&self) -> PathBuf {
        self.data_dir.join("snapshots")
    }

    /// Archives of images that are imported at start and when they appear.
    pub(crate) fn image_dir(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    /// Where images are unpacked or built on their way.
    pub(crate) fn image_work_dir(&self) -> PathBuf {
        self.data_dir.join("image-work")
    }

    /// Manifests that are applied at start and when they change.
    pub(crate) fn manifest_dir(&self) -> PathBuf {
        self.data_dir.join("manifests")
    }

    /// The administrator's kubeconfig, rewritten at every start.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("kubeconfig")
    }

    /// Process id and start time of the running `kedge run`.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.run_dir.join("kedge.pid")
    }

    /// Where a running node answers status requests.
    pub(crate) fn status_socket(&self) -> PathBuf {
        self.run_dir.join("kedge.sock")
    }

    /// The socket of the containerd that this node runs.
    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.run_dir.join("containerd/containerd.sock")
    }

    /// Where the bridge plugin finds its configuration, and where host-local keeps the pods' addresses.
    pub(crate) fn cni_config_dir(&self) -> PathBuf {
        self.data_dir.join("cni/net.d")
    }

    pub(crate) fn cni_address_dir(&self) -> PathBuf {
        self.data_dir.join("cni/networks")
    }

    /// The log of a node that runs without a service manager.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.log_dir.join(format!("{}.log", self.service_name()))
    }

    /// May this node write its configuration file? Not when it is another node of the machine that merely
    /// reads the default file.
    pub(crate) fn owns_file(&self) -> bool {
        self.file != Path::new(DEFAULT_FILE) || self.service_name() == "kedge"
    }

    /// Did [`persist`] make this node's configuration file? Then `uninstall` takes it away.
    pub(crate) fn made_file(&self) -> bool {
        self.owns_file() && std::fs::read_to_string(&self.file).is_ok_and(|text| text.starts_with(HEADING))
    }

    /// The systemd unit's name without `.service`: `kedge`, or `kedge-X` for a node in another data
    /// folder whose last part is X.
    pub(crate) fn service_name(&self) -> String {
        if self.data_dir == Path::new("/var/lib/kedge") {
            return "kedge".into();
        }
        let last =
            self.data_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let safe: String = last
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
            .collect();
        format!("kedge-{safe}")
    }

    /// The folders CNI plugins are looked for in.
    pub(crate) fn cni_bin_dirs(&self) -> Vec<PathBuf> {
        match &self.cni_bin_dir {
            Some(dir) => vec![dir.clone()],
            None => vec!["/usr/lib/cni".into(), "/opt/cni/bin".into()],
        }
    }

    /// The flags that make another `kedge` see this configuration file.
    pub(crate) fn file_flags(&self) -> Vec<String> {
        if self.file == Path::new(DEFAULT_FILE) {
            Vec::new()
        } else {
            vec!["--config".into(), self.file.to_string_lossy().into_owned()]
        }
    }
}

/// Write `given` into the configuration file so that the service and later commands see it: lines of the
/// file with such a key are replaced, others (comments too) stay.
pub(crate) fn persist(path: &Path, given: &Settings) -> std::io::Result<()> {
    let old = kedge_base::read_optional(path)?.unwrap_or_default();
    let old = String::from_utf8_lossy(&old).into_owned();
    let new = merged(&old, given);
    if new == old {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    kedge_base::write_atomic(path, new.as_bytes(), 0o644)
}

/// The first line of a file that [`persist`] made.
const HEADING: &str =
    "# Settings of this Kedge node; every key is a flag of the same name (kedge run --help).\n";

fn merged(old: &str, given: &Settings) -> String {
    let mut text = String::new();
    if old.is_empty() {
        text.push_str(HEADING);
    }
    for line in old.lines() {
        let key = line.split(':').next().unwrap_or_default();
        if given.get(key).is_none() {
            text.push_str(line);
            text.push('\n');
        }
    }
    for (key, value) in given.iter() {
        text.push_str(&format!("{key}: {}\n", serde_json::Value::from(value)));
    }
    text
}

/// The file's scalars with where they come from, by key.
fn parse_file(path: &Path, text: &str, faults: &mut Vec<String>) -> BTreeMap<&'static str, (String, String)> {
    let mut settings = BTreeMap::new();
    let place = path.display();
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return settings;
    }
    let map: BTreeMap<String, serde_json::Value> = match serde_saphyr::from_str(text) {
        Ok(map) => map,
        Err(error) => {
            faults.push(format!("{place} is not a YAML map of settings: {error}"));
            return settings;
        }
    };
    for (name, value) in map {
        let Some(key) = KEYS.into_iter().find(|key| *key == name) else {
            let hint = nearest(&name).map(|key| format!("; did you mean {key:?}?")).unwrap_or_default();
            faults.push(format!("{place}: unknown key {name:?}{hint}"));
            continue;
        };
        let text = match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::Null => continue,
            _ => {
                faults.push(format!("{place}: {key} takes one value, not a list, a map or true/false"));
                continue;
            }
        };
        settings.insert(key, (text, format!("{place}: {key}")));
    }
    settings
}

/// The valid key that differs least, if it is close.
fn nearest(name: &str) -> Option<&'static str> {
    let wanted = name.replace('_', "-").to_lowercase();
    KEYS.into_iter()
        .map(|key| {
            (distance(&wanted, key).min(distance(&wanted.replace('-', ""), &key.replace('-', ""))), key)
        })
        .filter(|(distance, key)| *distance <= (key.len() / 3).max(2))
        .min()
        .map(|(_, key)| key)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (above + 1).min(row[j] + 1).min(diagonal + usize::from(ca != *cb));
            diagonal = above;
        }
    }
    row[b.len()]
}

/// Reads settings one by one and collects what is wrong; a fault yields the default.
struct Reader {
    settings: BTreeMap<&'static str, (String, String)>,
    faults: Vec<String>,
}

impl Reader {
    fn optional<T: std::str::FromStr>(&mut self, key: &str, what: &str) -> Option<T> {
        let (text, place) = self.settings.get(key)?;
        if text.is_empty() {
            return None;
        }
        match text.parse() {
            Ok(value) => Some(value),
            Err(_) => {
                self.faults.push(format!("{place}: {text:?} is not {what}"));
                None
            }
        }
    }

    fn parsed<T: std::str::FromStr>(&mut self, key: &str, what: &str, default: T) -> T {
        self.optional(key, what).unwrap_or(default)
    }

    fn port(&mut self, key: &str, default: u16) -> u16 {
        let port = self.parsed(key, "a port between 1 and 65535", default);
        if port == 0 {
            self.faults.push(format!("{key}: 0 is not a port between 1 and 65535"));
        }
        port
    }

    fn interval(&mut self, key: &str, default: &str) -> Option<Duration> {
        let text: String = self.parsed(key, "a time", default.to_owned());
        if matches!(text.as_str(), "off" | "never" | "0") {
            return None;
        }
        match parse_duration(&text) {
            Ok(interval) => Some(interval),
            Err(fault) => {
                self.faults.push(format!("{key}: {fault} (or off)"));
                None
            }
        }
    }

    fn count(&mut self, key: &str, default: usize) -> usize {
        let count = self.parsed(key, "a number", default);
        if count == 0 {
            self.faults.push(format!("{key}: 0 would keep nothing; use 1 or more"));
        }
        count
    }

    fn folder(&mut self, key: &str, default: &str) -> PathBuf {
        let path: PathBuf = self.parsed(key, "a path", PathBuf::from(default));
        if !path.is_absolute() || path.parent().is_none() {
            self.faults.push(format!("{key}: {} is not an absolute path of a folder", path.display()));
        }
        path
    }

    fn name(&mut self, key: &str, default: &str, longest: usize, valid: fn(&str) -> bool) -> String {
        let name: String = self.parsed(key, "a name", default.to_owned());
        if name.len() > longest || !valid(&name) {
            self.faults.push(format!("{key}: {name:?} is not a valid name of at most {longest} characters"));
        }
        name
    }

    /// The host's name in lower case, as upstream's kubelet takes it.
    fn node_name(&mut self) -> String {
        let host = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .map(|name| name.trim().to_lowercase())
            .filter(|name| is_domain(name))
            .unwrap_or_else(|| "kedge".to_owned());
        self.name("node-name", &host, 253, is_domain)
    }
}

/// RFC 1123 subdomain.
fn is_domain(name: &str) -> bool {
    !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn load(text: &str, given: &[(&'static str, &str)]) -> Result<Config, Faults> {
        let mut settings = Settings::default();
        for (key, value) in given {
            settings.insert(key, (*value).to_owned());
        }
        Config::from_parts(Path::new("/etc/kedge/config.yaml"), text, &settings)
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = load("", &[("node-name", "n1")]).unwrap();
        assert_eq!(config.data_dir, Path::new("/var/lib/kedge"));
        assert_eq!((config.port, config.cluster_port, config.kubelet_port), (6443, 25000, 10250));
        assert_eq!(joined(&config.pod_cidrs), "10.244.0.0/16");
        assert_eq!(joined(&config.service_cidrs), "10.96.0.0/16");
        assert_eq!(config.cluster_dns.to_string(), "10.96.0.10");
        assert_eq!(config.cluster_domain, "cluster.local");
        assert_eq!(config.service_name(), "kedge");
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let config = load("# mine\nport: 7443\nnode-name: edge-1\n", &[("port", "8443")]).unwrap();
        assert_eq!(config.port, 8443);
        assert_eq!(config.node_name, "edge-1");
    }

    #[test]
    fn all_faults_are_shown_at_once() {
        let cases: [(&str, &[(&'static str, &str)], &[&str]); 6] = [
            ("prot: 1\n", &[], &["unknown key \"prot\"", "did you mean \"port\"?"]),
            ("dataDir: /x\n", &[], &["did you mean \"data-dir\"?"]),
            (
                "port: seven\n",
                &[("pod-cidr", "172.16.0.1/12"), ("run-dir", "run")],
                &[
                    "3 settings",
                    "config.yaml: port: \"seven\"",
                    "did you mean 172.16.0.0/12?",
                    "run is not an absolute",
                ],
            ),
            ("port: 10250\n", &[], &["kubelet-port and port are both 10250"]),
            ("pod-cidr: 10.96.0.0/12\n", &[], &["overlap"]),
            ("- 1\n", &[], &["not a YAML map"]),
        ];
        for (text, given, expected) in cases {
            let faults = load(text, given).unwrap_err().to_string();
            for part in expected {
                assert!(faults.contains(part), "{part:?} is not in {faults:?}");
            }
        }
    }

    #[test]
    fn the_dns_address_follows_the_service_network() {
        let dns = |text| load(text, &[]).unwrap().cluster_dns.to_string();
        assert_eq!(dns("service-cidr: 10.32.0.0/16\n"), "10.32.0.10");
        assert_eq!(dns("service-cidr: 10.32.0.0/16\ncluster-dns: 10.32.0.53\n"), "10.32.0.53");
    }

    #[test]
    fn persisting_keeps_comments_and_replaces_keys() {
        let mut given = Settings::default();
        given.insert("port", "7443".into());
        let text = merged("# hello\nport: 6443\nnode-name: n1\n", &given);
        assert_eq!(text, "# hello\nnode-name: n1\nport: \"7443\"\n");
        assert_eq!(load(&text, &[]).unwrap().port, 7443);
        assert_eq!(merged(&text, &given), text);
    }

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "abc", 3), ("port", "prot", 2), ("same", "same", 0), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
