//! Secrets of type `kubernetes.io/service-account-token`: filled with a token, the CA and the
//! namespace, and deleted with their ServiceAccount.
//!
//! Upstream's controller holds the signing key and signs tokens that never expire. Here the key
//! stays with the API server: the token is asked for with TokenRequest, bound to the secret (so
//! it dies with it), for the longest time the server grants, and renewed in good time.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kedge_client::{Error, Informer, ObjectKey, Queue};
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::context::{Context, ignore_not_found};
use crate::time;

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME_ANNOTATION: &str = "kubernetes.io/service-account.name";
const UID_ANNOTATION: &str = "kubernetes.io/service-account.uid";
/// When the token in the secret ends, seconds since 1970 (ours; upstream's tokens have no end).
const EXPIRES_ANNOTATION: &str = "kedge.io/token-expires";
/// Asked for; a server may grant less.
const LIFETIME: i64 = 365 * 24 * 3600;

pub(super) fn start(ctx: &Context) {
    let secrets = ctx.informers.informer_with_fields::<Secret>("type=kubernetes.io/service-account-token");
    let accounts = ctx.informers.informer::<ServiceAccount>();
    let queue = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&secrets, move |change| adder.add(change.key()));
    let (adder, all) = (queue.clone(), secrets.clone());
    ctx.on_change(&accounts, move |change| {
        let account = change.key();
        for secret in all.list_namespace(&account.namespace) {
            if annotation(&secret, NAME_ANNOTATION) == Some(account.name.as_str()) {
                adder.add(ObjectKey::of(&*secret));
            }
        }
    });
    let (adder, all) = (queue.clone(), secrets.clone());
    ctx.on_new_ca("service-account-token: authorities", move || {
        all.list().iter().for_each(|secret| adder.add(ObjectKey::of(&**secret)));
    });
    let (s, a) = (secrets.clone(), accounts);
    let synced = async move {
        s.synced().await;
        a.synced().await;
    };
    let ctx = ctx.clone();
    ctx.clone().run("service-account-token", queue, 2, synced, move |key| {
        let (ctx, secrets) = (ctx.clone(), secrets.clone());
        async move { reconcile(&ctx, &secrets, &key).await }
    });
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn data<'a>(secret: &'a Secret, name: &str) -> Option<&'a [u8]> {
    secret.data.as_ref()?.get(name).map(|bytes| bytes.0.as_slice())
}

async fn reconcile(
    ctx: &Context,
    secrets: &Informer<Secret>,
    key: &ObjectKey,
) -> Result<Option<Duration>, Error> {
    let Some(secret) = secrets.get_key(key) else { return Ok(None) };
    if secret.type_.as_deref() != Some(TYPE) || secret.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let Some(account_name) = annotation(&secret, NAME_ANNOTATION).filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let accounts = ctx.api::<ServiceAccount>(&key.namespace);
    // Read live: deleting a secret because a cache is behind would be unforgivable.
    let account = accounts.get_opt(account_name).await?;
    let same_account = account.as_ref().is_some_and(|account| {
        annotation(&secret, UID_ANNOTATION)
            .is_none_or(|uid| uid.is_empty() || account.metadata.uid.as_deref() == Some(uid))
    });
    let Some(account) = account.filter(|_| same_account) else {
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: secret.metadata.uid.clone(), resource_version: None });
        ignore_not_found(ctx.api::<Secret>(&key.namespace).delete(&key.name, &params).await)?;
        return Ok(None);
    };
    fill(ctx, &secret, &account, account_name).await
}

async fn fill(
    ctx: &Context,
    secret: &Secret,
    account: &ServiceAccount,
    account_name: &str,
) -> Result<Option<Duration>, Error> {
    let namespace = secret.metadata.namespace.clone().unwrap_or_default();
    let now = Timestamp::now();
    let renewal = renewal(secret);
    let ca = ctx.config.cluster_ca_pem.borrow().clone();
    let ca = ca.as_bytes();
    let needs_token =
        data(secret, "token").is_none_or(<[u8]>::is_empty) || renewal.is_some_and(|renewal| renewal <= now);
    let complete = data(secret, "ca.crt") == Some(ca)
        && data(secret, "namespace").is_some_and(|bytes| !bytes.is_empty())
        && annotation(secret, UID_ANNOTATION) == account.metadata.uid.as_deref();
    if complete && !needs_token {
        return Ok(renewal.map(|renewal| time::until(renewal, now)));
    }
    let mut changed = secret.clone();
    let annotations = changed.metadata.annotations.get_or_insert_default();
    annotations.insert(UID_ANNOTATION.into(), account.metadata.uid.clone().unwrap_or_default());
    let contents = changed.data.get_or_insert_default();
    contents.insert("ca.crt".into(), ByteString(ca.to_vec()));
    contents.entry("namespace".into()).or_insert_with(|| ByteString(namespace.clone().into_bytes()));
    if needs_token {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(Vec::new()),
                expiration_seconds: Some(LIFETIME),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Secret".into()),
                    name: secret.metadata.name.clone(),
                    uid: secret.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let api = ctx.api::<ServiceAccount>(&namespace);
        let granted: TokenRequest =
            api.create_subresource("token", account_name, &PostParams::default(), &request).await?;
        let status = granted.status.unwrap_or_default();
        let token = status.token.filter(|token| !token.is_empty());
        let Some(token) = token else {
            return Err(Error::other("the API server granted a token request without a token"));
        };
        contents.insert("token".into(), ByteString(token.into_bytes()));
        if let Some(end) = status.expiration_timestamp {
            annotations.insert(EXPIRES_ANNOTATION.into(), end.0.as_second().to_string());
        }
    }
    let name = secret.metadata.name.clone().unwrap_or_default();
    let api = ctx.api::<Secret>(&namespace);
    ignore_not_found(api.replace(&name, &PostParams::default(), &changed).await)?;
    // The informer brings the changed secret back, which sets the time of the renewal.
    Ok(None)
}

/// When to renew: at four fifths of the longest life before the end, at least an hour before.
fn renewal(secret: &Secret) -> Option<Timestamp> {
    let end: i64 = annotation(secret, EXPIRES_ANNOTATION)?.parse().ok()?;
    let end = Timestamp::from_second(end).ok()?;
    let made = secret.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let life = end.as_second().saturating_sub(made.as_second()).clamp(0, LIFETIME);
    Some(time::plus(end, -(life / 5).max(3600)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn tokens_are_renewed_before_they_end() {
        let at = |second: i64| Timestamp::from_second(second).expect("in range");
        let mut secret = Secret::default();
        assert_eq!(renewal(&secret), None);
        secret.metadata.creation_timestamp = Some(Time(at(0)));
        for (end, expected) in [(100_000, 80_000), (7200, 3600)] {
            secret.metadata.annotations = Some([(EXPIRES_ANNOTATION.to_owned(), end.to_string())].into());
            assert_eq!(renewal(&secret), Some(at(expected)), "{end}");
        }
    }
}
