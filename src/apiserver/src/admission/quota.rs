//! ResourceQuota: charges a write to its namespace's quotas. The quota's new usage is written in the
//! same transaction as the object, with the quota's revision as a condition: two writers can never
//! spend the same thing. The quota controller lowers the usage again when objects go.

use std::hash::{Hash as _, Hasher as _};

use kedge_api::object;
use kedge_api::quota;
use kedge_api::resources::list;
use kedge_api::status::Status;
use kedge_store::{Check, Condition, Key, Op};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use super::{Operation, Request, objects_in};
use crate::encode;
use crate::verbs::create::seal;
use crate::verbs::read;

/// Writers of this server that are charged to the quotas of one namespace, one after the other, until each is
/// committed: so that they do not run into each other's charges. Some namespaces share a turn.
#[derive(Default)]
pub(crate) struct Turns([Mutex<()>; 32]);

impl Turns {
    fn of(&self, namespace: &str) -> &Mutex<()> {
        let mut hasher = std::hash::DefaultHasher::new();
        namespace.hash(&mut hasher);
        let place = hasher.finish() % self.0.len() as u64;
        &self.0[usize::try_from(place).unwrap_or(0)]
    }
}

/// What a write adds to quotas; `Default` is nothing.
#[derive(Default)]
pub(crate) struct Charges<'a> {
    quotas: Vec<(Key, u64, kedge_store::Value)>,
    /// Of their encryption.
    conditions: Vec<Condition>,
    _turn: Option<MutexGuard<'a, ()>>,
}

impl Charges<'_> {
    pub(crate) fn add_to(&self, conditions: &mut Vec<Condition>, ops: &mut Vec<Op>) {
        conditions.extend(self.conditions.iter().cloned());
        for (key, revision, value) in &self.quotas {
            conditions.push(Condition { key: key.clone(), check: Check::At(*revision) });
            ops.push(Op::Put { key: key.clone(), value: value.clone() });
        }
    }

    /// Whether the key is a quota's: somebody else changed it, the write is to be tried again.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.quotas.iter().any(|(own, _, _)| own == key)
    }
}

/// 403 when a quota does not have enough left.
pub(crate) async fn charge<'a>(
    request: &Request<'a>,
    value: &serde_json::Value,
) -> Result<Charges<'a>, Status> {
    let resource = request.resource;
    let (group, plural) = (&*resource.group, &*resource.plural);
    let resize = (group, plural, request.subresource) == ("", "pods", "resize");
    let concerned = match request.operation {
        Operation::Create => request.subresource.is_empty(),
        // Of what can be changed only these are charged by what they say; a pod that gets a deadline, or loses
        // it, changes over to other quotas.
        Operation::Update => {
            let ends = |pod: &serde_json::Value| pod["spec"]["activeDeadlineSeconds"].is_i64();
            let moves = request.is("", "pods")
                && request.subresource.is_empty()
                && request.old.is_some_and(|old| ends(old) != ends(value));
            resize || moves || request.is("", "services") || request.is("", "persistentvolumeclaims")
        }
        Operation::Delete | Operation::Connect => false,
    };
    let state = request.state;
    let none = |namespace: &str| objects_in(state, "resourcequotas", namespace).is_empty();
    if !concerned || request.namespace.is_empty() || none(request.namespace) {
        return Ok(Charges::default());
    }
    let turn = state.quota_turns.of(request.namespace).lock().await;
    let mut charges = Charges { _turn: Some(turn), ..Charges::default() };
    let now = jiff::Timestamp::now();
    let usage = quota::usage(group, plural, value, now);
    for stored in objects_in(state, "resourcequotas", request.namespace) {
        let mut object = read::parse(&stored.bytes)?;
        if !quota::counts(&object, group, plural, value) {
            continue;
        }
        let name = object::name(&object).to_owned();
        let hard = list(&object["spec"]["hard"]);
        if (group, plural) == ("", "pods")
            && let Some(what) = quota::unspecified(&hard, &value["spec"])
        {
            return Err(request.forbidden(&format!("failed quota: {name}: {what}")));
        }
        // An object that did not count before is charged in full.
        let before = request.old.filter(|old| quota::counts(&object, group, plural, old));
        let delta = match before {
            Some(old) => quota::difference(&usage, &quota::usage(group, plural, old, now)),
            None => usage.clone(),
        };
        let Some(charge) = quota::charge(&object, &delta).map_err(|message| request.forbidden(&message))?
        else {
            continue;
        };
        for (resource, quantity) in charge.used {
            object["status"]["used"][resource] = json!(quantity.to_string());
        }
        let key: Key = format!("resourcequotas/{}", stored.key).into();
        let value = encode::encode(&object);
        let value = seal(state, "resourcequotas", &key, value, &mut charges.conditions)?;
        charges.quotas.push((key, stored.modified, value));
    }
    if charges.quotas.is_empty() {
        return Ok(Charges::default());
    }
    Ok(charges)
}
