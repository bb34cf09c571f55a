//! What the cluster's names are made of: Services, the endpoints of their slices and Namespaces, kept
//! as persistent maps. A change makes a new snapshot that shares nearly everything with the last one;
//! readers take a snapshot without a lock and are never disturbed by a writer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;

use super::name::{lower, parse_name};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A snapshot. All keys are in lower case; a Service's key is `NAMESPACE/NAME`.
#[derive(Clone, Default)]
pub(crate) struct Records {
    services: imbl::HashMap<Arc<str>, Arc<Service>>,
    namespaces: imbl::HashSet<Arc<str>>,
    /// Which Services an address belongs to: as cluster IP or as an endpoint.
    addresses: imbl::HashMap<IpAddr, Arc<[Arc<str>]>>,
    /// Unix time of the last change, the zone's serial number as in CoreDNS.
    serial: u32,
}

/// A Service as far as names are concerned.
#[derive(Debug, PartialEq)]
pub(crate) struct Service {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) ports: Box<[Port]>,
    pub(crate) slices: Box<[Arc<Slice>]>,
}

/// What a Service's own name stands for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Has addresses of its own; none yet while the list is empty.
    Cluster(Box<[IpAddr]>),
    /// Stands for its ready endpoints.
    Headless,
    /// An alias; `None` when the text is an address or no name at all, which upstream serves as missing.
    External(Option<Name>),
}

/// A port of a Service or of a slice. `name` and `protocol` are in lower case; unnamed is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: Box<str>,
    pub(crate) protocol: &'static str,
    pub(crate) number: u16,
}

/// The ready endpoints of one EndpointSlice.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Slice {
    pub(crate) ports: Box<[Port]>,
    pub(crate) endpoints: Box<[Endpoint]>,
}

/// A ready endpoint. `host` is its label under the Service: the hostname, else the address with dashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: Box<str>,
    pub(crate) address: IpAddr,
    /// The endpoint has a hostname of its own.
    pub(crate) named: bool,
}

impl Service {
    /// The ready endpoints with the ports of their slices.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&Endpoint, &[Port])> {
        self.slices.iter().flat_map(|slice| slice.endpoints.iter().map(|endpoint| (endpoint, &*slice.ports)))
    }

    fn addresses(&self) -> HashSet<IpAddr> {
        let own: &[IpAddr] = if let Kind::Cluster(addresses) = &self.kind { addresses } else { &[] };
        own.iter().copied().chain(self.endpoints().map(|(endpoint, _)| endpoint.address)).collect()
    }
}

impl Records {
    /// The Service, by namespace and name in lower case.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.by_key(&service_key(namespace, name))
    }

    /// Whether the Namespace exists.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// The Services that the address belongs to, in the order of their keys.
    pub(crate) fn services_of(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        self.addresses
            .get(&address)
            .into_iter()
            .flat_map(|keys| keys.iter())
            .filter_map(|key| self.by_key(key))
    }

    /// The zone's serial number.
    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }

    fn by_key(&self, key: &str) -> Option<&Service> {
        self.services.get(key).map(|service| &**service)
    }

    fn put(&mut self, key: &Arc<str>, new: Option<Service>) {
        let old = match new {
            Some(new) => {
                let added = new.addresses();
                let old = self.services.insert(key.clone(), Arc::new(new));
                let gone = old.map(|old| old.addresses()).unwrap_or_default();
                for address in added.difference(&gone) {
                    self.own(*address, key);
                }
                gone.difference(&added).copied().collect::<Vec<_>>()
            }
            None => match self.services.remove(key) {
                Some(old) => old.addresses().into_iter().collect(),
                None => Vec::new(),
            },
        };
        for address in old {
            self.disown(address, key);
        }
    }

    fn own(&mut self, address: IpAddr, key: &Arc<str>) {
        let mut keys: Vec<_> = self.addresses.get(&address).map(|keys| keys.to_vec()).unwrap_or_default();
        if let Err(place) = keys.binary_search(key) {
            keys.insert(place, key.clone());
            self.addresses.insert(address, keys.into());
        }
    }

    fn disown(&mut self, address: IpAddr, key: &Arc<str>) {
        let Some(keys) = self.addresses.get(&address) else { return };
        let left: Vec<_> = keys.iter().filter(|owner| *owner != key).cloned().collect();
        if left.is_empty() {
            self.addresses.remove(&address);
        } else {
            self.addresses.insert(address, left.into());
        }
    }
}

/// Takes the changes that informers report and publishes a snapshot after each that matters.
#[derive(Default)]
pub(crate) struct Index {
    published: ArcSwap<Records>,
    writer: Mutex<Writer>,
}

#[derive(Default)]
struct Writer {
    specs: HashMap<Arc<str>, Spec>,
    /// By Service and slice name. A slice may come before its Service.
    slices: HashMap<Arc<str>, BTreeMap<Box<str>, Arc<Slice>>>,
    /// Which Service a slice belongs to, by `NAMESPACE/NAME` of the slice.
    slice_owners: HashMap<Box<str>, Arc<str>>,
}

struct Spec {
    kind: Kind,
    ports: Box<[Port]>,
}

impl Index {
    /// The current snapshot.
    pub(crate) fn records(&self) -> arc_swap::Guard<Arc<Records>> {
        self.published.load()
    }

    /// A Namespace was created (or changed).
    pub(crate) fn set_namespace(&self, name: &str) {
        let _writer = self.writer.lock();
        if !self.records().has_namespace(name) {
            self.publish(|records| {
                records.namespaces.insert(name.into());
            });
        }
    }

    /// A Namespace is gone.
    pub(crate) fn remove_namespace(&self, name: &str) {
        let _writer = self.writer.lock();
        self.publish(|records| {
            records.namespaces.remove(name);
        });
    }

    /// A Service was created or changed.
    pub(crate) fn set_service(&self, service: &core::Service) {
        let Some(key) = key_of(&service.metadata) else { return };
        let mut writer = self.writer.lock();
        writer.specs.insert(key.clone(), spec(service));
        self.refresh(&writer, &key);
    }

    /// A Service is gone.
    pub(crate) fn remove_service(&self, service: &core::Service) {
        let Some(key) = key_of(&service.metadata) else { return };
        let mut writer = self.writer.lock();
        writer.specs.remove(&key);
        self.refresh(&writer, &key);
    }

    /// An EndpointSlice was created or changed.
    pub(crate) fn set_slice(&self, slice: &EndpointSlice) {
        let Some(slice_key) = key_of(&slice.metadata) else { return };
        let owner =
            slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).map(|service| {
                service_key(slice.metadata.namespace.as_deref().unwrap_or_default(), &lower(service))
            });
        let mut writer = self.writer.lock();
        let before = writer.slice_owners.get(&*slice_key).cloned();
        if before.as_deref() != owner.as_deref() {
            self.drop_slice(&mut writer, &slice_key);
        }
        if let Some(owner) = owner {
            let owner: Arc<str> = owner.into();
            writer.slice_owners.insert((*slice_key).into(), owner.clone());
            let content = Arc::new(ready(slice));
            let slices = writer.slices.entry(owner.clone()).or_default();
            // Most updates of a slice change nothing that has a name.
            let same = slices.get(&*slice_key).is_some_and(|known| **known == *content);
            slices.insert((*slice_key).into(), content);
            if !same {
                self.refresh(&writer, &owner);
            }
        }
    }

    /// An EndpointSlice is gone.
    pub(crate) fn remove_slice(&self, slice: &EndpointSlice) {
        let Some(slice_key) = key_of(&slice.metadata) else { return };
        self.drop_slice(&mut self.writer.lock(), &slice_key);
    }

    fn drop_slice(&self, writer: &mut Writer, slice_key: &str) {
        let Some(owner) = writer.slice_owners.remove(slice_key) else { return };
        if let Some(slices) = writer.slices.get_mut(&owner) {
            slices.remove(slice_key);
            if slices.is_empty() {
                writer.slices.remove(&owner);
            }
        }
        self.refresh(writer, &owner);
    }

    fn refresh(&self, writer: &Writer, key: &Arc<str>) {
        let new = writer.specs.get(key).map(|spec| {
            let (namespace, name) = key.split_once('/').unwrap_or_default();
            let slices = writer.slices.get(key).map(|slices| slices.values().cloned().collect());
            Service {
                namespace: namespace.into(),
                name: name.into(),
                kind: spec.kind.clone(),
                ports: spec.ports.clone(),
                slices: slices.unwrap_or_default(),
            }
        });
        if self.records().by_key(key) != new.as_ref() {
            self.publish(|records| records.put(key, new));
        }
    }

    /// Only called while the writer's lock is held, so no change is lost.
    fn publish(&self, change: impl FnOnce(&mut Records)) {
        let mut records = Records::clone(&self.published.load());
        change(&mut records);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // Serial numbers wrap (RFC 1982).
        records.serial = (now & u64::from(u32::MAX)) as u32;
        self.published.store(Arc::new(records));
    }
}

fn service_key(namespace: &str, name: &str) -> String {
    let mut key = String::with_capacity(namespace.len() + 1 + name.len());
    key.push_str(namespace);
    key.push('/');
    key.push_str(name);
    key
}

fn key_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<Arc<str>> {
    Some(service_key(metadata.namespace.as_deref()?, metadata.name.as_deref()?).into())
}

fn spec(service: &core::Service) -> Spec {
    let empty = core::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let kind = if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref().unwrap_or_default();
        let is_address = target.parse::<IpAddr>().is_ok();
        Kind::External(if is_address { None } else { parse_name(target).filter(|name| !name.is_root()) })
    } else if spec.cluster_ip.as_deref() == Some("None") {
        Kind::Headless
    } else {
        let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in listed.filter_map(|text| text.parse().ok()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Kind::Cluster(addresses.into())
    };
    let ports = spec.ports.iter().flatten();
    let ports = ports
        .filter_map(|port| make_port(port.name.as_deref(), port.protocol.as_deref(), port.port))
        .collect();
    Spec { kind, ports }
}

/// Upstream takes an unknown readiness for ready. publishNotReadyAddresses needs no look at the
/// Service: the controller that writes the slice has set `ready` by it.
fn ready(slice: &EndpointSlice) -> Slice {
    let mut endpoints = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
            continue;
        }
        let hostname = endpoint.hostname.as_deref().filter(|hostname| !hostname.is_empty());
        // Slices of address type FQDN have no addresses that parse.
        for address in endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
            let host = match hostname {
                Some(hostname) => lower(hostname).into_owned(),
                None => address.to_string().replace(['.', ':'], "-"),
            };
            endpoints.push(Endpoint { host: host.into(), address, named: hostname.is_some() });
        }
    }
    let ports = slice.ports.iter().flatten();
    let ports = ports
        .filter_map(|port| make_port(port.name.as_deref(), port.protocol.as_deref(), port.port?))
        .collect();
    Slice { ports, endpoints: endpoints.into() }
}

fn make_port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
    let protocol = match protocol.unwrap_or("TCP") {
        "UDP" => "udp",
        "SCTP" => "sctp",
        _ => "tcp",
    };
    let name = lower(name.unwrap_or_default()).into_owned().into();
    Some(Port { name, protocol, number: u16::try_from(number).ok()? })
}
