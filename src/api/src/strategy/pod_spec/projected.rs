//! Projected volumes (upstream: `validateProjectionSources`): what each source must have, and that no two of
//! them write the same file.

use std::collections::HashSet;

use serde_json::Value;

use super::volumes::{downward_file, key_to_path, mode};
use crate::field::At;
use crate::names;
use crate::strategy::checks::Checks;
use crate::strategy::util::{entries, integer, is_set, list, text};
use crate::strategy::{certificates, selectors};

const CONFLICT: &str = "conflicting duplicate paths";

pub(super) fn validate(c: &mut Checks, volume: &Value, at: At<'_>) {
    mode(c, volume, "defaultMode", at);
    let mut paths = HashSet::new();
    let sources = at.child("sources");
    for (i, source) in list(volume, "sources").iter().enumerate() {
        let here = sources.index(i);
        let mut found = 0;
        for (kind, of) in entries(source).filter(|(_, of)| !of.is_null()) {
            found += 1;
            let from = here.child(kind);
            match kind {
                "secret" | "configMap" => files(c, of, at, from, &mut paths),
                "downwardAPI" => {
                    for file in list(of, "items") {
                        downward_file(c, file, from);
                        take(c, text(file, "path"), text(file, "path"), at, &mut paths);
                    }
                }
                "serviceAccountToken" => token(c, of, at, from),
                "clusterTrustBundle" => {
                    trust_bundle(c, of, from);
                    take(c, text(of, "path"), text(of, "path"), at, &mut paths);
                }
                "podCertificate" => certificate(c, of, at, from, &mut paths),
                _ => {}
            }
        }
        if found > 1 {
            c.forbidden(here, "may not specify more than 1 volume type per source");
        }
    }
}

/// Each file has one source; `told` is what upstream names in the error.
fn take<'a>(c: &mut Checks, path: &'a str, told: &str, at: At<'_>, paths: &mut HashSet<&'a str>) {
    if !path.is_empty() && !paths.insert(path) {
        c.invalid(at, told, CONFLICT);
    }
}

fn files<'a>(c: &mut Checks, of: &'a Value, at: At<'_>, from: At<'_>, paths: &mut HashSet<&'a str>) {
    c.needs(of, "name", from);
    let items = from.child("items");
    for (i, item) in list(of, "items").iter().enumerate() {
        key_to_path(c, item, items.index(i));
        take(c, text(item, "path"), text(of, "name"), at, paths);
    }
}

/// How long a token lasts.
pub(in crate::strategy) fn token_seconds(c: &mut Checks, of: &Value, at: At<'_>) {
    if let Some(seconds) = integer(of, "expirationSeconds") {
        let path = at.child("expirationSeconds");
        if seconds < 600 {
            c.invalid(path, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > 1 << 32 {
            c.invalid(path, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
}

fn token(c: &mut Checks, of: &Value, at: At<'_>, from: At<'_>) {
    token_seconds(c, of, from);
    if c.needs(of, "path", at) && !c.tolerated.token_paths {
        c.local_path(at.child("path"), text(of, "path"));
    }
}

fn trust_bundle(c: &mut Checks, of: &Value, from: At<'_>) {
    let name = of.get("name").and_then(Value::as_str);
    let signer = of.get("signerName").and_then(Value::as_str);
    match (name, signer) {
        (Some(_), Some(_)) => c.invalid(from, of.clone(), "only one of name and signerName may be used"),
        (Some(name), None) => {
            let path = from.child("name");
            if name.is_empty() {
                c.required(path, "must be a valid object name");
            }
            let own = name.rsplit_once(':').map_or(name, |(_, own)| own);
            for message in names::dns1123_subdomain(own) {
                c.invalid(path, name, format!("not a valid clustertrustbundlename: {message}"));
            }
            if is_set(of, "labelSelector") {
                let why = "labelSelector must be unset if name is specified";
                c.invalid(from.child("labelSelector"), of["labelSelector"].clone(), why);
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                c.required(from.child("signerName"), "must be a valid signer name");
            }
            certificates::signer_name(c, signer, from.child("signerName"));
            selectors::label_selector(c, &of["labelSelector"], from.child("labelSelector"));
        }
        (None, None) => c.required(from, "either name or signerName must be specified"),
    }
    c.needs(of, "path", from);
    c.local_path(from.child("path"), text(of, "path"));
}

const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

fn certificate<'a>(c: &mut Checks, of: &'a Value, at: At<'_>, from: At<'_>, paths: &mut HashSet<&'a str>) {
    let signer = text(of, "signerName");
    certificates::signer_name(c, signer, from.child("signerName"));
    let kind = text(of, "keyType");
    if !KEY_TYPES.contains(&kind) {
        c.unsupported(from.child("keyType"), kind, &KEY_TYPES);
    }
    if let Some(seconds) = integer(of, "maxExpirationSeconds") {
        let path = from.child("maxExpirationSeconds");
        if seconds < 3600 {
            c.invalid(path, seconds, "if provided, maxExpirationSeconds must be >= 3600");
        }
        // A day from the cluster's own signers, 91 days from others.
        let most = if signer.starts_with("kubernetes.io/") { 86_400 } else { 91 * 86_400 };
        if seconds > most {
            c.invalid(path, seconds, format!("if provided, maxExpirationSeconds must be <= {most}"));
        }
    }
    let mut any = false;
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let path = text(of, field);
        if !path.is_empty() {
            any = true;
            c.local_path(from.child(field), path);
            take(c, path, path, at, paths);
        }
    }
    if !any {
        c.required(from, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath");
    }
}
