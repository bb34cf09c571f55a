//! The vocabulary of the configuration: each row is a key of the file, a flag of every command, an
//! environment variable and a line of the reference.

use std::collections::BTreeMap;

/// One setting.
pub(crate) struct Setting {
    /// The key and the flag's name.
    pub(crate) key: &'static str,
    /// The environment variable.
    pub(crate) env: &'static str,
    /// What its value is, for help.
    pub(crate) value: &'static str,
    /// One sentence.
    pub(crate) help: &'static str,
    /// The default in words.
    pub(crate) default: &'static str,
    /// Takes a YAML list (or a map, for labels) too; its parts are separated by this.
    pub(crate) list: Option<char>,
    /// It only matters when a node starts for the first time.
    pub(crate) first_start: bool,
}

const fn row(
    key: &'static str,
    env: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { key, env, value, help, default, list: None, first_start: false }
}

/// All settings, in the order of help and reference.
pub(crate) const SETTINGS: [Setting; 40] = [
    row("data-dir", "KEDGE_DATA_DIR", "DIR", "/var/lib/kedge", "Where everything that must survive is kept"),
    row("run-dir", "KEDGE_RUN_DIR", "DIR", "/run/kedge", "Sockets and process ids"),
    row("log-dir", "KEDGE_LOG_DIR", "DIR", "/var/log", "Where logs go: kedge.log, pods/ and containers/"),
    row("node-name", "KEDGE_NODE_NAME", "NAME", "the host name", "The name of the Node object"),
    row(
        "bind-address",
        "KEDGE_BIND_ADDRESS",
        "IP",
        "0.0.0.0, with IPv6 ::",
        "The address of the node's listeners",
    ),
    Setting {
        list: Some(','),
        ..row(
            "node-ip",
            "KEDGE_NODE_IP",
            "IP",
            "the one towards the network",
            "The address that the node announces, or one of each IP family: V4,V6",
        )
    },
    row("port", "KEDGE_PORT", "PORT", "6443", "The Kubernetes API's port"),
    row("cluster-port", "KEDGE_CLUSTER_PORT", "PORT", "25000", "The port between nodes"),
    row("kubelet-port", "KEDGE_KUBELET_PORT", "PORT", "10250", "The kubelet's port"),
    Setting {
        list: Some(','),
        ..row(
            "virtual-address",
            "KEDGE_VIRTUAL_ADDRESS",
            "IP",
            "none, or the cluster's",
            "A free address for the API that the leading control-plane node has, or one of each IP family; none: \
             this node takes no part",
        )
    },
    Setting {
        list: Some(','),
        ..row(
            "pod-cidr",
            "KEDGE_POD_CIDR",
            "CIDR",
            "10.244.0.0/16",
            "Addresses of pods: one network, or one of each IP family with the default one first, as in \
             10.244.0.0/16,fd00:10:244::/56",
        )
    },
    Setting {
        list: Some(','),
        ..row("service-cidr", "KEDGE_SERVICE_CIDR", "CIDR", "10.96.0.0/16", "Addresses of Services, likewise")
    },
    row(
        "cluster-dns",
        "KEDGE_CLUSTER_DNS",
        "IP",
        "the tenth of the Services'",
        "The address of the cluster's DNS Service",
    ),
    row("cluster-domain", "KEDGE_CLUSTER_DOMAIN", "DOMAIN", "cluster.local", "The domain of Services"),
    row("table-name", "KEDGE_TABLE_NAME", "NAME", "kedge", "The nftables table that Services are written to"),
    row("bridge-name", "KEDGE_BRIDGE_NAME", "NAME", "kedge0", "The bridge that pods are attached to"),
    row(
        "failure-domain",
        "KEDGE_FAILURE_DOMAIN",
        "NAME",
        "none",
        "A room, rack or power line: the datastore's voters are spread over them",
    ),
    row("containerd", "KEDGE_CONTAINERD", "FILE", "found in PATH", "The containerd program"),
    row(
        "cni-bin-dir",
        "KEDGE_CNI_BIN_DIR",
        "DIR",
        "/usr/lib/cni or /opt/cni/bin",
        "The folder of CNI plugins",
    ),
    row(
        "cni-conf-dir",
        "KEDGE_CNI_CONF_DIR",
        "DIR",
        "/etc/cni/net.d",
        "Where a pod network of your own puts its CNI configuration, while the addon flannel is disabled",
    ),
    Setting {
        first_start: true,
        ..row(
            "pod-network",
            "KEDGE_POD_NETWORK",
            "flannel|none",
            "flannel",
            "The pod network of a new cluster; none: you bring your own",
        )
    },
    row(
        "snapshot-interval",
        "KEDGE_SNAPSHOT_INTERVAL",
        "TIME",
        "12h",
        "How often a snapshot is kept in DATA_DIR/snapshots: 90m, 12h, 7d, or off",
    ),
    row("snapshot-keep", "KEDGE_SNAPSHOT_KEEP", "NUMBER", "5", "How many of these are kept"),
    row(
        "store-quota",
        "KEDGE_STORE_QUOTA",
        "SIZE",
        "2Gi, or a quarter of the memory if that is less",
        "How much all objects may take: 512Mi, 2Gi, or off; beyond that nothing is added until something is deleted",
    ),
    row(
        "registries",
        "KEDGE_REGISTRIES",
        "FILE",
        "/etc/kedge/registries.yaml",
        "Mirrors and logins of image registries, in k3s's format",
    ),
    Setting {
        list: Some(','),
        ..row(
            "mirrors",
            "KEDGE_MIRRORS",
            "REGISTRY=URL,...",
            "none",
            "Mirrors of image registries beside those of that file, as in docker.io=https://mirror.example:5000; \
             they are tried in this order",
        )
    },
    Setting {
        list: Some(','),
        ..row(
            "eviction-hard",
            "KEDGE_EVICTION_HARD",
            "SIGNAL<FLOOR,...",
            "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,imagefs.inodesFree<5%",
            "Below which floors the node is under pressure and evicts pods at once, as kubelet has it: amounts or \
             per cents of memory, of the disks of pods (nodefs) and images (imagefs), and pid.available; what is \
             not named is not watched; or off",
        )
    },
    Setting {
        list: Some(','),
        ..row(
            "eviction-soft",
            "KEDGE_EVICTION_SOFT",
            "SIGNAL<FLOOR,...",
            "off",
            "The same for floors that are borne for a while (eviction-soft-grace-period) before pods are evicted",
        )
    },
    Setting {
        list: Some(','),
        ..row(
            "eviction-soft-grace-period",
            "KEDGE_EVICTION_SOFT_GRACE_PERIOD",
            "SIGNAL=TIME,...",
            "none",
            "How long each of the soft floors is borne: memory.available=1m30s",
        )
    },
    row(
        "eviction-max-pod-grace-period",
        "KEDGE_EVICTION_MAX_POD_GRACE_PERIOD",
        "SECONDS",
        "0",
        "The most time that a pod gets to end when it is evicted for a soft floor",
    ),
    Setting {
        list: Some(','),
        ..row(
            "eviction-minimum-reclaim",
            "KEDGE_EVICTION_MINIMUM_RECLAIM",
            "SIGNAL=AMOUNT,...",
            "none",
            "How much more than its floor of something has to be free before no more pods are evicted",
        )
    },
    row(
        "eviction-pressure-transition-period",
        "KEDGE_EVICTION_PRESSURE_TRANSITION_PERIOD",
        "TIME",
        "5m",
        "For how long the node says that it is under pressure after it was last: 30s, 5m",
    ),
    row(
        "image-gc-high-threshold",
        "KEDGE_IMAGE_GC_HIGH_THRESHOLD",
        "PERCENT",
        "85",
        "From which use of its disk on unused images are removed; 100: never",
    ),
    row(
        "image-gc-low-threshold",
        "KEDGE_IMAGE_GC_LOW_THRESHOLD",
        "PERCENT",
        "80",
        "Down to which use of it they are removed",
    ),
    Setting {
        list: Some(','),
        ..row(
            "allowed-unsafe-sysctls",
            "KEDGE_ALLOWED_UNSAFE_SYSCTLS",
            "NAME,...",
            "none",
            "Sysctls that pods of this node may set beyond the safe ones: names, or their beginning and *",
        )
    },
    Setting {
        list: Some(','),
        ..row(
            "node-labels",
            "KEDGE_NODE_LABELS",
            "KEY=VALUE,...",
            "none",
            "Further labels of the Node object",
        )
    },
    Setting {
        list: Some(','),
        first_start: true,
        ..row(
            "node-taints",
            "KEDGE_NODE_TAINTS",
            "KEY=VALUE:EFFECT,...",
            "none",
            "Taints of the Node object when it is registered",
        )
    },
    Setting {
        list: Some(' '),
        first_start: true,
        ..row(
            "addons",
            "KEDGE_ADDONS",
            "ADDON[:ARGUMENTS] ...",
            "dns, by kedge install",
            "The addons of a new cluster, separated by spaces",
        )
    },
    Setting {
        first_start: true,
        ..row(
            "join",
            "KEDGE_JOIN",
            "HOST:PORT/TOKEN/CA-HASH",
            "none: begin a cluster",
            "The cluster that a new node joins by itself: what add-node printed; passed over once the node has left it",
        )
    },
    Setting {
        first_start: true,
        ..row(
            "role",
            "KEDGE_ROLE",
            "control-plane|worker",
            "control-plane",
            "What the node becomes in the cluster that it joins",
        )
    },
];

/// The setting with this key.
pub(crate) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Where a value was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag,
    Environment,
    File(std::path::PathBuf),
}

/// Settings that were given, as text, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings(BTreeMap<&'static str, (String, Origin)>);

impl Settings {
    /// A flag's value.
    pub(crate) fn insert(&mut self, key: &'static str, value: String) {
        self.insert_from(key, value, Origin::Flag);
    }

    pub(crate) fn insert_from(&mut self, key: &'static str, value: String, origin: Origin) {
        self.0.insert(key, (value, origin));
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|(value, _)| value.as_str())
    }

    pub(crate) fn origin(&self, key: &str) -> Option<&Origin> {
        self.0.get(key).map(|(_, origin)| origin)
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(key, (value, _))| (*key, value.as_str()))
    }

    /// `other` over these.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend(other.0.iter().map(|(key, value)| (*key, value.clone())));
    }

    /// How a message names the place of a value.
    pub(crate) fn place(&self, key: &str) -> String {
        match self.origin(key) {
            Some(Origin::File(path)) => format!("{}: {key}", path.display()),
            Some(Origin::Environment) => find(key).map_or(key, |setting| setting.env).to_owned(),
            Some(Origin::Flag) => format!("--{key}"),
            None => key.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_follow_from_keys() {
        for setting in &SETTINGS {
            assert_eq!(setting.env, format!("KEDGE_{}", setting.key.to_uppercase().replace('-', "_")));
            assert!(!setting.help.ends_with('.'), "{}", setting.key);
        }
    }
}
