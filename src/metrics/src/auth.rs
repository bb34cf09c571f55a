//! Who asks, and whether they may: as every aggregated API server, by the front proxy's certificate and
//! headers or by a token that the API server reviews, and by SubjectAccessReviews
//! (`staging/src/k8s.io/apiserver/pkg/server/options/{authentication,authorization}.go`).

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kedge_base::{Chain, Tasks};
use kedge_client::Watch;
use kube::api::PostParams;
use kube::{Api, Resource as _};
use parking_lot::Mutex;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::Error;
use crate::certificate::Certificate;
use crate::headers::{FrontProxy, User};

const CONFIG: &str = "extension-apiserver-authentication";
/// How long an answer holds (upstream's `--authorization-webhook-cache-*-ttl` and its like for tokens).
const HOLDS: Duration = Duration::from_secs(10);
/// Answers that are remembered at most.
const REMEMBERED: usize = 1024;
/// Who is always allowed (upstream's `AlwaysAllowGroups`).
const MASTERS: &str = "system:masters";

/// What a request is about, as far as access to it is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    Resource { verb: &'static str, resource: &'static str, namespace: String, name: String },
    Path(String),
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    Unauthorized,
    Forbidden {
        user: String,
        reason: String,
    },
    /// The API server did not tell.
    Unknown(String),
}

/// Asks the API server.
pub(crate) struct Delegated {
    client: kube::Client,
    certificate: Certificate,
    proxy: ArcSwap<FrontProxy>,
    tls: ArcSwap<ServerConfig>,
    tokens: Remembered<String, Option<User>>,
    answers: Remembered<(UserKey, Subject), Result<(), String>>,
}

/// A user as a key.
type UserKey = (String, String, Vec<String>);

impl Delegated {
    /// Reads the front proxy's authority, and keeps up with changes of it.
    pub(crate) async fn start(
        client: kube::Client,
        certificate: Certificate,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, Error> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
        let map =
            maps.get(CONFIG).await.map_err(Error::api(format!("read ConfigMap kube-system/{CONFIG}")))?;
        let proxy = FrontProxy::of(&map);
        let tls = tls(&certificate, &proxy)?;
        let this = Arc::new(Self {
            client,
            certificate,
            proxy: ArcSwap::from_pointee(proxy),
            tls: ArcSwap::from_pointee(tls),
            tokens: Remembered::default(),
            answers: Remembered::default(),
        });
        let watching = this.clone();
        tasks.spawn_restarting("front proxy's authority", move || {
            let this = watching.clone();
            async move { this.follow().await }
        });
        Ok(this)
    }

    async fn follow(&self) {
        let path = ConfigMap::url_path(&(), Some("kube-system"));
        let mut maps =
            Watch::<ConfigMap>::new(self.client.clone(), path, &format!("metadata.name={CONFIG}"), "");
        loop {
            self.take(FrontProxy::of(&maps.next_object().await));
        }
    }

    fn take(&self, proxy: FrontProxy) {
        if **self.proxy.load() == proxy {
            return;
        }
        match tls(&self.certificate, &proxy) {
            Ok(tls) => {
                tracing::info!("the front proxy's authority has changed");
                self.tls.store(Arc::new(tls));
                self.proxy.store(Arc::new(proxy));
            }
            Err(error) => tracing::warn!(error = %Chain(&error), "the front proxy's authority is unusable"),
        }
    }

    /// For the next handshake.
    pub(crate) fn tls(&self) -> Arc<ServerConfig> {
        self.tls.load_full()
    }

    /// `proxy`: the common name of the certificate that the connection showed.
    pub(crate) async fn check(
        &self,
        proxy: Option<&str>,
        headers: &HeaderMap,
        subject: Subject,
    ) -> Result<(), Denied> {
        let user = self.user(proxy, headers).await?;
        if user.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        let key = ((user.name.clone(), user.uid.clone(), user.groups.clone()), subject.clone());
        // What differs only in extra values is asked for: they are rare and may matter.
        let remembers = user.extra.is_empty();
        let known = if remembers { self.answers.get(&key) } else { None };
        let answer = match known {
            Some(answer) => answer,
            None => {
                let answer = self.review(&user, subject).await?;
                if remembers {
                    self.answers.put(key, answer.clone());
                }
                answer
            }
        };
        answer.map_err(|reason| Denied::Forbidden { user: user.name, reason })
    }

    async fn user(&self, proxy: Option<&str>, headers: &HeaderMap) -> Result<User, Denied> {
        if let Some(common_name) = proxy {
            let front = self.proxy.load();
            if front.is_proxy(common_name)
                && let Some(user) = front.user(headers)
            {
                return Ok(user);
            }
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = given.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Denied::Unauthorized)?;
        if let Some(known) = self.tokens.get(token) {
            return known.ok_or(Denied::Unauthorized);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = api.create(&PostParams::default(), &review).await.map_err(unknown)?.status;
        let info = status.filter(|status| status.authenticated == Some(true)).and_then(|status| status.user);
        let user = info.map(|info| User {
            name: info.username.unwrap_or_default(),
            uid: info.uid.unwrap_or_default(),
            groups: info.groups.unwrap_or_default(),
            extra: info.extra.unwrap_or_default(),
        });
        self.tokens.put(token.to_owned(), user.clone());
        user.ok_or(Denied::Unauthorized)
    }

    /// The inner error: denied, and why.
    async fn review(&self, user: &User, subject: Subject) -> Result<Result<(), String>, Denied> {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let mut spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: some(user.uid.clone()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
            ..SubjectAccessReviewSpec::default()
        };
        match subject {
            Subject::Resource { verb, resource, namespace, name } => {
                spec.resource_attributes = Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    group: Some(crate::GROUP.to_owned()),
                    version: Some(crate::VERSION.to_owned()),
                    resource: Some(resource.to_owned()),
                    namespace: some(namespace),
                    name: some(name),
                    ..ResourceAttributes::default()
                });
            }
            Subject::Path(path) => {
                spec.non_resource_attributes =
                    Some(NonResourceAttributes { path: Some(path), verb: Some("get".to_owned()) });
            }
        }
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let status = api.create(&PostParams::default(), &review).await.map_err(unknown)?.status;
        let status = status.unwrap_or_default();
        Ok(if status.allowed { Ok(()) } else { Err(status.reason.unwrap_or_default()) })
    }
}

fn unknown(error: kube::Error) -> Denied {
    Denied::Unknown(Chain(&error).to_string())
}

/// A client may show a certificate of the front proxy's authority, but need not.
fn tls(certificate: &Certificate, proxy: &FrontProxy) -> Result<ServerConfig, Error> {
    let unusable = |what: &str, error: &dyn std::fmt::Display| {
        Error::Tls(rustls::Error::General(format!("{what} is unusable: {error}")))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(proxy.authority.as_bytes()) {
        roots.add(authority.map_err(|error| unusable("the front proxy's authority", &error))?)?;
    }
    let builder = if roots.is_empty() {
        tracing::warn!("the cluster has no front proxy: only tokens tell who asks");
        builder.with_no_client_auth()
    } else {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| unusable("the front proxy's authority", &error))?;
        builder.with_client_cert_verifier(verifier)
    };
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable("the certificate", &error))?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())
        .map_err(|error| unusable("the key", &error))?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Answers that hold for a while.
struct Remembered<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let all = self.0.lock();
        all.get(key).filter(|(since, _)| since.elapsed() < HOLDS).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut all = self.0.lock();
        if all.len() >= REMEMBERED {
            all.retain(|_, (since, _)| since.elapsed() < HOLDS);
            if all.len() >= REMEMBERED {
                all.clear();
            }
        }
        all.insert(key, (Instant::now(), value));
    }
}
