//! Which node holds which address of the pool, and what every node is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use kedge_client::load_balancer::{ADDRESSES, PORTS, PORTS_ANSWER, Port, ports_text};
use kedge_client::{Error, ObjectKey};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::nodes::{self, Facts};
use super::settings::{self, Mode, State};
use super::{Controller, ingress, is_meant, mark, ports};
use crate::context::ignore_not_found;

/// The addon's ConfigMap stays until everything of it is taken back; `kedge disable` waits for that.
const SETTINGS_FINALIZER: &str = "kedge.dev/load-balancer";

/// A Service with addresses that some node is to hold.
struct Claim {
    service: Arc<Service>,
    key: ObjectKey,
    addresses: Vec<IpAddr>,
    eligible: BTreeSet<String>,
}

impl Controller {
    pub(super) async fn ask_nodes(&self) -> Result<(), Error> {
        let all = nodes::all(&self.nodes);
        let state = self.state();
        let (mut held, mut asked) = (BTreeMap::new(), BTreeSet::new());
        let mut claims = Vec::new();
        match &state {
            State::Broken(_) => return Ok(()),
            State::Off => {}
            State::On(Mode::Nodes) => {
                let services = self.balanced();
                let specs = services
                    .iter()
                    .filter(|service| is_meant(service))
                    .filter_map(|service| service.spec.as_ref());
                asked = specs.flat_map(ports::of_service).collect();
            }
            State::On(Mode::Pool(_)) => {
                claims = self.claims(&all);
                held = holders(&claims, &all);
            }
        }
        self.follow(&held, &all);
        // Whoever loses an address hears of it first.
        let gains = |node: &&Facts| {
            held.get(&node.name).is_some_and(|held: &BTreeSet<IpAddr>| !held.is_subset(&node.held))
        };
        let (last, first): (Vec<&Facts>, Vec<&Facts>) = all.values().partition(gains);
        for node in first.into_iter().chain(last) {
            self.ask(node, held.get(&node.name), &asked).await?;
        }
        self.say_who_holds(&claims, &held, &all);
        self.keep_settings(&state, &all).await
    }

    /// The Services of the pool, with the nodes that may hold their addresses.
    fn claims(&self, all: &BTreeMap<String, Facts>) -> Vec<Claim> {
        let services =
            self.balanced().into_iter().filter(|service| is_meant(service) && mark(service) == Some("pool"));
        let claim = |service: Arc<Service>| {
            let addresses = ingress(&service);
            let local = nodes::is_local(&service).then(|| nodes::with_endpoints(&service, &self.slices));
            let fit = all.values().filter(|node| node.is_fit && node.is_kedge);
            let fit = fit.filter(|node| local.as_ref().is_none_or(|local| local.contains(&node.name)));
            let fit: BTreeSet<String> = fit.map(|node| node.name.clone()).collect();
            let there: BTreeSet<String> =
                fit.iter().filter(|name| !self.reach.is_lost(name)).cloned().collect();
            // When none answers the fault may be here.
            let eligible = if there.is_empty() { fit } else { there };
            Claim { key: ObjectKey::of(&*service), service, addresses, eligible }
        };
        services.map(claim).filter(|claim| !claim.addresses.is_empty()).collect()
    }

    /// Those that hold something are watched, and those that did not answer until they do.
    fn follow(&self, held: &BTreeMap<String, BTreeSet<IpAddr>>, all: &BTreeMap<String, Facts>) {
        let watched = all.values().filter(|node| {
            node.is_fit
                && !held.is_empty()
                && (held.contains_key(&node.name) || self.reach.is_lost(&node.name))
        });
        self.reach.follow(watched.filter_map(|node| Some((node.name.clone(), node.kubelet?))).collect());
    }

    async fn ask(
        &self,
        node: &Facts,
        held: Option<&BTreeSet<IpAddr>>,
        asked: &BTreeSet<Port>,
    ) -> Result<(), Error> {
        let none = BTreeSet::new();
        let held = held.unwrap_or(&none);
        let wants_nothing = held.is_empty() && asked.is_empty();
        if *held == node.held && *asked == node.asked && !(wants_nothing && node.is_marked) {
            return Ok(());
        }
        let addresses = held.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut annotations = json!({
            ADDRESSES: (!held.is_empty()).then_some(addresses),
            PORTS: (!asked.is_empty()).then(|| ports_text(asked)),
        });
        if asked.is_empty() {
            annotations[PORTS_ANSWER] = json!(null);
        }
        let patch = json!({ "metadata": { "annotations": annotations } });
        let api: kube::Api<Node> = kube::Api::all(self.ctx.client.clone());
        ignore_not_found(api.patch(&node.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        Ok(())
    }

    fn say_who_holds(
        &self,
        claims: &[Claim],
        held: &BTreeMap<String, BTreeSet<IpAddr>>,
        before: &BTreeMap<String, Facts>,
    ) {
        for claim in claims {
            for (name, addresses) in held {
                let is_new = |address: &&IpAddr| {
                    addresses.contains(address)
                        && before.get(name).is_none_or(|node| !node.held.contains(address))
                };
                let new: Vec<String> =
                    claim.addresses.iter().filter(is_new).map(ToString::to_string).collect();
                if !new.is_empty() {
                    let text = format!("{} is announced by node {name:?}", new.join(", "));
                    self.event(&claim.service, "NodeAssigned", text);
                }
            }
        }
    }

    /// The ConfigMap may go when nothing is left of it.
    async fn keep_settings(&self, state: &State, all: &BTreeMap<String, Facts>) -> Result<(), Error> {
        let Some(map) = self.settings.get(settings::NAMESPACE, settings::NAME) else { return Ok(()) };
        let has = map.metadata.finalizers.iter().flatten().any(|own| own == SETTINGS_FINALIZER);
        let list = match state {
            State::On(_) if !has => "finalizers",
            State::Off if has => {
                let is_left = self.services.list().iter().any(|service| mark(service).is_some());
                if is_left || all.values().any(|node| node.is_marked) {
                    // Their changes bring us here again.
                    return Ok(());
                }
                "$deleteFromPrimitiveList/finalizers"
            }
            _ => return Ok(()),
        };
        let patch = json!({ "metadata": { "uid": map.metadata.uid, list: [SETTINGS_FINALIZER] } });
        let api = self.ctx.api::<ConfigMap>(settings::NAMESPACE);
        ignore_not_found(api.patch(settings::NAME, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(())
    }
}

/// One holder for all addresses of a Service: the one of now while it may; else the eligible node that a hash
/// of both names ranks highest, so that Services spread over the nodes. Without an eligible node everything
/// stays as it is.
fn holders(claims: &[Claim], all: &BTreeMap<String, Facts>) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut held: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for claim in claims {
        let has = |node: &Facts| claim.addresses.iter().any(|address| node.held.contains(address));
        let mut current = all.values().filter(|node| has(node)).map(|node| &node.name);
        let kept = current.clone().find(|name| claim.eligible.contains(*name));
        let best = || claim.eligible.iter().max_by_key(|name| (weight(name, &claim.key), *name));
        if let Some(name) = kept.or_else(best).or_else(|| current.next()) {
            held.entry(name.clone()).or_default().extend(&claim.addresses);
        }
    }
    held
}

/// The same in every version of Kedge (FNV-1a, and a mixer for its weak high bits).
fn weight(node: &str, key: &ObjectKey) -> u64 {
    let text = format!("{node}\0{key}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, held: &[&str]) -> (String, Facts) {
        let held = held.iter().map(|text| text.parse().unwrap()).collect();
        (name.to_owned(), Facts { name: name.to_owned(), held, is_fit: true, ..Facts::default() })
    }

    fn claim(name: &str, addresses: &[&str], eligible: &[&str]) -> Claim {
        Claim {
            service: Arc::default(),
            key: ObjectKey::new("ns", name),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            eligible: eligible.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn an_address_stays_where_it_is_while_it_may() {
        for (held, eligible, expected) in [
            (vec![node("a", &[]), node("b", &["192.0.2.1"])], vec!["a", "b"], Some("b")),
            (vec![node("a", &[]), node("b", &["192.0.2.1"])], vec!["a"], Some("a")),
            // Nobody may: it stays.
            (vec![node("a", &[]), node("b", &["192.0.2.1"])], vec![], Some("b")),
            (vec![node("a", &[]), node("b", &[])], vec![], None),
            // Two have it: one of them.
            (vec![node("a", &["192.0.2.1"]), node("b", &["192.0.2.1"])], vec!["a", "b"], Some("a")),
            // Both families go together.
            (vec![node("a", &["2001:db8::1"]), node("b", &[])], vec!["a", "b"], Some("a")),
        ] {
            let claims = [claim("web", &["192.0.2.1", "2001:db8::1"], &eligible)];
            let found = holders(&claims, &held.into_iter().collect());
            assert_eq!(
                found.keys().map(String::as_str).collect::<Vec<_>>(),
                Vec::from_iter(expected),
                "{eligible:?}"
            );
            assert!(found.values().all(|addresses| addresses.len() == 2));
        }
    }

    #[test]
    fn services_spread_over_the_nodes_and_move_only_when_they_must() {
        let names = ["a", "b", "c"];
        let empty: BTreeMap<String, Facts> = names.iter().map(|name| node(name, &[])).collect();
        let addresses: Vec<String> = (0..60).map(|number| format!("192.0.2.{number}")).collect();
        let claims = |eligible: &[&str]| -> Vec<Claim> {
            addresses.iter().map(|text| claim(&format!("s-{text}"), &[text], eligible)).collect()
        };
        let first = holders(&claims(&names), &empty);
        assert!(names.iter().all(|name| first[*name].len() >= 10), "{first:?}");
        // Without c, what a and b had stays there.
        let now: BTreeMap<String, Facts> = first
            .iter()
            .map(|(name, held)| (name.clone(), Facts { held: held.clone(), ..node(name, &[]).1 }))
            .collect();
        let second = holders(&claims(&["a", "b"]), &now);
        assert!(["a", "b"].iter().all(|name| second[*name].is_superset(&first[*name])));
        assert_eq!(second.values().map(BTreeSet::len).sum::<usize>(), 60);
    }
}
