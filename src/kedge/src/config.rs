//! The settings of one node: flag over environment over drop-ins over file over default, checked as a whole.
//!
//! The file is a flat YAML map whose keys are the flags' names, so there is one vocabulary to learn. All
//! faults are collected and shown at once.

mod faults;
mod file;
mod kubelet;
mod paths;
pub(crate) mod settings;
mod values;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use kedge_cluster::Role;

use self::faults::Fault;
pub(crate) use self::faults::Faults;
pub(crate) use self::file::{files, persist};
pub(crate) use self::settings::Settings;
use self::settings::{Origin, SETTINGS};
use self::values::{Reader, size_text};
pub(crate) use self::values::{Taint, parse_duration};

mod networks;

pub(crate) use networks::joined;

/// Where the configuration is looked for when nobody says otherwise; it need not exist.
pub(crate) const DEFAULT_FILE: &str = "/etc/kedge/config.yaml";

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
    /// The API server's own addresses, at most one an IP family; they are where the store's leader is.
    pub(crate) virtual_addresses: Vec<IpAddr>,
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
    /// Where another pod network puts its CNI configuration.
    pub(crate) cni_conf_dir: PathBuf,
    /// A new cluster begins with Kedge's own pod network.
    pub(crate) own_pod_network: bool,
    /// How often a snapshot is kept in [`Config::snapshot_dir`]; `None`: never.
    pub(crate) snapshot_interval: Option<Duration>,
    /// How many of these are kept.
    pub(crate) snapshot_keep: usize,
    /// How many bytes the datastore's objects may take; 0: no limit.
    pub(crate) store_quota: u64,
    /// Mirrors and logins of registries; the file need not exist.
    pub(crate) registries: PathBuf,
    /// Mirrors beside those of that file.
    pub(crate) mirrors: kedge_kubelet::Mirrors,
    /// Below which floors the node is under pressure, and how it gets rid of pods then.
    pub(crate) eviction: kedge_kubelet::Eviction,
    /// When unused images are removed.
    pub(crate) image_gc: kedge_kubelet::ImageGc,
    /// Sysctls that pods may set beyond the safe ones.
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// Further labels of the Node object.
    pub(crate) node_labels: BTreeMap<String, String>,
    /// Taints of the Node object when it is registered.
    pub(crate) node_taints: Vec<Taint>,
    /// The addons of a new cluster, when the operator named them.
    pub(crate) addons: Option<Vec<String>>,
    /// The cluster that a new node joins by itself.
    pub(crate) join: Option<String>,
    /// What it becomes there.
    pub(crate) role: Role,
    /// What was said, and where.
    pub(crate) given: Settings,
}

/// The most that objects take where nobody says otherwise, as etcd's: 2 GiB.
const MOST_QUOTA: u64 = 2 << 30;

/// All objects are in memory too: a small board's must not be filled with them.
fn usual_quota(memory: Option<u64>) -> u64 {
    let whole_mebibytes = |bytes: u64| bytes >> 20 << 20;
    memory.map_or(MOST_QUOTA, |memory| whole_mebibytes(memory / 4).clamp(64 << 20, MOST_QUOTA))
}

impl Config {
    /// Read `file` (the default one when `None`; a missing one is empty), put `given` over it and check
    /// everything.
    pub(crate) fn load(file: Option<&Path>, given: &Settings) -> Result<Self, Faults> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let mut faults = Vec::new();
        let settings = file::read(path, &mut faults);
        Self::from_parts(path, settings, faults, given)
    }

    /// The rules of [`Config::load`] without the disk.
    fn from_parts(
        path: &Path,
        mut settings: Settings,
        faults: Vec<Fault>,
        given: &Settings,
    ) -> Result<Self, Faults> {
        settings.extend(given);
        let mut reader = Reader { settings, faults };
        let service_cidrs = reader.networks("service-cidr", [10, 96, 0, 0], 16);
        let config = Self {
            file: path.into(),
            data_dir: reader.own_folder("data-dir", "/var/lib/kedge"),
            run_dir: reader.run_dir("run-dir"),
            log_dir: reader.folder("log-dir", "/var/log"),
            node_name: reader.node_name(),
            bind_address: reader.optional("bind-address", "an IP address"),
            node_ips: reader.addresses("node-ip"),
            port: reader.port("port", 6443),
            cluster_port: reader.port("cluster-port", 25000),
            kubelet_port: reader.port("kubelet-port", 10250),
            virtual_addresses: reader.virtual_addresses("virtual-address"),
            pod_cidrs: reader.networks("pod-cidr", [10, 244, 0, 0], 16),
            cluster_dns: reader.cluster_dns(&service_cidrs),
            service_cidrs,
            cluster_domain: reader.cluster_domain(),
            table_name: reader.table_name(),
            bridge_name: reader.bridge_name(),
            failure_domain: reader.optional("failure-domain", "a name"),
            containerd: reader.path("containerd", "a program"),
            cni_bin_dir: reader.path("cni-bin-dir", "a folder"),
            cni_conf_dir: reader.folder("cni-conf-dir", "/etc/cni/net.d"),
            own_pod_network: reader.pod_network("pod-network"),
            snapshot_interval: reader.interval("snapshot-interval", "12h"),
            snapshot_keep: reader.count("snapshot-keep", 5),
            store_quota: reader.size("store-quota", usual_quota(crate::memory::total())),
            registries: reader
                .path("registries", "a file")
                .unwrap_or_else(|| "/etc/kedge/registries.yaml".into()),
            mirrors: reader.mirrors("mirrors"),
            eviction: reader.eviction(),
            image_gc: reader.image_gc("image-gc-high-threshold", "image-gc-low-threshold"),
            allowed_unsafe_sysctls: reader.sysctls("allowed-unsafe-sysctls"),
            node_labels: reader.labels("node-labels"),
            node_taints: reader.taints("node-taints"),
            addons: reader.words("addons"),
            join: reader.join("join"),
            role: reader.role("role"),
            given: Settings::default(),
        };
        config.check_together(&mut reader);
        if !reader.faults.is_empty() {
            return Err(Faults(reader.faults));
        }
        Ok(Self { given: reader.settings, ..config })
    }

    /// Settings that are right one by one but not beside each other.
    fn check_together(&self, reader: &mut Reader) {
        let ports =
            [("port", self.port), ("cluster-port", self.cluster_port), ("kubelet-port", self.kubelet_port)];
        for (index, (key, port)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports[..index].iter().find(|(_, taken)| taken == port) {
                let what = format!("{key} and {other} are both {port}");
                reader.faults.push(Fault::new(what, "give each its own port"));
            }
        }
        self.check_networks(reader);
        self.check_virtual_addresses(reader);
        self.check_cluster_dns(reader);
    }

    /// Has the operator named the file of registries? An environment may (a snap's) say where it would be.
    pub(crate) fn names_registries(&self) -> bool {
        matches!(self.given.origin("registries"), Some(Origin::Flag | Origin::File(_)))
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

    /// Keep the flags that were given, for the service and for later commands.
    ///
    /// # Errors
    /// When the configuration file cannot be written.
    pub(crate) fn keep(&self, given: &Settings) -> anyhow::Result<()> {
        let mut given = given.clone();
        // In a file it would be a setting of the operator's, who means a file that is there.
        if given.origin("registries") == Some(&Origin::Environment) && !self.registries.exists() {
            given.remove("registries");
        }
        // A file that was named but is not there is made, or the service would not find it.
        if self.owns_file() && (!given.is_empty() || self.file != Path::new(DEFAULT_FILE)) {
            persist(&self.file, &given).with_context(|| format!("write {}", self.file.display()))?;
        }
        // Documents tell people to write files there; where /etc cannot be written nobody can.
        for dir in self.settings_dirs() {
            if let Err(error) = std::fs::create_dir_all(&dir) {
                tracing::debug!(%error, folder = %dir.display(), "the folder for settings is not made");
            }
        }
        Ok(())
    }

    /// Did [`persist`] make this node's configuration file? Then `uninstall` takes it away.
    pub(crate) fn made_file(&self) -> bool {
        self.owns_file()
            && std::fs::read_to_string(&self.file).is_ok_and(|text| text.starts_with(file::HEADING))
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

    /// The text of a setting as it counts; `None`: not set.
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let path = |path: &Path| path.display().to_string();
        Some(match key {
            "data-dir" => path(&self.data_dir),
            "run-dir" => path(&self.run_dir),
            "log-dir" => path(&self.log_dir),
            "node-name" => self.node_name.clone(),
            "bind-address" => self.bind_address?.to_string(),
            "node-ip" => Some(joined(&self.node_ips)).filter(|list| !list.is_empty())?,
            "port" => self.port.to_string(),
            "cluster-port" => self.cluster_port.to_string(),
            "kubelet-port" => self.kubelet_port.to_string(),
            "virtual-address" => Some(joined(&self.virtual_addresses)).filter(|list| !list.is_empty())?,
            "pod-cidr" => joined(&self.pod_cidrs),
            "service-cidr" => joined(&self.service_cidrs),
            "cluster-dns" => self.cluster_dns.to_string(),
            "cluster-domain" => self.cluster_domain.clone(),
            "table-name" => self.table_name.clone(),
            "bridge-name" => self.bridge_name.clone(),
            "failure-domain" => self.failure_domain.clone()?,
            "containerd" => path(self.containerd.as_deref()?),
            "cni-bin-dir" => path(self.cni_bin_dir.as_deref()?),
            "cni-conf-dir" => path(&self.cni_conf_dir),
            "pod-network" => if self.own_pod_network { "flannel" } else { "none" }.to_owned(),
            "snapshot-interval" => {
                self.snapshot_interval.map_or_else(|| "off".to_owned(), values::duration_text)
            }
            "snapshot-keep" => self.snapshot_keep.to_string(),
            "store-quota" => size_text(self.store_quota),
            "registries" => path(&self.registries),
            "eviction-hard" => self.eviction.hard.to_string(),
            "eviction-soft" => self.eviction.soft.to_string(),
            "eviction-max-pod-grace-period" => self.eviction.max_pod_grace.to_string(),
            "eviction-pressure-transition-period" => {
                kedge_kubelet::eviction_duration_text(self.eviction.transition)
            }
            "image-gc-high-threshold" => self.image_gc.high_threshold_percent.to_string(),
            "image-gc-low-threshold" => self.image_gc.low_threshold_percent.to_string(),
            "role" => match self.role {
                Role::Worker => "worker".to_owned(),
                Role::ControlPlane => "control-plane".to_owned(),
            },
            // Lists and secrets stay as they were written.
            other => self.given.get(other)?.to_owned(),
        })
    }

    /// Every setting that has a value, with its origin in words.
    pub(crate) fn effective(&self) -> Vec<Effective> {
        SETTINGS
            .iter()
            .filter_map(|setting| {
                let value = match self.value(setting.key)? {
                    // Whoever may see this file's output need not see the token.
                    value if setting.key == "join" => hide_token(&value),
                    value => value,
                };
                let origin = match self.given.origin(setting.key) {
                    None => "default".to_owned(),
                    Some(Origin::Flag) => format!("--{}", setting.key),
                    Some(Origin::Environment) => setting.env.to_owned(),
                    Some(Origin::File(path)) => path.display().to_string(),
                };
                Some(Effective { key: setting.key, value, origin })
            })
            .collect()
    }

    /// The effective configuration as a file that says the same, with each value's origin behind it.
    pub(crate) fn show(&self) -> String {
        let effective = self.effective();
        // What has no value counts too: the node finds it out.
        let lines: Vec<(String, String)> = SETTINGS
            .iter()
            .map(|setting| match effective.iter().find(|found| found.key == setting.key) {
                Some(found) => {
                    (format!("{}: {}", found.key, yaml_scalar(&found.value)), found.origin.clone())
                }
                None => (format!("# {}: {}", setting.key, setting.default), "default".to_owned()),
            })
            .collect();
        let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
        lines.iter().map(|(line, origin)| format!("{line:width$}  # {origin}\n")).collect()
    }

    /// The folders CNI plugins are looked for in.
    pub(crate) fn cni_bin_dirs(&self) -> Vec<PathBuf> {
        match &self.cni_bin_dir {
            Some(dir) => vec![dir.clone()],
            // Where other pod networks' installers put theirs.
            None if !self.own_pod_network => vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
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

/// One line of `kedge config show`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Effective {
    pub(crate) key: &'static str,
    pub(crate) value: String,
    /// A flag, a variable, a file, or `default`.
    pub(crate) origin: String,
}

fn hide_token(join: &str) -> String {
    let parts: Vec<&str> = join.split('/').collect();
    match parts.as_slice() {
        [server, _, hash] => format!("{server}/<token>/{hash}"),
        _ => "<hidden>".to_owned(),
    }
}

/// As it is where YAML reads it back as the same text, quoted otherwise.
fn yaml_scalar(text: &str) -> String {
    let plain = !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '=' | ','))
        && !matches!(text, "off" | "on" | "yes" | "no" | "true" | "false" | "null")
        && !text.starts_with(['-', '=', ',']);
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn load(text: &str, given: &[(&'static str, &str)]) -> Result<Config, Faults> {
        let mut settings = Settings::default();
        for (key, value) in given {
            settings.insert(key, (*value).to_owned());
        }
        let path = Path::new("/etc/kedge/config.yaml");
        let mut faults = Vec::new();
        let from_file = file::parse(path, text, &mut faults);
        Config::from_parts(path, from_file, faults, &settings)
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
    fn what_would_fail_later_is_refused_at_once() {
        let long = |letters: usize| "a".repeat(letters);
        for (key, value, part) in [
            ("snapshot-interval", "5", "--snapshot-interval: 5 has no unit; write 5m, 5h or 5d"),
            ("snapshot-interval", "4s", "4s is too short; write 5s or more"),
            ("snapshot-interval", "soon", "\"soon\" is no duration such as"),
            ("cluster-domain", "", "it is empty; leave it out for cluster.local"),
            ("cluster-domain", "a_b.local", "write a DNS name such as cluster.local"),
            ("node-name", &long(64), "at most 63 characters"),
            ("node-name", "Edge", "write small letters"),
            ("bridge-name", "lo", "neither lo nor flannel"),
            ("bridge-name", &long(16), "at most 15 characters"),
            ("table-name", "1", "write a letter, then"),
            ("data-dir", "/var/lib", "/var/lib is the system's, and kedge uninstall would remove it"),
            ("data-dir", "/var/lib/..", "without .."),
            ("data-dir", "/data/a:b", "has a colon or a comma"),
            ("run-dir", &format!("/run/{}", long(80)), "choose one of at most 74 bytes"),
            ("run-dir", "/run", "such as /run/kedge"),
            ("containerd", "containerd", "is not an absolute path of a program"),
            ("cni-bin-dir", "bin", "is not an absolute path of a folder"),
            ("registries", "r.yaml", "is not an absolute path of a file"),
        ] {
            let faults = load("", &[(key, value)]).unwrap_err();
            assert!(faults.to_string().contains(part), "{part:?} is not in {faults}");
        }
        for (key, value) in
            [("snapshot-interval", "5s"), ("log-dir", "/var/log"), ("cluster-domain", "local")]
        {
            load("", &[(key, value)]).unwrap();
        }
        let mut from_environment = Settings::default();
        from_environment.insert_from("cluster-domain", String::new(), Origin::Environment);
        assert_eq!(
            Config::load(Some(Path::new("/nonexistent")), &from_environment).unwrap().cluster_domain,
            "cluster.local"
        );
        let faults = load("prot: 1\nport: 0\nsnapshot-keep: 0\n", &[]).unwrap_err();
        assert_eq!(faults.remedy().as_deref(), Some("did you mean \"port\"?\nuse 1 or more"));
    }

    #[test]
    fn the_dns_address_follows_the_service_network() {
        let dns = |text| load(text, &[]).unwrap().cluster_dns.to_string();
        assert_eq!(dns("service-cidr: 10.32.0.0/16\n"), "10.32.0.10");
        assert_eq!(dns("service-cidr: 10.32.0.0/16\ncluster-dns: 10.32.0.53\n"), "10.32.0.53");
    }

    #[test]
    fn the_settings_of_a_first_start() {
        let config = load(
            "node-labels: {disk: ssd, example.com/zone: a}\nnode-taints: [\"edge=yes:NoSchedule\", \"gpu:NoExecute\"]\n\
             addons: [dns, metrics]\nrole: worker\nregistries: /etc/kedge/registries.yaml\n\
             mirrors: {docker.io: \"https://a.example\", quay.io: \"http://b.example:5000\"}\n",
            &[],
        )
        .unwrap();
        assert_eq!(config.node_labels["example.com/zone"], "a");
        assert_eq!(
            config.node_taints[0],
            Taint { key: "edge".into(), value: "yes".into(), effect: "NoSchedule".into() }
        );
        assert_eq!((config.node_taints[1].key.as_str(), config.node_taints[1].value.as_str()), ("gpu", ""));
        assert_eq!(config.addons.as_deref(), Some(["dns".to_owned(), "metrics".to_owned()].as_slice()));
        assert_eq!(config.role, Role::Worker);
        assert_eq!(config.mirrors["quay.io"], ["http://b.example:5000"]);
        assert_eq!(load("", &[]).unwrap().addons, None);
        assert_eq!(load("addons: []\n", &[]).unwrap().addons, Some(Vec::new()));
        for (text, part) in [
            (
                "node-labels: {a: b, kubernetes.io/role: x}\n",
                "no node may give itself the label kubernetes.io/role",
            ),
            ("node-labels: [a=b, a=c]\n", "a is there twice"),
            ("node-taints: [\"a=b:NoSchedule\", \"a=c:NoSchedule\"]\n", "a with NoSchedule is there twice"),
            ("node-labels: [disk]\n", "is no label"),
            ("node-labels: [\"-x=y\"]\n", "is no label"),
            ("node-taints: [\"a=b:Never\"]\n", "is no taint"),
            ("mirrors: [docker.io]\n", "is no mirror such as"),
            ("mirrors: {docker.io: mirror.example}\n", "is no URL"),
            ("role: master\n", "neither control-plane nor worker"),
            ("join: 192.0.2.1/x\n", "join"),
        ] {
            let faults = load(text, &[]).unwrap_err().to_string();
            assert!(faults.contains(part), "{part:?} is not in {faults:?}");
        }
    }

    #[test]
    fn a_file_that_only_the_environment_names_is_not_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let (file, registries) = (dir.path().join("config.yaml"), dir.path().join("registries.yaml"));
        let mut given = Settings::default();
        given.insert_from("registries", registries.display().to_string(), Origin::Environment);
        given.insert_from("node-name", "n1".into(), Origin::Environment);
        let config = Config::load(Some(&file), &given).unwrap();
        let kept = || {
            config.keep(&given).unwrap();
            std::fs::read_to_string(&file).unwrap()
        };
        let text = kept();
        assert!(text.contains("node-name") && !text.contains("registries"), "{text}");
        std::fs::write(&registries, "").unwrap();
        assert!(kept().contains("registries"));
    }

    #[test]
    fn the_effective_configuration_names_origins_and_can_be_read_back() {
        let mut given = Settings::default();
        given.insert("port", "8443".into());
        given.insert_from("node-ip", "192.0.2.9".into(), Origin::Environment);
        let path = Path::new("/etc/kedge/config.yaml");
        let mut faults = Vec::new();
        let from_file = file::parse(
            path,
            "node-name: edge-1\nnode-labels: {a: b}\nsnapshot-interval: off\n",
            &mut faults,
        );
        let config = Config::from_parts(path, from_file, faults, &given).unwrap();
        let text = config.show();
        for (line, origin) in [
            ("port: 8443 ", "# --port"),
            ("node-ip: 192.0.2.9 ", "# KEDGE_NODE_IP"),
            ("node-name: edge-1 ", "# /etc/kedge/config.yaml"),
            ("pod-cidr: 10.244.0.0/16 ", "# default"),
            ("# containerd: found in PATH ", "# default"),
        ] {
            assert!(
                text.lines().any(|found| found.starts_with(line) && found.ends_with(origin)),
                "{line} {origin} is not in\n{text}"
            );
        }
        let again = load(&text, &[]).unwrap();
        assert_eq!(Config { given: config.given.clone(), ..again }, config);
        assert_eq!(hide_token("192.0.2.1:25000/secret/abc"), "192.0.2.1:25000/<token>/abc");
    }

    #[test]
    fn the_store_has_a_quota() {
        for (text, bytes, shown) in [
            ("512Mi", 512 << 20, "512Mi"),
            ("2Gi", 2 << 30, "2Gi"),
            ("1048577", 1_048_577, "1048577"),
            ("1536Mi", 1536 << 20, "1536Mi"),
            ("off", 0, "off"),
        ] {
            let config = load("", &[("store-quota", text)]).unwrap();
            assert_eq!(config.store_quota, bytes, "{text}");
            assert_eq!(config.value("store-quota").as_deref(), Some(shown));
        }
        for text in ["much", "-1", "10Ki", "99999999999Gi"] {
            let faults = load("", &[("store-quota", text)]).unwrap_err().to_string();
            assert!(faults.contains("store-quota") && faults.contains(text), "{faults}");
        }
        let gibibyte = 1 << 30;
        for (memory, quota) in [
            (None, 2 * gibibyte),
            (Some(32 * gibibyte), 2 * gibibyte),
            (Some(gibibyte), gibibyte / 4),
            (Some(gibibyte / 16), gibibyte / 16),
        ] {
            assert_eq!(usual_quota(memory), quota, "{memory:?}");
        }
    }
}
