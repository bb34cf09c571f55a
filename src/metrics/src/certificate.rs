//! The server's certificate: made once, kept in a Secret that all replicas share, and announced to the
//! API server in the APIService's `caBundle`, so that nobody has to skip the check of it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kedge_base::Backoff;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use x509_parser::extensions::GeneralName;

use crate::{Config, Error, GROUP, VERSION};

const AUTHORITY: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Nobody has to think of it again for this long; a pod that starts in the last tenth makes a new one.
const LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Clocks of small boards may be behind.
const BACK_DATED: Duration = Duration::from_secs(24 * 3600);

/// PEM texts.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) authority: String,
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// The certificate in the Secret, made when there is none or its end is near; then in the APIService.
pub(crate) async fn ensure(client: &kube::Client, config: &Config) -> Result<Certificate, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &config.namespace);
    let name = format!("{}.{}.svc", config.service, config.namespace);
    let certificate = loop {
        let mut secret = secrets
            .get(&config.secret)
            .await
            .map_err(Error::api(format!("read Secret {}", config.secret)))?;
        if let Some(certificate) = of_secret(&secret).filter(|found| is_usable(&found.chain, &name)) {
            break certificate;
        }
        let fresh = make(&name)?;
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = secret.data.get_or_insert_default();
        data.insert(AUTHORITY.to_owned(), bytes(&fresh.authority));
        data.insert(CERTIFICATE.to_owned(), bytes(&fresh.chain));
        data.insert(KEY.to_owned(), bytes(&fresh.key));
        match secrets.replace(&config.secret, &PostParams::default(), &secret).await {
            Ok(_) => break fresh,
            // Another replica was first.
            Err(error) if kedge_client::is_conflict(&error) => {}
            Err(error) => return Err(Error::api(format!("write Secret {}", config.secret))(error)),
        }
    };
    let services: Api<APIService> = Api::all(client.clone());
    let bundle = STANDARD.encode(&certificate.authority);
    let patch = json!({ "spec": { "caBundle": bundle } });
    let name = format!("{VERSION}.{GROUP}");
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match services.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(certificate),
            // The pod may have started before the addon's last objects were applied.
            Err(error) if kedge_client::is_not_found(&error) => {
                tracing::info!(api_service = name, "waiting for the APIService");
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Err(error) => {
                return Err(Error::api(format!("announce the certificate in APIService {name}"))(error));
            }
        }
    }
}

fn of_secret(secret: &Secret) -> Option<Certificate> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    Some(Certificate { authority: text(AUTHORITY)?, chain: text(CERTIFICATE)?, key: text(KEY)? })
}

/// Whether the certificate is for this name and goes on for a while.
fn is_usable(chain: &str, name: &str) -> bool {
    let Ok(certificate) = CertificateDer::from_pem_slice(chain.as_bytes()) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&certificate) else { return false };
    let now = jiff::Timestamp::now().as_second();
    let last_tenth = i64::try_from(LIFE.as_secs() / 10).unwrap_or(0);
    let names = certificate.subject_alternative_name().ok().flatten();
    let is_named = names.is_some_and(|names| {
        names.value.general_names.iter().any(|own| matches!(own, GeneralName::DNSName(own) if *own == name))
    });
    is_named && certificate.validity().not_after.timestamp() - last_tenth > now
}

/// An authority of its own, whose key is thrown away, and one certificate of it.
fn make(name: &str) -> Result<Certificate, Error> {
    let now = std::time::SystemTime::now();
    let dated = |params: &mut CertificateParams, common_name: &str| {
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.not_before = (now - BACK_DATED).into();
        params.not_after = (now + LIFE).into();
    };
    let mut authority = CertificateParams::default();
    dated(&mut authority, "kedge-metrics-ca");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);
    let mut leaf = CertificateParams::new([name.to_owned()])?;
    dated(&mut leaf, name);
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let chain = leaf.signed_by(&key, &issuer)?.pem();
    Ok(Certificate { authority: authority_pem, chain, key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_certificate_is_usable_for_its_name_only() {
        let made = make("metrics-server.kube-system.svc").unwrap();
        assert!(is_usable(&made.chain, "metrics-server.kube-system.svc"));
        assert!(!is_usable(&made.chain, "other.kube-system.svc"));
        assert!(!is_usable("", "metrics-server.kube-system.svc"));
        assert!(made.key.contains("PRIVATE KEY"));
    }
}
