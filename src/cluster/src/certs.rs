//! What `kedge certs check` shows: every certificate of the folder, read without opening (and so perhaps
//! changing) it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kedge_base::Order as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::issue::alternative_names;
use crate::pki::read_text;
use crate::trust::blocks;

const DAY: i64 = 24 * 60 * 60;

/// A certificate on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// The file's name without its ending: `apiserver`, `kubelet`, `ca`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// For instance `O=system:nodes, CN=system:node:n1`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// DNS names and addresses.
    pub names: BTreeSet<String>,
    /// An authority, not a certificate of a node or user.
    pub authority: bool,
    /// Valid from then on.
    pub not_before: Timestamp,
    /// Valid until then.
    pub expires: Timestamp,
    /// When it is renewed by itself; authorities are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renews: Option<Timestamp>,
    /// Whole days until it expires; negative: since it did.
    pub days_left: i64,
}

/// Every certificate in a PKI folder, by name.
///
/// # Errors
/// When the folder or a file cannot be read, or a file holds no certificate.
pub fn certificates(pki_dir: &Path, now: Timestamp) -> Result<Vec<CertificateStatus>, Error> {
    let failed = |source| Error::File { action: "read", path: pki_dir.into(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(pki_dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "crt") {
            let text = read_text(&path)?.unwrap_or_default();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push(status(stem.clone(), path.clone(), &text, now)?);
            // Whom the node trusts may be two.
            if stem == "ca" {
                for (index, other) in blocks(&text).iter().enumerate().skip(1) {
                    found.push(status(format!("ca-{}", index + 1), path.clone(), other, now)?);
                }
            }
        }
    }
    found.order_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn status(name: String, path: PathBuf, text: &str, now: Timestamp) -> Result<CertificateStatus, Error> {
    let damaged = |reason: String| Error::Damaged {
        path: path.clone(),
        reason,
        remedy: "restart Kedge, which issues it again unless it is an authority; restore an authority from a backup",
    };
    let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| damaged(error.to_string()))?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&der).map_err(|error| damaged(error.to_string()))?;
    let time = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
    let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let authority = parsed.is_ca();
    Ok(CertificateStatus {
        name,
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        names: alternative_names(&parsed),
        authority,
        not_before: time(from),
        expires: time(to),
        renews: (!authority).then(|| time(from + (to - from) / 3 * 2)),
        days_left: (to - now.as_second()).div_euclid(DAY),
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeIdentity, Pki};

    #[test]
    fn every_certificate_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeIdentity {
            name: "n1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            service_addresses: Vec::new(),
            cluster_domain: "cluster.local".into(),
        };
        let pki = Pki::open(dir.path(), &node).unwrap();
        let now = i64::try_from(pki.clock().now()).unwrap();
        let list = certificates(dir.path(), Timestamp::from_second(now).unwrap()).unwrap();
        let names: Vec<&str> = list.iter().map(|status| status.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "admin",
                "apiserver",
                "apiserver-kubelet-client",
                "ca",
                "front-proxy-ca",
                "front-proxy-client",
                "kubelet",
                "kubelet-client",
                "node"
            ]
        );
        let kubelet = &list[6];
        assert_eq!(kubelet.subject, "O=system:nodes, CN=system:node:n1");
        assert_eq!(kubelet.issuer, "CN=kedge-ca");
        assert!(kubelet.names.contains("192.0.2.1"));
        assert!((364..=365).contains(&kubelet.days_left), "{}", kubelet.days_left);
        assert!(kubelet.renews.is_some_and(|renews| renews < kubelet.expires));
        assert!(list[3].authority && list[3].renews.is_none());
        let late = Timestamp::from_second(now + 366 * DAY).unwrap();
        assert!(certificates(dir.path(), late).unwrap()[6].days_left < 0);
    }
}
