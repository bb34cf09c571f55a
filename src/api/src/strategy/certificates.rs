//! CertificateSigningRequests (upstream's `pkg/apis/certificates/validation`). Whether the signer may
//! be asked for is the authorizer's matter.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::checks::{ratchet, required};
use super::meta::immutable;
use super::util::{list, text};
use crate::field::{FieldError, index, join};
use crate::names;

/// In upstream's order.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// The name that requests had before signers had names.
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// A domain, a name in a namespace and what separates them.
const MAX_SIGNER: usize = 253 + 253 + 63 + 2;

pub(super) fn validate(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    let pem = STANDARD.decode(text(spec, "request")).unwrap_or_default();
    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE REQUEST-----") {
        let what = "PEM block type must be CERTIFICATE REQUEST";
        errors.push(FieldError::invalid("spec.request", text(spec, "request"), what));
    }
    let usages = list(spec, "usages");
    if usages.is_empty() {
        required("spec.usages", "", errors);
    }
    let mut seen = HashSet::new();
    for (i, usage) in usages.iter().enumerate() {
        if !USAGES.iter().any(|known| usage == known) {
            errors.push(FieldError::not_supported(index("spec.usages", i), usage.clone(), &USAGES));
        }
    }
    for (i, usage) in usages.iter().enumerate() {
        if !seen.insert(usage.as_str()) {
            errors.push(FieldError::duplicate(index("spec.usages", i), usage.clone()));
        }
    }
    signer(text(spec, "signerName"), errors);
    if let Some(n) = spec["expirationSeconds"].as_i64().filter(|n| *n < 600) {
        let what = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid("spec.expirationSeconds", n, what));
    }
}

fn signer(name: &str, errors: &mut Vec<FieldError>) {
    const AT: &str = "spec.signerName";
    if name == LEGACY {
        let what = "the legacy signerName is not allowed via this API version";
        return errors.push(FieldError::invalid(AT, name, what));
    }
    signer_name(name, AT, errors);
}

/// `<domain>/<path>` (`ValidateSignerName`).
pub(super) fn signer_name(name: &str, at: &str, errors: &mut Vec<FieldError>) {
    if name.is_empty() {
        return required(at, "", errors);
    }
    let Some((domain, path)) = name.split_once('/').filter(|(_, path)| !path.contains('/')) else {
        let what = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.push(FieldError::invalid(at, name, what));
    };
    if domain.len() > 253 {
        errors.push(FieldError::too_long(at, 253));
    }
    let mut parts = |whole: &str, rule: fn(&str) -> Vec<String>| {
        let wrong = whole.split('.').map(|part| (part, rule(part))).find(|(_, wrong)| !wrong.is_empty());
        for (part, what) in wrong.into_iter().flat_map(|(part, all)| all.into_iter().map(move |m| (part, m)))
        {
            errors.push(FieldError::invalid(at, whole, format!("validating label {part:?}: {what}")));
        }
    };
    parts(domain, names::dns1123_label);
    parts(path, names::dns1123_subdomain);
    if !domain.contains('.') {
        let what = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(at, domain, what));
    }
    if name.len() > MAX_SIGNER {
        errors.push(FieldError::too_long(at, MAX_SIGNER as u64));
    }
}

/// What approvers say, each thing once.
pub(super) fn conditions(obj: &Value, errors: &mut Vec<FieldError>) {
    const AT: &str = "status.conditions";
    let all = list(&obj["status"], "conditions");
    let mut seen = HashSet::new();
    for (i, c) in all.iter().enumerate() {
        let (at, kind, status) = (index(AT, i), text(c, "type"), text(c, "status"));
        if kind.is_empty() {
            required(join(&at, "type"), "", errors);
        }
        let allowed: &[&str] = if matches!(kind, "Approved" | "Denied" | "Failed") {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        if status.is_empty() {
            required(join(&at, "status"), "", errors);
        } else if !allowed.contains(&status) {
            errors.push(FieldError::not_supported(join(&at, "status"), status, allowed));
        }
        let other = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !other.is_empty() && seen.contains(other) {
            let what = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid(AT, kind, what));
        }
        if !seen.insert(kind) {
            errors.push(FieldError::duplicate(join(&at, "type"), kind));
        }
    }
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate, new, old, errors);
    immutable(new, old, "/spec", errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    #[test]
    fn requests() {
        let of = |with: Value| {
            let mut spec = json!({"request": STANDARD.encode("-----BEGIN CERTIFICATE REQUEST-----\n"),
                "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]});
            for (k, v) in with.as_object().unwrap() {
                spec[k] = v.clone();
            }
            told(validate, &json!({ "spec": spec }))
        };
        assert_eq!(of(json!({})), "");
        assert_eq!(
            of(
                json!({"signerName": "a.b/ns.name", "usages": ["server auth", "key encipherment"], "expirationSeconds": 600})
            ),
            ""
        );
        for (spec, wanted) in [
            (
                json!({"request": "eA=="}),
                "request: Invalid value: \"eA==\": PEM block type must be CERTIFICATE REQUEST",
            ),
            (json!({"usages": []}), "usages: Required value"),
            (
                json!({"usages": ["client auth", "client auth"]}),
                "usages[1]: Duplicate value: \"client auth\"",
            ),
            (
                json!({"signerName": "x"}),
                "signerName: Invalid value: \"x\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ),
            (
                json!({"signerName": "x/y"}),
                "signerName: Invalid value: \"x\": should be a domain with at least two segments separated by dots",
            ),
            (
                json!({"signerName": LEGACY}),
                "signerName: Invalid value: \"kubernetes.io/legacy-unknown\": the legacy signerName is not allowed via this API version",
            ),
            (
                json!({"expirationSeconds": 599}),
                "expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)",
            ),
        ] {
            assert_eq!(of(spec), format!("spec.{wanted}"));
        }
        assert!(
            of(json!({"usages": ["x"]}))
                .starts_with("spec.usages[0]: Unsupported value: \"x\": supported values: \"any\"")
        );
    }

    #[test]
    fn approvals() {
        let of = |all: Value| told(conditions, &json!({"status": {"conditions": all}}));
        assert_eq!(of(json!([{"type": "Approved", "status": "True"}, {"type": "x", "status": "False"}])), "");
        for (all, wanted) in [
            (
                json!([{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]),
                "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
            ),
            (
                json!([{"type": "Approved", "status": "False"}]),
                r#"status.conditions[0].status: Unsupported value: "False": supported values: "True""#,
            ),
            (
                json!([{"type": "x", "status": "True"}, {"type": "x", "status": "True"}]),
                "status.conditions[1].type: Duplicate value: \"x\"",
            ),
        ] {
            assert_eq!(of(all), wanted);
        }
    }
}
