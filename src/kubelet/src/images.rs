//! Images: pulled as the policy says, with back-off, credentials and upstream's events
//! (`pkg/kubelet/images/image_manager.go`); read from archives and written to them; collected.

mod archive;
mod collect;
mod credentials;
mod export;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod layers;
mod listing;
mod records;
pub(crate) mod reference;
mod store;
mod unpack;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, ContainerImage, Pod};
use kedge_base::Order as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::records::{Proof, Records, SecretUse};
use crate::core::Core;
use crate::runtime::Runtime;
use crate::{Config, Error, Registries, pod};

pub use archive::{ImportOptions, import};
pub(crate) use collect::Collector;
pub use collect::ImageGc;
pub use export::export;
pub(crate) use layers::Layers;
pub use listing::{ImageInfo, describe, let_go, list, prune, set_pinned};

const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);
const PARALLEL_PULLS: usize = 3;
/// A node's status names at most so many images.
const REPORTED: usize = 50;

#[derive(Clone)]
struct Failure {
    delay: Duration,
    until: Instant,
    error: String,
}

/// Pulls in progress and back-offs. Clones share.
#[derive(Clone)]
pub(crate) struct Images {
    runtime: Runtime,
    failures: Arc<Mutex<HashMap<String, Failure>>>,
    /// One pull of an image at a time; the others find it present.
    pulls: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    /// Pulls of different images at a time: unpacking costs memory, and cards are slow.
    slots: Arc<tokio::sync::Semaphore>,
    records: Records,
    registries: Registries,
}

/// An image that is on this machine now.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    /// What containers are created from.
    pub(crate) id: String,
    pub(crate) uid: Option<i64>,
    pub(crate) username: String,
}

impl Images {
    pub(crate) fn new(runtime: Runtime, config: &Config) -> Self {
        Self {
            runtime,
            failures: Arc::default(),
            pulls: Arc::default(),
            slots: Arc::new(tokio::sync::Semaphore::new(PARALLEL_PULLS)),
            records: Records::open(config.root_dir.join("image_manager/pulled")),
            registries: config.registries.clone(),
        }
    }

    pub(crate) async fn find(&self, image: &str) -> Result<Option<Present>, Error> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let asked = cri::ImageStatusRequest { image: Some(spec), verbose: false };
        let found = self.runtime.cri().image_status(asked).await?.into_inner().image;
        Ok(found.filter(|image| !image.id.is_empty()).map(|image| Present {
            id: image.id,
            uid: image.uid.map(|uid| uid.value),
            username: image.username,
        }))
    }

    pub(crate) async fn list(&self) -> Result<Vec<cri::Image>, Error> {
        // Known before the list is made: what is pulled meanwhile may be missing in it.
        let known = self.records.ids();
        let asked = cri::ListImagesRequest { filter: None };
        let images = self.runtime.cri().list_images(asked).await?.into_inner().images;
        for id in known.iter().filter(|id| !images.iter().any(|image| image.id == **id)) {
            self.records.forget(id);
        }
        Ok(images)
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), Error> {
        let spec = cri::ImageSpec { image: id.to_owned(), ..Default::default() };
        self.runtime.cri().remove_image(cri::RemoveImageRequest { image: Some(spec) }).await?;
        self.records.forget(id);
        Ok(())
    }

    /// When the image of the container may be tried again.
    pub(crate) fn retry_at(&self, target: &Pod, container: &Container) -> Option<Instant> {
        let key = backoff_key(target, container.image.as_deref().unwrap_or_default());
        self.failures.lock().get(&key).map(|failure| failure.until)
    }

    pub(crate) fn forget_pod(&self, uid: &str) {
        self.failures.lock().retain(|key, _| !key.starts_with(uid));
    }

    /// The container's image, pulled when its policy says so. Errors carry the waiting reason.
    pub(crate) async fn ensure(
        &self,
        core: &Core,
        target: &Pod,
        container: &Container,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<Present, Error> {
        let written = container.image.clone().unwrap_or_default();
        let name = Some(container.name.as_str());
        let Some(image) = reference::with_default_tag(&written) else {
            let message = format!(
                "Failed to apply default image tag {written:?}: couldn't parse image name {written:?}: invalid reference format"
            );
            core.warning(target, name, "InspectFailed", message.clone());
            return Err(Error::Container { reason: "InvalidImageName", message });
        };
        let present = match self.find(&image).await {
            Ok(present) => present,
            Err(error) => {
                let message = format!("Failed to inspect image {written:?}: {}", error.text());
                core.warning(target, name, "InspectFailed", message.clone());
                return Err(Error::Container { reason: "ImageInspectError", message });
            }
        };
        let policy = container.image_pull_policy.as_deref().unwrap_or(reference::default_policy(&image));
        // What a pod pulled with its Secret is not for those who have none.
        let present = match present {
            Some(present) if policy != "Always" && !self.may_use(core, target, &image, &present).await => {
                None
            }
            other => other,
        };
        match (policy, present) {
            ("Never" | "IfNotPresent", Some(present)) => {
                core.normal(target, name, "Pulled", format!(
                    "Container image {written:?} already present on machine and can be accessed by the pod"
                ));
                return Ok(present);
            }
            ("Never", None) => {
                let message = format!("Container image {written:?} is not present with pull policy of Never");
                core.warning(target, name, "ErrImageNeverPull", message.clone());
                return Err(Error::Container { reason: "ErrImageNeverPull", message });
            }
            _ => {}
        }
        let key = backoff_key(target, &written);
        let failure = self.failures.lock().get(&key).cloned();
        if let Some(failure) = failure.filter(|failure| failure.until > Instant::now()) {
            let message = format!("Back-off pulling image {written:?}");
            core.normal(target, name, "BackOff", message.clone());
            return Err(Error::Container {
                reason: "ImagePullBackOff",
                message: format!("{message}: ErrImagePull: {}", failure.error),
            });
        }
        match self.pull(core, target, container, &image, &written, sandbox).await {
            Ok(present) => {
                self.failures.lock().remove(&key);
                Ok(present)
            }
            Err(error) => {
                let text = error.text();
                core.warning(target, name, "Failed", format!("Failed to pull image {written:?}: {text}"));
                let mut failures = self.failures.lock();
                let delay =
                    failures.get(&key).map_or(FIRST_BACKOFF, |last| (last.delay * 2).min(LONGEST_BACKOFF));
                failures.insert(key, Failure { delay, until: Instant::now() + delay, error: text.clone() });
                Err(Error::Container { reason: "ErrImagePull", message: text })
            }
        }
    }

    /// May the pod use the image that is here without a pull that proves it?
    async fn may_use(&self, core: &Core, target: &Pod, image: &str, present: &Present) -> bool {
        if self.records.allows(image, &present.id, &[]) {
            return true;
        }
        let logins = credentials::of_pod(core, target, image).await;
        let used: Vec<SecretUse> = logins
            .into_iter()
            .filter_map(|login| match login.proof {
                Proof::Secret(used) => Some(used),
                Proof::Node => None,
            })
            .collect();
        self.records.allows(image, &present.id, &used)
    }

    async fn pull(
        &self,
        core: &Core,
        target: &Pod,
        container: &Container,
        image: &str,
        written: &str,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<Present, Error> {
        let name = Some(container.name.as_str());
        let asked = Instant::now();
        core.normal(target, name, "Pulling", format!("Pulling image {written:?}"));
        let gate = self.pulls.lock().entry(image.to_owned()).or_default().clone();
        let guard = gate.lock().await;
        let slot = self.slots.acquire().await.map_err(|error| Error::other(error.to_string()))?;
        let begun = Instant::now();
        if let Err(error) = self.registries.refresh() {
            core.warning(target, name, "FailedToReadRegistries", error.text());
        }
        let mut attempts: Vec<(Option<cri::AuthConfig>, Proof)> = credentials::of_pod(core, target, image)
            .await
            .into_iter()
            .map(|login| (Some(login.auth), login.proof))
            .collect();
        attempts.extend(self.registries.logins(image).into_iter().map(|auth| (Some(auth), Proof::Node)));
        if attempts.is_empty() {
            attempts.push((None, Proof::Node));
        }
        let mut errors: Vec<String> = Vec::new();
        let mut proof = None;
        for (auth, of) in attempts {
            let request = cri::PullImageRequest {
                image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
                auth,
                sandbox_config: Some(sandbox.clone()),
            };
            match self.runtime.cri().pull_image(request).await {
                Ok(_) => {
                    self.runtime.unpacked().notify_one();
                    proof = Some(of);
                    break;
                }
                Err(status) => {
                    let text = Error::from(status).text();
                    if !errors.contains(&text) {
                        errors.push(text);
                    }
                }
            }
        }
        drop((slot, guard));
        self.pulls.lock().retain(|_, gate| Arc::strong_count(gate) > 1);
        let Some(proof) = proof else {
            // As Go prints one error, and many.
            return Err(Error::other(match errors.as_slice() {
                [only] => only.clone(),
                all => format!("[{}]", all.join(", ")),
            }));
        };
        let found = self.find(image).await?;
        if let Some(present) = &found {
            self.records.pulled(image, &present.id, &proof);
        }
        let present =
            found.ok_or_else(|| Error::other(format!("image {written:?} is missing after its pull")))?;
        let size = self
            .list()
            .await
            .ok()
            .and_then(|all| all.into_iter().find(|i| i.id == present.id))
            .map_or(0, |i| i.size);
        core.normal(target, name, "Pulled", format!(
            "Successfully pulled image {written:?} in {} ({} including waiting). Image size: {size} bytes.",
            seconds(begun.elapsed()),
            seconds(asked.elapsed()),
        ));
        Ok(present)
    }

    /// The biggest images, as the Node's status lists them.
    pub(crate) async fn report(&self) -> Result<Vec<ContainerImage>, Error> {
        Ok(biggest(self.list().await?))
    }
}

/// The runtime lists in any order. The same images give the same list, or the Node would be written for nothing.
fn biggest(mut images: Vec<cri::Image>) -> Vec<ContainerImage> {
    images.order_by(|one, other| other.size.cmp(&one.size).then_with(|| one.id.cmp(&other.id)));
    images
        .into_iter()
        .take(REPORTED)
        .map(|mut image| {
            image.repo_digests.sort();
            image.repo_tags.sort();
            let mut names = image.repo_digests;
            names.extend(image.repo_tags);
            names.truncate(5);
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        })
        .collect()
}

fn seconds(duration: Duration) -> String {
    if duration.as_secs() == 0 {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{:.3}s", duration.as_secs_f64())
    }
}

fn backoff_key(target: &Pod, image: &str) -> String {
    format!("{}_{image}", pod::uid(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_images_give_the_same_list() {
        let image = |id: &str, size, tags: &[&str]| cri::Image {
            id: id.into(),
            size,
            repo_tags: tags.iter().map(ToString::to_string).collect(),
            repo_digests: vec![format!("{id}@sha256:{id}")],
            ..cri::Image::default()
        };
        let all = [image("a", 5, &["x:1", "x:2"]), image("b", 5, &[]), image("c", 9, &[])];
        let turned = [image("c", 9, &[]), image("b", 5, &[]), image("a", 5, &["x:2", "x:1"])];
        let names = |images: &[cri::Image]| {
            let list = biggest(images.to_vec()).into_iter();
            list.flat_map(|image| image.names.unwrap_or_default()).collect::<Vec<_>>()
        };
        assert_eq!(names(&all), ["c@sha256:c", "a@sha256:a", "x:1", "x:2", "b@sha256:b"]);
        assert_eq!(names(&turned), names(&all));
    }
}
