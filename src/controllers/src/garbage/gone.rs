//! Owners that are known to be gone, so that a thousand dependents do not ask a thousand times (upstream's
//! `absentOwnerCache`).

use std::collections::{HashSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

const REMEMBERED: usize = 500;

/// What is known to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// An object with this uid, whose deletion was seen.
    Seen(String),
    /// What a reference names, word for word, from this namespace. Anybody can write a reference with the uid of
    /// another object: that one is not gone.
    Named { namespace: String, api_version: String, kind: String, name: String, uid: String },
}

impl Owner {
    pub(super) fn named(namespace: &str, reference: &OwnerReference) -> Self {
        Self::Named {
            namespace: namespace.to_owned(),
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
        }
    }
}

/// The last of them.
#[derive(Debug, Default)]
pub(super) struct Gone {
    all: HashSet<Owner>,
    oldest_first: VecDeque<Owner>,
}

impl Gone {
    pub(super) fn note(&mut self, owner: Owner) {
        if !self.all.insert(owner.clone()) {
            return;
        }
        self.oldest_first.push_back(owner);
        if self.oldest_first.len() > REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.all.remove(&oldest);
        }
    }

    pub(super) fn has(&self, namespace: &str, reference: &OwnerReference) -> bool {
        self.all.contains(&Owner::Seen(reference.uid.clone()))
            || self.all.contains(&Owner::named(namespace, reference))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str, uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: name.into(),
            uid: uid.into(),
            ..OwnerReference::default()
        }
    }

    #[test]
    fn a_wrong_reference_says_nothing_of_the_owner_with_that_uid() {
        let mut gone = Gone::default();
        gone.note(Owner::named("ns", &reference("no-such", "1")));
        assert!(gone.has("ns", &reference("no-such", "1")));
        assert!(!gone.has("ns", &reference("web", "1")));
        assert!(!gone.has("other", &reference("no-such", "1")));
        gone.note(Owner::Seen("1".into()));
        assert!(gone.has("other", &reference("web", "1")));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut gone = Gone::default();
        for number in 0..=REMEMBERED {
            for _ in 0..2 {
                gone.note(Owner::Seen(number.to_string()));
            }
        }
        assert!(!gone.has("", &reference("", "0")));
        assert!(gone.has("", &reference("", "1")) && gone.has("", &reference("", &REMEMBERED.to_string())));
        assert_eq!(gone.all.len(), REMEMBERED);
    }
}
