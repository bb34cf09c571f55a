//! What this node has and what of it nobody uses, for the command line.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use k8s_cri::v1 as cri;
use kedge_base::Order as _;
use serde::Serialize;

use super::store::Store;
use crate::Error;
use crate::runtime::Runtime;

/// One image with all its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    /// The digest of its configuration, what container statuses show as `imageID`.
    pub id: String,
    /// Names with a tag.
    pub names: Vec<String>,
    /// Names with the digest of the manifest or index.
    pub digests: Vec<String>,
    /// Bytes of its layers as they were pulled.
    pub size: u64,
    /// Never removed by itself.
    pub pinned: bool,
    /// A container of this node was made from it.
    pub in_use: bool,
}

/// The names of all images that CRI could run.
///
/// # Errors
/// When containerd does not answer.
pub async fn list(containerd_socket: &Path) -> Result<Vec<String>, Error> {
    Ok(Store::new(containerd_socket)?.list().await?.into_iter().map(|image| image.name).collect())
}

/// All images, in the order of their names.
///
/// # Errors
/// When containerd does not answer.
pub async fn describe(containerd_socket: &Path) -> Result<Vec<ImageInfo>, Error> {
    let runtime = Runtime::new(containerd_socket)?;
    let used = in_use(&runtime).await?;
    let pinned = pinned(&Store::of(&runtime)).await?;
    let named = Store::of(&runtime).list().await?;
    let answer = runtime.cri().list_images(cri::ListImagesRequest { filter: None }).await?.into_inner();
    let mut images: Vec<ImageInfo> = answer
        .images
        .into_iter()
        .map(|image| {
            let mut digests: BTreeSet<String> = image.repo_digests.iter().cloned().collect();
            // What was imported has no digest name in containerd, but the target of a name is one.
            for tag in &image.repo_tags {
                let target = named.iter().find(|named| named.name == *tag);
                if let (Some(target), Some((repository, _))) = (target, tag.rsplit_once(':')) {
                    digests.insert(format!("{repository}@{}", target.target.1));
                }
            }
            ImageInfo {
                pinned: image.pinned || is_named(&image, &pinned),
                in_use: used.contains(&image.id) || is_named(&image, &used),
                id: image.id,
                names: image.repo_tags,
                digests: digests.into_iter().collect(),
                size: image.size,
            }
        })
        .collect();
    images.order_by(|a, b| (&a.names, &a.digests, &a.id).cmp(&(&b.names, &b.digests, &b.id)));
    Ok(images)
}

/// Removes every image that no container was made from, is not pinned and has none of the names `keep`.
/// Returns what was removed.
///
/// # Errors
/// When containerd refuses.
pub async fn prune(containerd_socket: &Path, keep: &[String]) -> Result<Vec<ImageInfo>, Error> {
    let runtime = Runtime::new(containerd_socket)?;
    let mut removed = Vec::new();
    for image in describe(containerd_socket).await? {
        if image.in_use || image.pinned || image.names.iter().any(|name| keep.contains(name)) {
            continue;
        }
        let spec = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
        runtime.cri().remove_image(cri::RemoveImageRequest { image: Some(spec) }).await?;
        removed.push(image);
    }
    Ok(removed)
}

/// Pins the names, or lets go of them: what is pinned is never removed by itself.
///
/// # Errors
/// When containerd does not answer.
pub async fn set_pinned(containerd_socket: &Path, names: &[String], pin: bool) -> Result<(), Error> {
    let store = Store::new(containerd_socket)?;
    for name in names {
        store.set_pinned(name, pin).await?;
    }
    Ok(())
}

/// Names that are pinned.
pub(super) async fn pinned(store: &Store) -> Result<HashSet<String>, Error> {
    Ok(store.list().await?.into_iter().filter(|image| image.pinned).map(|image| image.name).collect())
}

pub(super) fn is_named(image: &cri::Image, names: &HashSet<String>) -> bool {
    image.repo_tags.iter().chain(&image.repo_digests).any(|name| names.contains(name))
}

/// Ids and names of images that containers were made from, ended ones too.
pub(super) async fn in_use(runtime: &Runtime) -> Result<HashSet<String>, Error> {
    let containers = runtime.list_containers(None).await?;
    let all = containers.into_iter().flat_map(|container| {
        [
            container.image_ref,
            container.image_id,
            container.image.map(|image| image.image).unwrap_or_default(),
        ]
    });
    Ok(all.filter(|name| !name.is_empty()).collect())
}
