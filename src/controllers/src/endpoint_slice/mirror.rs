//! Endpoints that a user or an outside controller writes for a Service without a selector are
//! mirrored into EndpointSlices (upstream pkg/controller/endpointslicemirroring).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use kedge_client::{Error, Informer, ObjectKey, Queue};

use super::build::{Group, family};
use super::writer::Writer;
use super::{MANAGED_BY_LABEL, SERVICE_LABEL};
use crate::adoption::owner_reference;
use crate::context::Context;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
/// No more addresses of one subset are mirrored.
const MAX_PER_SUBSET: usize = 1000;

struct Mirror {
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    writer: Writer,
}

pub(super) fn start(ctx: &Context) {
    let mirror = Arc::new(Mirror {
        services: ctx.informers.informer::<Service>(),
        endpoints: ctx.informers.informer::<Endpoints>(),
        writer: Writer::new(ctx, MANAGER),
    });
    let queue = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&mirror.services, move |change| adder.add(change.key()));
    let adder = queue.clone();
    ctx.on_change(&mirror.endpoints, move |change| adder.add(change.key()));
    let (adder, this) = (queue.clone(), mirror.clone());
    ctx.on_change(&mirror.writer.slices, move |change| {
        if let Some(key) = this.writer.seen(change) {
            adder.add(key);
        }
    });
    let this = mirror.clone();
    let synced = async move {
        this.services.synced().await;
        this.endpoints.synced().await;
        this.writer.slices.synced().await;
    };
    ctx.run("endpoint-slice-mirroring", queue, 2, synced, move |key| {
        let this = mirror.clone();
        async move { this.reconcile(&key).await }
    });
}

impl Mirror {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let service = self.services.get_key(key).filter(|service| {
            let spec = service.spec.as_ref();
            spec.is_some_and(|spec| spec.selector.as_ref().is_none_or(|selector| selector.is_empty()))
        });
        let endpoints = self.endpoints.get_key(key).filter(|endpoints| is_mirrored(endpoints));
        let (Some(_), Some(endpoints)) = (service, endpoints) else {
            let owner = Default::default();
            return self.writer.sync(key, owner, Default::default(), None, &[]).await;
        };
        let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
        labels.retain(|name, _| name != SERVICE_LABEL && name != MANAGED_BY_LABEL);
        let owner = owner_reference(&*endpoints);
        self.writer.sync(key, owner, labels, None, &groups(&endpoints)).await
    }
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let skip = endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(SKIP_LABEL));
    let elects = endpoints.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER_ANNOTATION));
    skip.is_none_or(|skip| skip != "true") && !elects && endpoints.metadata.deletion_timestamp.is_none()
}

fn groups(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready).take(MAX_PER_SUBSET) {
            let endpoint = Endpoint {
                addresses: vec![address.ip.clone()],
                conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
                hostname: address.hostname.clone(),
                node_name: address.node_name.clone(),
                target_ref: address.target_ref.clone(),
                ..Endpoint::default()
            };
            let address_type = family(&address.ip);
            let group = groups.iter_mut().find(|g| g.address_type == address_type && g.ports == ports);
            match group {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group { address_type, ports: ports.clone(), endpoints: vec![endpoint] }),
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset};

    #[test]
    fn subsets_become_groups_by_family() {
        let address = |ip: &str| EndpointAddress { ip: ip.into(), ..EndpointAddress::default() };
        let mut endpoints = Endpoints {
            subsets: Some(vec![EndpointSubset {
                addresses: Some(vec![address("192.0.2.1"), address("2001:db8::1")]),
                not_ready_addresses: Some(vec![address("192.0.2.2")]),
                ports: None,
            }]),
            ..Endpoints::default()
        };
        let found = groups(&endpoints);
        let sizes: Vec<_> = found.iter().map(|g| (g.address_type, g.endpoints.len())).collect();
        assert_eq!(sizes, [("IPv4", 2), ("IPv6", 1)]);
        assert!(is_mirrored(&endpoints));
        endpoints.metadata.labels = Some([(SKIP_LABEL.to_owned(), "true".to_owned())].into());
        assert!(!is_mirrored(&endpoints));
    }
}
