//! What the files of configMap, secret, downwardAPI and projected volumes contain.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume};
use tokio::time::Instant;

use super::atomic::{Content, Item};
use super::source;
use crate::core::Core;
use crate::fields::{self, NodeFacts};
use crate::{Error, pod};

const DEFAULT_MODE: i32 = 0o644;

fn mode_bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

/// The content of a volume that the kubelet writes.
pub(crate) async fn of(
    core: &Core,
    target: &Pod,
    volume: &Volume,
    pod_ips: &[String],
    refresh_at: &mut Option<Instant>,
) -> Result<Content, Error> {
    let mut content = Content::new();
    let facts = core.facts(pod_ips.to_vec());
    if let Some(map) = &volume.config_map {
        let mode = map.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = map.optional.unwrap_or(false);
        object(core, target, false, &map.name, map.items.as_deref(), mode, optional, &mut content).await?;
    }
    if let Some(secret) = &volume.secret {
        let mode = secret.default_mode.unwrap_or(DEFAULT_MODE);
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let optional = secret.optional.unwrap_or(false);
        object(core, target, true, name, secret.items.as_deref(), mode, optional, &mut content).await?;
    }
    if let Some(downward) = &volume.downward_api {
        let mode = downward.default_mode.unwrap_or(DEFAULT_MODE);
        self::downward(target, downward.items.as_deref().unwrap_or_default(), mode, &facts, &mut content)?;
    }
    let Some(projected) = &volume.projected else { return Ok(content) };
    let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
    for part in projected.sources.iter().flatten() {
        if let Some(map) = &part.config_map {
            let optional = map.optional.unwrap_or(false);
            object(core, target, false, &map.name, map.items.as_deref(), mode, optional, &mut content)
                .await?;
        } else if let Some(secret) = &part.secret {
            let optional = secret.optional.unwrap_or(false);
            object(core, target, true, &secret.name, secret.items.as_deref(), mode, optional, &mut content)
                .await?;
        } else if let Some(downward) = &part.downward_api {
            self::downward(
                target,
                downward.items.as_deref().unwrap_or_default(),
                mode,
                &facts,
                &mut content,
            )?;
        } else if let Some(projection) = &part.service_account_token {
            let (token, again) = core.tokens.get(&core.client, target, projection).await?;
            *refresh_at = Some(refresh_at.map_or(again, |known| known.min(again)));
            let owner = only_user(target);
            let mode = token_mode(target, owner, mode);
            content.insert(projection.path.clone(), Item { bytes: token.into_bytes(), mode, owner });
        } else if part.cluster_trust_bundle.is_some() {
            return Err(Error::other("clusterTrustBundle projections are not supported on this node"));
        } else if part.pod_certificate.is_some() {
            return Err(Error::other("podCertificate projections are not supported on this node"));
        }
    }
    Ok(content)
}

/// The user whom all containers run as, where the pod says so of each (volume `util.FsUserFrom`).
fn only_user(target: &Pod) -> Option<u32> {
    let spec = pod::spec(target);
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let init = spec.init_containers.iter().flatten().map(|container| &container.security_context);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.security_context);
    let all =
        spec.containers.iter().map(|container| &container.security_context).chain(init).chain(ephemeral);
    let mut users = all.map(|context| context.as_ref().and_then(|context| context.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

/// A token is for the containers' user only, or for the pod's group, where one is named (upstream
/// `pkg/volume/projected`).
fn token_mode(target: &Pod, owner: Option<u32>, default_mode: i32) -> u32 {
    let spec = pod::spec(target);
    if owner.is_some() || spec.security_context.as_ref().is_some_and(|context| context.fs_group.is_some()) {
        return 0o600;
    }
    mode_bits(default_mode)
}

#[allow(clippy::too_many_arguments)]
async fn object(
    core: &Core,
    target: &Pod,
    secret: bool,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    content: &mut Content,
) -> Result<(), Error> {
    let kind = if secret { "secret" } else { "configmap" };
    let Some(found) = core.objects.get(&source(target, secret, name)).await? else {
        if optional {
            return Ok(());
        }
        return Err(Error::other(format!("{kind} {name:?} not found")));
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in found.files() {
            content.insert(key.clone(), Item { bytes: bytes.clone(), mode: mode_bits(mode), owner: None });
        }
        return Ok(());
    };
    for item in items {
        match found.file(&item.key) {
            Some(bytes) => {
                let mode = mode_bits(item.mode.unwrap_or(mode));
                content.insert(item.path.clone(), Item { bytes: bytes.clone(), mode, owner: None });
            }
            None if optional => {}
            None => return Err(Error::other(format!("references non-existent {kind} key: {}", item.key))),
        }
    }
    Ok(())
}

fn downward(
    target: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    facts: &NodeFacts,
    content: &mut Content,
) -> Result<(), Error> {
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            fields::field(target, &field.field_path, facts)?
        } else if let Some(resource) = &item.resource_field_ref {
            fields::resource(target, resource, "", facts)?
        } else {
            continue;
        };
        let mode = mode_bits(item.mode.unwrap_or(mode));
        content.insert(item.path.clone(), Item { bytes: text.into_bytes(), mode, owner: None });
    }
    Ok(())
}
