//! The pod network's configuration: flannel's `net-conf.json`, and the ConfigMap that holds it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::lease::{HOST_GW, VXLAN};
use crate::Error;

/// Where flannel's manifest puts it.
pub const CONFIG_MAP_NAMESPACE: &str = "kube-flannel";
/// See [`CONFIG_MAP_NAMESPACE`].
pub const CONFIG_MAP_NAME: &str = "kube-flannel-cfg";
const NET_CONF: &str = "net-conf.json";
/// The ConfigMap's annotation that says whose the pod network is: `none` is somebody else's, everything
/// else Kedge's. A stock flanneld does not look at it.
pub const POD_NETWORK: &str = "kedge.dev/pod-network";

/// Is the pod network somebody else's?
pub fn is_off(map: &ConfigMap) -> bool {
    map.metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(POD_NETWORK))
        .is_some_and(|value| value == "none")
}

/// How packets travel between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// In UDP packets between the nodes' addresses; works over routers.
    Vxlan(VxlanConfig),
    /// As they are, by way of the other node; all nodes have to be in one network segment.
    HostGw,
}

/// Settings of flannel's vxlan backend, with its defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanConfig {
    /// The number of the VXLAN.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The largest packet between nodes in bytes; `None` takes the interface's MTU. Pods get less: what
    /// is put around their packets has to fit as well.
    pub mtu: Option<u32>,
    /// Nodes in the same network segment send each other packets as they are.
    pub direct_routing: bool,
    /// Learn from packets where machines are.
    pub learning: bool,
    /// Group based policy extension.
    pub gbp: bool,
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self { vni: 1, port: 8472, mtu: None, direct_routing: false, learning: false, gbp: false }
    }
}

/// The whole pod network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// All pods' addresses, one network per IP family.
    pub networks: Vec<IpNet>,
    /// How packets travel between nodes.
    pub backend: Backend,
}

/// A member, whatever the case of its name: Go reads JSON so.
fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object.get(name).or_else(|| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v))
}

impl NetworkConfig {
    /// Read `net-conf.json` (flannel's Documentation/configuration.md).
    ///
    /// # Errors
    /// When it is no such file, or asks for a backend other than vxlan and host-gw.
    pub fn parse(net_conf: &str) -> Result<Self, Error> {
        let invalid = |what: String| Error::Invalid(format!("{NET_CONF} of the pod network: {what}"));
        let value: Value = serde_json::from_str(net_conf).map_err(|error| invalid(error.to_string()))?;
        let flag = |from: &Value, name, default| match member(from, name) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(invalid(format!("{name} is {other}, it has to be true or false"))),
        };
        let mut networks = Vec::new();
        for (name, enabled, is_ipv4) in [
            ("Network", flag(&value, "EnableIPv4", true)?, true),
            ("IPv6Network", flag(&value, "EnableIPv6", false)?, false),
        ] {
            if !enabled {
                continue;
            }
            let text = member(&value, name).and_then(Value::as_str).unwrap_or_default();
            match text.parse::<IpNet>() {
                Ok(net) if net.addr().is_ipv4() == is_ipv4 => networks.push(net.trunc()),
                _ => return Err(invalid(format!("{name} {text:?} is no network like 10.244.0.0/16"))),
            }
        }
        if networks.is_empty() {
            return Err(invalid("neither IPv4 nor IPv6 is enabled".into()));
        }
        let none = Value::Null;
        let backend = member(&value, "Backend").unwrap_or(&none);
        let number = |name: &str, default: u64, limit: u64| match member(backend, name) {
            None | Some(Value::Null) => Ok(default),
            Some(found) => found
                .as_u64()
                .filter(|number| *number <= limit)
                .ok_or_else(|| invalid(format!("{name} is {found}, it has to be a number up to {limit}"))),
        };
        let kind = member(backend, "Type").and_then(Value::as_str).unwrap_or_default();
        let backend = match kind {
            HOST_GW => Backend::HostGw,
            VXLAN => {
                let defaults = VxlanConfig::default();
                let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
                let port = number("Port", 0, u64::from(u16::MAX))?;
                let mtu = number("MTU", 0, 65_535)?;
                Backend::Vxlan(VxlanConfig {
                    // 24 bits; an old flanneld keeps 16 of what is announced.
                    vni: small(number("VNI", defaults.vni.into(), 0xff_ffff)?),
                    port: u16::try_from(port).ok().filter(|port| *port != 0).unwrap_or(defaults.port),
                    mtu: Some(small(mtu)).filter(|mtu| *mtu != 0),
                    direct_routing: flag(backend, "DirectRouting", false)?,
                    learning: flag(backend, "Learning", false)?,
                    gbp: flag(backend, "GBP", false)?,
                })
            }
            other => {
                return Err(invalid(format!("the backend {other:?} is not there, use vxlan or host-gw")));
            }
        };
        Ok(Self { networks, backend })
    }

    /// The ConfigMap's configuration.
    ///
    /// # Errors
    /// As [`NetworkConfig::parse`].
    pub fn from_config_map(map: &ConfigMap) -> Result<Self, Error> {
        let data = map.data.as_ref().and_then(|data| data.get(NET_CONF));
        Self::parse(data.ok_or_else(|| {
            Error::Invalid(format!("ConfigMap {CONFIG_MAP_NAMESPACE}/{CONFIG_MAP_NAME} has no {NET_CONF}"))
        })?)
    }

    /// What `net-conf.json` says; values that are flannel's defaults are left out, as its manifest does.
    pub fn net_conf(&self) -> Value {
        let mut conf = json!({ "EnableNFTables": false });
        if !self.networks.iter().any(|net| net.addr().is_ipv4()) {
            conf["EnableIPv4"] = json!(false);
        }
        for net in &self.networks {
            if net.addr().is_ipv4() {
                conf["Network"] = json!(net.to_string());
            } else {
                conf["EnableIPv6"] = json!(true);
                conf["IPv6Network"] = json!(net.to_string());
            }
        }
        conf["Backend"] = match &self.backend {
            Backend::HostGw => json!({ "Type": HOST_GW }),
            Backend::Vxlan(vxlan) => {
                let (mut backend, defaults) = (json!({ "Type": VXLAN }), VxlanConfig::default());
                let mut add = |differs: bool, name: &str, value: Value| {
                    if differs {
                        backend[name] = value;
                    }
                };
                add(vxlan.vni != defaults.vni, "VNI", json!(vxlan.vni));
                add(vxlan.port != defaults.port, "Port", json!(vxlan.port));
                add(vxlan.mtu.is_some(), "MTU", json!(vxlan.mtu));
                add(vxlan.direct_routing, "DirectRouting", json!(true));
                add(vxlan.learning, "Learning", json!(true));
                add(vxlan.gbp, "GBP", json!(true));
                backend
            }
        };
        conf
    }

    /// The ConfigMap `kube-flannel/kube-flannel-cfg` as flannel's manifest (Documentation/kube-flannel.yml)
    /// has it, for the control plane to create when there is none: a stock flanneld on another node then
    /// uses the same network.
    pub fn config_map(&self) -> ConfigMap {
        let cni = json!({
            "name": "cbr0",
            "cniVersion": "0.3.1",
            "plugins": [
                { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some(CONFIG_MAP_NAMESPACE.into());
        map.metadata.name = Some(CONFIG_MAP_NAME.into());
        map.metadata.labels =
            Some([("tier", "node"), ("k8s-app", "flannel"), ("app", "flannel")].map(pair).into());
        map.data = Some(BTreeMap::from([
            ("cni-conf.json".to_owned(), format!("{cni:#}\n")),
            (NET_CONF.to_owned(), format!("{:#}\n", self.net_conf())),
        ]));
        map
    }
}

fn pair((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn flannels_own_file_is_understood() {
        let text =
            r#"{ "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": { "Type": "vxlan" } }"#;
        let config = NetworkConfig::parse(text).unwrap();
        assert_eq!(config.networks, nets(&["10.244.0.0/16"]));
        assert_eq!(config.backend, Backend::Vxlan(VxlanConfig::default()));
        let text = r#"{ "network": "10.1.2.3/8", "enableIPv6": true, "IPv6Network": "fd00::/48",
            "Backend": { "Type": "vxlan", "vni": 4, "Port": 4789, "MTU": 1400, "DirectRouting": true } }"#;
        let config = NetworkConfig::parse(text).unwrap();
        assert_eq!(config.networks, nets(&["10.0.0.0/8", "fd00::/48"]));
        let expected = VxlanConfig {
            vni: 4,
            port: 4789,
            mtu: Some(1400),
            direct_routing: true,
            ..VxlanConfig::default()
        };
        assert_eq!(config.backend, Backend::Vxlan(expected));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, named) in [
            ("{", "net-conf.json"),
            (r#"{"Backend":{"Type":"vxlan"}}"#, "Network \"\""),
            (r#"{"Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#, "Network \"fd00::/48\""),
            (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard"}}"#, "\"wireguard\""),
            (r#"{"Network":"10.0.0.0/8"}"#, "backend \"\""),
            (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":16777216}}"#, "VNI is 16777216"),
            (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","DirectRouting":1}}"#, "DirectRouting"),
            (r#"{"EnableIPv4":false,"Backend":{"Type":"host-gw"}}"#, "neither"),
        ] {
            let error = NetworkConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn the_config_map_says_what_we_do() {
        let odd = VxlanConfig {
            vni: 7,
            port: 4789,
            mtu: Some(9000),
            direct_routing: true,
            learning: true,
            gbp: true,
        };
        for config in [
            NetworkConfig {
                networks: nets(&["10.244.0.0/16"]),
                backend: Backend::Vxlan(VxlanConfig::default()),
            },
            NetworkConfig { networks: nets(&["10.244.0.0/16", "fd00::/48"]), backend: Backend::Vxlan(odd) },
            NetworkConfig { networks: nets(&["fd00::/48"]), backend: Backend::HostGw },
        ] {
            let map = config.config_map();
            assert_eq!(map.metadata.name.as_deref(), Some("kube-flannel-cfg"));
            assert_eq!(NetworkConfig::from_config_map(&map).unwrap(), config);
        }
        assert!(NetworkConfig::from_config_map(&ConfigMap::default()).is_err());
    }
}
