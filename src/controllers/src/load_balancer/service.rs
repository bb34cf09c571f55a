//! One Service: it gets addresses into its status, or they are taken out of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kedge_base::AddressRange;
use kedge_client::{Error, EventType, ObjectKey, is_not_found};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::allocate::{Owner, Wish, allocate};
use super::settings::Mode;
use super::{Controller, FINALIZER, MARK, families, ingress, mark, nodes, ports, rank};

/// Addresses that a Service wishes for, with commas; MetalLB's names are understood as well.
const WISHES: [&str; 3] =
    ["kedge.dev/load-balancer-ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];

impl Controller {
    pub(super) async fn ensure(&self, service: &Service, mode: &Mode) -> Result<(), Error> {
        match mode {
            Mode::Pool(pool) => self.ensure_pool(service, pool, mode).await,
            Mode::Nodes => self.ensure_nodes(service, mode).await,
        }
    }

    async fn ensure_pool(&self, service: &Service, pool: &[AddressRange], mode: &Mode) -> Result<(), Error> {
        let wish = match wish(service) {
            Ok(wish) => wish,
            Err(text) => return self.without(service, mode, &text).await,
        };
        let known = self.taken(service, &self.services.list());
        if is_settled(service, mode) && allocate(pool, &known, &wish).as_ref() == Ok(&wish.current) {
            self.told.lock().remove(&ObjectKey::of(service));
            return Ok(());
        }
        // Two Services must never share an address, so the truth is read and not the cache.
        let live: kube::Api<Service> = kube::Api::all(self.ctx.client.clone());
        let live = live.list(&ListParams::default()).await?.items.into_iter().map(Arc::new);
        let live: Vec<Arc<Service>> = live.collect();
        let Some(own) = live.iter().find(|other| other.metadata.uid == service.metadata.uid) else {
            return Ok(());
        };
        let wish = Wish { current: ingress(own), ..wish };
        match allocate(pool, &self.taken(own, &live), &wish) {
            Ok(addresses) => self.give(own, mode, &addresses).await,
            Err(text) => self.without(own, mode, &text).await,
        }
    }

    /// The addresses that are not free for a Service: those of others, and of the nodes.
    fn taken(&self, service: &Service, all: &[Arc<Service>]) -> BTreeMap<IpAddr, Owner> {
        let mut taken = BTreeMap::new();
        for node in nodes::all(&self.nodes).into_values() {
            let owner = Owner { name: format!("node {}", node.name), is_first: true };
            taken.extend(node.addresses.iter().map(|address| (*address, owner.clone())));
        }
        let own = Owner { name: "the API server".to_owned(), is_first: true };
        taken.extend(self.ctx.config.virtual_addresses.iter().map(|address| (*address, own.clone())));
        let own_rank = rank(service);
        for other in all.iter().filter(|other| other.metadata.uid != service.metadata.uid) {
            let spec = other.spec.as_ref();
            let external = spec.and_then(|spec| spec.external_ips.as_ref()).into_iter().flatten();
            let external: Vec<IpAddr> = external.filter_map(|text| text.parse().ok()).collect();
            let found = ingress(other).into_iter().chain(external);
            let owner = Owner {
                name: format!("the Service {}", ObjectKey::of(&**other)),
                is_first: rank(other) < own_rank,
            };
            for address in found {
                // Who comes first is the one that counts.
                let known = taken.entry(address).or_insert_with(|| owner.clone());
                if owner.is_first && !known.is_first {
                    *known = owner.clone();
                }
            }
        }
        taken
    }

    async fn ensure_nodes(&self, service: &Service, mode: &Mode) -> Result<(), Error> {
        let Some(spec) = &service.spec else { return Ok(()) };
        if let Some(text) = ports::conflict(service, &self.services.list()) {
            return self.without(service, mode, &text).await;
        }
        let all = nodes::all(&self.nodes);
        let fit: Vec<_> = all.values().filter(|node| node.is_fit).collect();
        if fit.is_empty() {
            // A cluster that is just starting has no reason to tell the world new addresses.
            let text = "There are no available nodes for LoadBalancer".to_owned();
            self.tell(service, EventType::Warning, "UnAvailableLoadBalancer", text);
            return Ok(());
        }
        let local = nodes::is_local(service).then(|| nodes::with_endpoints(service, &self.slices));
        let chosen =
            fit.into_iter().filter(|node| local.as_ref().is_none_or(|local| local.contains(&node.name)));
        let place = ports::place(spec, chosen, &ports::of_pods(&self.pods.list()));
        if place.addresses.is_empty() && place.is_waiting {
            return Ok(());
        }
        if place.addresses.is_empty() && !place.refused.is_empty() {
            let text = format!("its ports are in use on every node: {}", place.refused.join("; "));
            return self.without(service, mode, &text).await;
        }
        self.give(service, mode, &place.addresses).await?;
        if place.refused.is_empty() {
            self.told.lock().remove(&ObjectKey::of(service));
        } else {
            let text = format!("Left out for ports in use: {}", place.refused.join("; "));
            self.tell(service, EventType::Warning, "LoadBalancerNodesSkipped", text);
        }
        Ok(())
    }

    /// It stays without an address, for a reason.
    async fn without(&self, service: &Service, mode: &Mode, text: &str) -> Result<(), Error> {
        if !ingress(service).is_empty() && mark(service).is_some() {
            self.set_status(service, &[]).await?;
        }
        if mark(service).is_some_and(|mark| mark != mode.name()) {
            self.set_mark(service, Some(mode)).await?;
        }
        self.refuse(service, text);
        Ok(())
    }

    async fn give(&self, service: &Service, mode: &Mode, addresses: &[IpAddr]) -> Result<(), Error> {
        let (before, is_settled) = (ingress(service), is_settled(service, mode));
        if is_settled && before == addresses {
            return Ok(());
        }
        let is_update = is_settled && !before.is_empty();
        if !is_update {
            self.event(service, "EnsuringLoadBalancer", "Ensuring load balancer");
        }
        // Before anything else: what is given away must be taken back one day.
        if !is_settled {
            self.set_mark(service, Some(mode)).await?;
        }
        if before != addresses {
            self.set_status(service, addresses).await?;
        }
        self.told.lock().remove(&ObjectKey::of(service));
        if is_update {
            self.event(service, "UpdatedLoadBalancer", "Updated load balancer with new hosts");
        } else {
            self.event(service, "EnsuredLoadBalancer", "Ensured load balancer");
        }
        Ok(())
    }

    /// It is no longer taken care of here.
    pub(super) async fn release(&self, service: &Service) -> Result<(), Error> {
        self.event(service, "DeletingLoadBalancer", "Deleting load balancer");
        if !ingress(service).is_empty() {
            self.set_status(service, &[]).await?;
        }
        self.set_mark(service, None).await?;
        self.event(service, "DeletedLoadBalancer", "Deleted load balancer");
        Ok(())
    }

    async fn set_status(&self, service: &Service, addresses: &[IpAddr]) -> Result<(), Error> {
        // The proxy of every node answers there itself.
        let ingress: Vec<Value> =
            addresses.iter().map(|address| json!({ "ip": address, "ipMode": "VIP" })).collect();
        let ingress = if ingress.is_empty() { Value::Null } else { json!(ingress) };
        let patch = json!({
            "metadata": { "uid": service.metadata.uid },
            "status": { "loadBalancer": { "ingress": ingress } },
        });
        let key = ObjectKey::of(service);
        let api = self.ctx.api::<Service>(&key.namespace);
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    async fn set_mark(&self, service: &Service, mode: Option<&Mode>) -> Result<(), Error> {
        let list = if mode.is_some() { "finalizers" } else { "$deleteFromPrimitiveList/finalizers" };
        let patch = json!({
            "metadata": {
                "uid": service.metadata.uid,
                "annotations": { MARK: mode.map(Mode::name) },
                list: [FINALIZER],
            },
        });
        let key = ObjectKey::of(service);
        let api = self.ctx.api::<Service>(&key.namespace);
        gone_is_fine(api.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await)
    }
}

/// A Service that was deleted, or made anew, meanwhile is not the one that was looked at.
fn gone_is_fine(result: Result<Service, kube::Error>) -> Result<(), Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// It carries our mark and the finalizer.
fn is_settled(service: &Service, mode: &Mode) -> bool {
    let finalizers = service.metadata.finalizers.as_deref().unwrap_or_default();
    mark(service) == Some(mode.name()) && finalizers.iter().any(|own| own == FINALIZER)
}

/// What it asks for, or what makes no sense in it.
fn wish(service: &Service) -> Result<Wish, String> {
    let spec = service.spec.as_ref().ok_or("it has no spec")?;
    let annotation = |name: &&str| service.metadata.annotations.as_ref().and_then(|all| all.get(*name));
    let annotated = WISHES.iter().find_map(annotation).map(String::as_str).unwrap_or_default();
    let named = annotated.split(',').chain(spec.load_balancer_ip.as_deref());
    let named = named.map(str::trim).filter(|text| !text.is_empty());
    let named: Result<Vec<IpAddr>, String> = named
        .map(|text| text.parse().map_err(|_| format!("{text:?} was asked for and is not an IP address")))
        .collect();
    Ok(Wish {
        families: families(spec),
        needs_all: spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
        named: named?,
        current: ingress(service),
    })
}
