//! Enable, disable, list: the verbs of the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};

use crate::apply::{Objects, converge};
use crate::catalog::Catalog;
use crate::check::Check;
use crate::definition::Addon;
use crate::error::Error;
use crate::inventory::{ADDONS, Inventory, ObjectRef};
use crate::{health, render};

/// How long what is removed may take until it is gone.
const GONE_LIMIT: Duration = Duration::from_secs(60);

/// What manifests may know of the cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Kedge's version, which is also the tag of its images: `${version}`
    pub version: String,
    /// `${cluster_dns}`
    pub cluster_dns: String,
    /// `${cluster_domain}`
    pub cluster_domain: String,
    /// `${pod_cidr}`
    pub pod_cidr: String,
    /// Kedge's data folder on every node: `${data_dir}`
    pub data_dir: String,
}

impl Cluster {
    pub(crate) fn values(&self) -> BTreeMap<String, String> {
        [
            ("version", &self.version),
            ("cluster_dns", &self.cluster_dns),
            ("cluster_domain", &self.cluster_domain),
            ("pod_cidr", &self.pod_cidr),
            ("data_dir", &self.data_dir),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect()
    }
}

/// How an addon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Disabled,
    /// Enabled and healthy.
    Enabled,
    /// Enabled, and something stops it.
    Unhealthy,
}

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Listed {
    pub name: String,
    /// Of the enabled one, or of the catalogue's.
    pub version: String,
    pub description: String,
    pub state: State,
    /// Those that it was enabled with; the others have their defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: BTreeMap<String, String>,
    /// Why it is unhealthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// What helps against the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Works on the addons of one cluster.
pub struct Manager {
    client: kube::Client,
    catalog: Catalog,
    cluster: Cluster,
}

impl Manager {
    pub fn new(client: kube::Client, catalog: Catalog, cluster: Cluster) -> Self {
        Self { client, catalog, cluster }
    }

    /// The client that it works with.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Applies an addon, removes what an earlier version of it had more, and waits until it is healthy.
    /// Doing it twice is the same as doing it once.
    ///
    /// # Errors
    /// Before anything is applied: unknown addon, wrong argument, unmet requirement. Afterwards: what the
    /// API server refused, or [`Error::Unhealthy`].
    pub async fn enable(
        &self,
        name: &str,
        given: &BTreeMap<String, String>,
        limit: Duration,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Error> {
        let addon = self.catalog.get(name)?;
        let (objects, checks) = self.render(addon, given)?;
        if addon.builtin {
            return Ok(());
        }
        self.check_needs(addon, &[]).await?;
        let before = Inventory::load(&self.client, name).await?;
        let made: Vec<ObjectRef> = objects.iter().map(ObjectRef::of).collect();
        let inventory = Inventory {
            shelf: ADDONS,
            addon: name.to_owned(),
            version: addon.version.clone(),
            kedge: self.cluster.version.clone(),
            digest: render::digest(&objects),
            arguments: given.clone(),
            objects: made.clone(),
            health: checks.clone(),
            existed: None,
            uids: BTreeSet::new(),
        };
        converge(&self.client, inventory, &objects, before, &BTreeSet::new(), false, progress).await?;
        health::wait(&self.client, name, &made, &checks, limit, progress).await
    }

    /// Could these be enabled one after another? Nothing is changed.
    ///
    /// # Errors
    /// Unknown addon, wrong argument, unmet requirement of any of them.
    pub async fn check(&self, wanted: &[(String, BTreeMap<String, String>)]) -> Result<(), Error> {
        for (place, (name, given)) in wanted.iter().enumerate() {
            let addon = self.catalog.get(name)?;
            self.render(addon, given)?;
            if !addon.builtin {
                self.check_needs(addon, &wanted[..place]).await?;
            }
        }
        Ok(())
    }

    /// A node that can run it, and the addons that it needs: enabled, or `earlier` than it.
    async fn check_needs(
        &self,
        addon: &Addon,
        earlier: &[(String, BTreeMap<String, String>)],
    ) -> Result<(), Error> {
        self.check_architecture(addon).await?;
        for requirement in &addon.requires {
            let always_on = self.catalog.get(requirement).is_ok_and(|required| required.builtin);
            let comes = earlier.iter().any(|(name, _)| name == requirement);
            if !always_on && !comes && Inventory::load(&self.client, requirement).await?.is_none() {
                let (addon, requirement) = (addon.name.clone(), requirement.clone());
                return Err(Error::Requires { addon, requirement });
            }
        }
        Ok(())
    }

    /// Could these be disabled one after another? Nothing is changed.
    ///
    /// # Errors
    /// Unknown addon, one that is not enabled, or that another one needs which stays.
    pub async fn check_removal(&self, names: &[&str]) -> Result<(), Error> {
        let enabled = Inventory::all(&self.client).await?;
        for (place, name) in names.iter().enumerate() {
            self.removable(name, &enabled, &names[..place])?;
        }
        Ok(())
    }

    /// What is to go with an addon, once the `earlier` ones are gone.
    fn removable<'a>(
        &self,
        name: &str,
        enabled: &'a [Inventory],
        earlier: &[&str],
    ) -> Result<&'a Inventory, Error> {
        if self.catalog.get(name).is_ok_and(|addon| addon.builtin) {
            return Err(Error::AlwaysOn { addon: name.to_owned() });
        }
        let stays = |other: &&Inventory| !earlier.contains(&other.addon.as_str());
        let Some(inventory) = enabled.iter().filter(stays).find(|own| own.addon == name) else {
            if !enabled.iter().any(|own| own.addon == name) {
                self.catalog.get(name)?;
            }
            return Err(Error::NotEnabled(name.to_owned()));
        };
        let needs = |other: &&Inventory| {
            let addon = self.catalog.get(&other.addon);
            addon.is_ok_and(|addon| addon.requires.iter().any(|required| required == name))
        };
        let users: Vec<&str> =
            enabled.iter().filter(stays).filter(needs).map(|other| other.addon.as_str()).collect();
        if !users.is_empty() {
            return Err(Error::InUse { addon: name.to_owned(), users: users.join(", ") });
        }
        Ok(inventory)
    }

    /// Removes what enabling made, in the reverse order, and forgets the addon. Returns what stays and why:
    /// what was there before it, and a namespace that holds things of others.
    ///
    /// # Errors
    /// When it is not enabled, others need it, or the API server refuses.
    pub async fn disable(
        &self,
        name: &str,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Vec<String>, Error> {
        let enabled = Inventory::all(&self.client).await?;
        let inventory = self.removable(name, &enabled, &[])?;
        let mut api = Objects::new(&self.client);
        let (mut deleted, mut remarks) = (Vec::new(), Vec::new());
        for object in inventory.objects.iter().rev() {
            progress(&format!("removing {object}"));
            match api.remove(object, inventory).await? {
                None => deleted.push(object),
                Some(remark) => remarks.push(remark),
            }
        }
        // Whatever somebody else's finalizer holds up is not waited for.
        let all_gone = async {
            for object in deleted {
                progress(&format!("waiting until {object} is gone"));
                health::gone(&self.client, object).await?;
            }
            Ok::<(), Error>(())
        };
        if let Ok(result) = tokio::time::timeout(GONE_LIMIT, all_gone).await {
            result?;
        }
        inventory.delete(&self.client).await?;
        Ok(remarks)
    }

    /// Every addon of the catalogue, and those that are enabled but no longer in it.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut enabled: BTreeMap<String, Inventory> = Inventory::all(&self.client)
            .await?
            .into_iter()
            .map(|inventory| (inventory.addon.clone(), inventory))
            .collect();
        let mut list = Vec::new();
        for addon in self.catalog.iter() {
            let inventory = enabled.remove(&addon.name);
            let (name, version) = (addon.name.clone(), addon.version.clone());
            list.push(self.listed(name, version, &addon.description, addon.builtin, inventory).await?);
        }
        for (name, inventory) in enabled {
            let version = inventory.version.clone();
            let description = "(not in this version of Kedge, nor in a repository of this node)";
            list.push(self.listed(name, version, description, false, Some(inventory)).await?);
        }
        Ok(list)
    }

    async fn listed(
        &self,
        name: String,
        version: String,
        description: &str,
        builtin: bool,
        inventory: Option<Inventory>,
    ) -> Result<Listed, Error> {
        let mut listed = Listed {
            name,
            version,
            description: description.to_owned(),
            state: State::Disabled,
            arguments: BTreeMap::new(),
            reasons: Vec::new(),
            remedy: None,
        };
        if let Some(inventory) = inventory {
            listed.version = inventory.version;
            let again = format!("kedge enable {} applies it again", listed.name);
            if inventory.digest.is_empty() {
                listed.reasons.push("it is being applied, or that was cut off or refused".to_owned());
                listed.remedy = Some(again.clone());
            }
            for problem in health::problems(&self.client, &inventory.objects, &inventory.health).await? {
                listed.reasons.push(problem.reason);
                listed.remedy.get_or_insert_with(|| match problem.remedy {
                    Some(see) => format!("{see}; {again}"),
                    None => again.clone(),
                });
            }
            listed.state = if listed.reasons.is_empty() { State::Enabled } else { State::Unhealthy };
            listed.arguments = inventory.arguments;
        } else if builtin {
            listed.state = State::Enabled;
        }
        Ok(listed)
    }

    /// Is this addon enabled, healthy or not?
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn is_enabled(&self, name: &str) -> Result<bool, Error> {
        Ok(Inventory::load(&self.client, name).await?.is_some())
    }

    /// What would be applied, and what must be so then.
    fn render(
        &self,
        addon: &Addon,
        given: &BTreeMap<String, String>,
    ) -> Result<(Vec<kube::api::DynamicObject>, Vec<Check>), Error> {
        let arguments = addon.values(given)?;
        let values = render::with_cluster(&arguments, &self.cluster.values());
        Ok((render::objects(addon, &values)?, render::checks(addon, &values)?))
    }

    /// Applies enabled addons again whose objects are others in this version of Kedge: what a new binary
    /// does first. What a newer Kedge has applied stays as it is: that one's nodes come to lead as well.
    /// Returns what was upgraded, and what could not be with the reason.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn upgrade(&self, limit: Duration) -> Result<Vec<(String, Result<(), Error>)>, Error> {
        let mut done = Vec::new();
        for inventory in Inventory::all(&self.client).await? {
            let Ok(addon) = self.catalog.get(&inventory.addon) else { continue };
            if is_newer(&inventory.kedge, &self.cluster.version) {
                continue;
            }
            let result = match self.render(addon, &inventory.arguments) {
                Ok((objects, checks))
                    if render::digest(&objects) == inventory.digest && checks == inventory.health =>
                {
                    continue;
                }
                Ok(_) => self.enable(&inventory.addon, &inventory.arguments, limit, &mut |_| {}).await,
                // An argument that is no more.
                Err(error) => Err(error),
            };
            done.push((inventory.addon, result));
        }
        Ok(done)
    }

    /// Some node of the cluster must be able to run it.
    async fn check_architecture(&self, addon: &Addon) -> Result<(), Error> {
        if addon.architectures.is_empty() {
            return Ok(());
        }
        let nodes = Api::<Node>::all(self.client.clone()).list_metadata(&ListParams::default()).await?;
        let found: BTreeSet<String> = nodes
            .items
            .into_iter()
            .filter_map(|node| node.metadata.labels?.remove("kubernetes.io/arch"))
            .collect();
        // No node yet: those that come are not known.
        if found.is_empty() || found.iter().any(|arch| addon.architectures.contains(arch)) {
            return Ok(());
        }
        Err(Error::Architecture {
            addon: addon.name.clone(),
            found: found.into_iter().collect::<Vec<_>>().join(", "),
            offered: addon.architectures.join(", "),
        })
    }
}

/// Whether `version` comes after `than`, by its numbers.
fn is_newer(version: &str, than: &str) -> bool {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
    };
    numbers(version) > numbers(than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (version, than, expected) in [
            ("0.10.0", "0.9.0", true),
            ("0.9.0", "0.10.0", false),
            ("0.1.0", "0.1.0", false),
            ("0.2.0-rc.1", "0.1.9", true),
            ("", "0.1.0", false),
        ] {
            assert_eq!(is_newer(version, than), expected, "{version} {than}");
        }
    }
}
