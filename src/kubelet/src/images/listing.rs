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

/// Unpins the names, and removes them where nobody else holds them: with their images, or the names alone where
/// an image has others that stay. What was imported by hand or is in `keep` stays. Returns those that a container
/// was made from: they are to be tried again.
///
/// # Errors
/// When containerd refuses.
pub async fn let_go(
    containerd_socket: &Path,
    names: &BTreeSet<String>,
    keep: &[String],
) -> Result<BTreeSet<String>, Error> {
    let runtime = Runtime::new(containerd_socket)?;
    let store = Store::of(&runtime);
    for name in names {
        store.set_pinned(name, false).await?;
    }
    let held: HashSet<String> = store
        .list()
        .await?
        .into_iter()
        .filter(|image| image.pinned || image.by_hand)
        .map(|image| image.name)
        .chain(keep.iter().cloned())
        .collect();
    let mut waiting = BTreeSet::new();
    for image in describe(containerd_socket).await? {
        match removal(&image, names, &held) {
            Removal::Nothing => {}
            Removal::Later(names) => waiting.extend(names),
            Removal::Names(names) => {
                for name in names {
                    store.remove(&name).await?;
                }
            }
            Removal::Image => {
                let spec = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
                runtime.cri().remove_image(cri::RemoveImageRequest { image: Some(spec) }).await?;
            }
        }
    }
    Ok(waiting)
}

/// What of an image goes when names are let go of.
#[derive(Debug, PartialEq, Eq)]
enum Removal {
    Nothing,
    Later(Vec<String>),
    Names(Vec<String>),
    /// With all its names.
    Image,
}

fn removal(image: &ImageInfo, names: &BTreeSet<String>, held: &HashSet<String>) -> Removal {
    let all = || image.names.iter().chain(&image.digests);
    let goes = |name: &&String| names.contains(*name) && !held.contains(*name);
    let going: Vec<String> = all().filter(goes).cloned().collect();
    if going.is_empty() {
        Removal::Nothing
    } else if image.in_use {
        Removal::Later(going)
    } else if image.names.iter().all(|name| going.contains(name)) && !all().any(|name| held.contains(name)) {
        Removal::Image
    } else {
        Removal::Names(going)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_goes() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (digest, other) = ("a@sha256:1", "b@sha256:1");
        for (names, in_use, going, held, expected) in [
            (&["a:1"][..], false, &["a:1"][..], &[][..], Removal::Image),
            (&["a:1"], false, &["a:1", digest], &[], Removal::Image),
            (&["a:1"], true, &["a:1"], &[], Removal::Later(set(&["a:1"]))),
            // By hand, or another archive.
            (&["a:1"], false, &["a:1"], &["a:1"], Removal::Nothing),
            (&["a:1", "a:2"], false, &["a:1"], &[], Removal::Names(set(&["a:1"]))),
            (&["a:1", "a:2"], false, &["a:1", "a:2"], &["a:2"], Removal::Names(set(&["a:1"]))),
            (&["a:1", "a:2"], false, &["a:1", "a:2"], &[], Removal::Image),
            (&["a:1"], false, &["a:1"], &[other], Removal::Names(set(&["a:1"]))),
            (&["c:1"], false, &["a:1"], &[], Removal::Nothing),
        ] {
            let image = ImageInfo {
                id: "sha256:2".into(),
                names: set(names),
                digests: set(&[digest, other]),
                size: 1,
                pinned: true,
                in_use,
            };
            let (going, held) = (set(going).into_iter().collect(), set(held).into_iter().collect());
            assert_eq!(removal(&image, &going, &held), expected, "{names:?} {going:?} {held:?}");
        }
    }
}
