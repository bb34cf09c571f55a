//! Service account tokens for pods: asked from the API server, kept in memory, renewed at 80 % of
//! their life (upstream `pkg/kubelet/token/token_manager.go`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{Error, pod};

/// No token is used for longer.
const LONGEST: i64 = 24 * 3600;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    audience: String,
    seconds: i64,
}

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
    expires: Timestamp,
}

/// The tokens of all pods. Clones share.
#[derive(Clone, Default)]
pub(crate) struct Tokens(Arc<Mutex<HashMap<Key, Token>>>);

impl Tokens {
    /// The token, and when to ask again.
    pub(crate) async fn get(
        &self,
        client: &kube::Client,
        target: &Pod,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<(String, Instant), Error> {
        let key = Key {
            uid: pod::uid(target),
            audience: projection.audience.clone().unwrap_or_default(),
            seconds: projection.expiration_seconds.unwrap_or(3600),
        };
        let now = Timestamp::now();
        let known = self.0.lock().get(&key).cloned();
        if let Some(token) = known.as_ref().filter(|token| token.renew_at > now) {
            return Ok((token.text.clone(), instant(token.renew_at, now)));
        }
        match request(client, target, &key).await {
            Ok(token) => {
                let answer = (token.text.clone(), instant(token.renew_at, now));
                self.0.lock().insert(key, token);
                Ok(answer)
            }
            // The API server is away: the old token is good until it expires.
            Err(error) => match known.filter(|token| token.expires > now) {
                Some(token) => {
                    tracing::warn!(pod = pod::name(target), error = %error.text(), "token not renewed, trying again");
                    Ok((token.text, Instant::now() + Duration::from_secs(60)))
                }
                None => Err(error),
            },
        }
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.0.lock().retain(|key, _| key.uid != uid);
    }
}

fn instant(at: Timestamp, now: Timestamp) -> Instant {
    let seconds = u64::try_from(at.as_second() - now.as_second()).unwrap_or(0);
    Instant::now() + Duration::from_secs(seconds.max(1))
}

async fn request(client: &kube::Client, target: &Pod, key: &Key) -> Result<Token, Error> {
    let spec = pod::spec(target);
    let account = spec.service_account_name.filter(|name| !name.is_empty()).unwrap_or("default".to_owned());
    let asked = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(if key.audience.is_empty() { Vec::new() } else { vec![key.audience.clone()] }),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod::name(target).to_owned()),
                uid: Some(key.uid.clone()),
            }),
            expiration_seconds: Some(key.seconds),
        }),
        ..TokenRequest::default()
    };
    let api = kube::Api::<ServiceAccount>::namespaced(client.clone(), pod::namespace(target));
    let answer = api.create_token_request(&account, &kube::api::PostParams::default(), &asked).await?;
    let status = answer.status.unwrap_or_default();
    let text = status.token.unwrap_or_default();
    if text.is_empty() {
        return Err(Error::other(format!("failed to fetch token: no token for service account {account}")));
    }
    let now = Timestamp::now().as_second();
    let expires = status.expiration_timestamp.map_or(now + key.seconds, |time| time.0.as_second());
    let life = expires - now;
    let renew = now + (life * 8 / 10).min(LONGEST);
    let time = |second: i64| {
        Timestamp::from_second(second).map_err(|error| Error::other(format!("expiry of a token: {error}")))
    };
    Ok(Token { text, renew_at: time(renew)?, expires: time(expires)? })
}
