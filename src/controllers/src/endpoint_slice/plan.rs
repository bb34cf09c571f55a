//! Which slices to create, change and delete: as few changes as possible, since every change goes
//! to every node (upstream staging/src/k8s.io/endpointslice/reconciler.go).

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kedge_base::Order as _;

use super::build::Group;

/// More endpoints go into another slice.
pub(super) const MAX: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Endpoints of slices to create, with the index of their group.
    pub(super) create: Vec<(usize, Vec<Endpoint>)>,
    /// Slices with other endpoints.
    pub(super) update: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
    /// As they should be (apart from labels, which the caller looks at).
    pub(super) keep: Vec<Arc<EndpointSlice>>,
}

/// What makes two endpoints the same one, whatever its state.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref());
    uid.map_or_else(|| endpoint.addresses.join(","), str::to_owned)
}

pub(super) fn plan(groups: &[Group], existing: Vec<Arc<EndpointSlice>>) -> Plan {
    let mut plan = Plan::default();
    let mut existing = existing;
    for (index, group) in groups.iter().enumerate() {
        let (ours, rest): (Vec<_>, Vec<_>) = existing.into_iter().partition(|slice| {
            slice.address_type == group.address_type
                && slice.metadata.deletion_timestamp.is_none()
                && slice.ports.as_deref().unwrap_or_default() == group.ports.as_slice()
        });
        existing = rest;
        plan_group(&mut plan, index, group, ours);
    }
    plan.delete.extend(existing);
    plan
}

fn plan_group(plan: &mut Plan, index: usize, group: &Group, ours: Vec<Arc<EndpointSlice>>) {
    let mut wanted: HashMap<String, Endpoint> =
        group.endpoints.iter().map(|endpoint| (identity(endpoint), endpoint.clone())).collect();
    // First every slice keeps those of its endpoints that are still wanted.
    let mut slices: Vec<(Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in ours {
        let before = slice.endpoints.clone().unwrap_or_default();
        let after: Vec<Endpoint> =
            before.iter().filter_map(|endpoint| wanted.remove(&identity(endpoint))).collect();
        let changed = before != after;
        slices.push((slice, after, changed));
    }
    // Then the new ones go where there is room, into slices that change anyway at first.
    let mut new: Vec<Endpoint> =
        group.endpoints.iter().filter_map(|endpoint| wanted.remove(&identity(endpoint))).collect();
    let mut order: Vec<usize> = (0..slices.len()).collect();
    order.order_by_key(|&i| (!slices[i].2, std::cmp::Reverse(slices[i].1.len())));
    for i in order {
        let (_, endpoints, changed) = &mut slices[i];
        // An empty slice that is deleted below costs as much as one that is filled.
        let take = MAX.saturating_sub(endpoints.len()).min(new.len());
        if take > 0 {
            endpoints.extend(new.drain(..take));
            *changed = true;
        }
    }
    while !new.is_empty() {
        let rest = new.split_off(new.len().min(MAX));
        plan.create.push((index, std::mem::replace(&mut new, rest)));
    }
    // One slice stays when nothing is wanted: the placeholder.
    let mut placeholder = group.endpoints.is_empty();
    for (slice, endpoints, changed) in slices {
        if endpoints.is_empty() && !std::mem::take(&mut placeholder) {
            plan.delete.push(slice);
        } else if changed {
            plan.update.push((slice, endpoints));
        } else {
            plan.keep.push(slice);
        }
    }
    if placeholder {
        plan.create.push((index, Vec::new()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(range: std::ops::Range<usize>) -> Vec<Endpoint> {
        range.map(|n| Endpoint { addresses: vec![format!("10.0.0.{n}")], ..Endpoint::default() }).collect()
    }

    fn group(endpoints: Vec<Endpoint>) -> Vec<Group> {
        vec![Group { address_type: "IPv4", ports: Vec::new(), endpoints }]
    }

    fn slice(endpoints: Vec<Endpoint>) -> Arc<EndpointSlice> {
        Arc::new(EndpointSlice {
            address_type: "IPv4".into(),
            endpoints: Some(endpoints),
            ..EndpointSlice::default()
        })
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list of one slice's endpoints is meant")]
    fn as_few_slices_and_changes_as_possible() {
        for (wanted, existing, create, update, delete, keep) in [
            (0..0, vec![], 1, 0, 0, 0),
            (0..0, vec![0..0], 0, 0, 0, 1),
            (0..0, vec![0..5], 0, 1, 0, 0),
            (0..0, vec![0..5, 5..9], 0, 1, 1, 0),
            (0..3, vec![0..3], 0, 0, 0, 1),
            (0..3, vec![0..2], 0, 1, 0, 0),
            (0..250, vec![], 3, 0, 0, 0),
            (0..150, vec![0..100], 1, 0, 0, 1),
            (0..100, vec![0..100, 100..150], 0, 0, 1, 1),
        ] {
            let existing: Vec<_> = existing.into_iter().map(|range| slice(endpoints(range))).collect();
            let plan = plan(&group(endpoints(wanted.clone())), existing);
            assert_eq!(
                (plan.create.len(), plan.update.len(), plan.delete.len(), plan.keep.len()),
                (create, update, delete, keep),
                "{wanted:?}"
            );
        }
    }

    #[test]
    fn a_slice_of_other_ports_goes() {
        let mut other = (*slice(endpoints(0..2))).clone();
        other.address_type = "IPv6".into();
        let plan = plan(&group(endpoints(0..2)), vec![Arc::new(other)]);
        assert_eq!((plan.create.len(), plan.delete.len()), (1, 1));
    }
}
