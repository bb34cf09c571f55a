//! CertificateSigningRequests (upstream's `pkg/apis/certificates/validation`). Whether the signer may
//! be asked for is the authorizer's matter.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::checks::Checks;
use super::util::{list, text};
use crate::field::At;
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

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    let pem = STANDARD.decode(text(spec, "request")).unwrap_or_default();
    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE REQUEST-----") {
        let what = "PEM block type must be CERTIFICATE REQUEST";
        c.invalid("spec.request", text(spec, "request"), what);
    }
    let usages = list(spec, "usages");
    if usages.is_empty() {
        c.required("spec.usages", "");
    }
    let mut seen = HashSet::new();
    for (i, usage) in usages.iter().enumerate() {
        if !USAGES.iter().any(|known| usage == known) {
            c.unsupported(At::SPEC.item("usages", i), usage.clone(), &USAGES);
        }
    }
    for (i, usage) in usages.iter().enumerate() {
        if !seen.insert(usage.as_str()) {
            c.duplicate(At::SPEC.item("usages", i), usage.clone());
        }
    }
    signer(c, text(spec, "signerName"));
    if let Some(n) = spec["expirationSeconds"].as_i64().filter(|n| *n < 600) {
        let what = "may not specify a duration less than 600 seconds (10 minutes)";
        c.invalid("spec.expirationSeconds", n, what);
    }
}

fn signer(c: &mut Checks, name: &str) {
    const AT: At<'_> = At::root("spec.signerName");
    if name == LEGACY {
        let what = "the legacy signerName is not allowed via this API version";
        return c.invalid(AT, name, what);
    }
    signer_name(c, name, AT);
}

/// `<domain>/<path>` (`ValidateSignerName`).
pub(super) fn signer_name(c: &mut Checks, name: &str, at: At<'_>) {
    if name.is_empty() {
        return c.required(at, "");
    }
    let Some((domain, path)) = name.split_once('/').filter(|(_, path)| !path.contains('/')) else {
        let what = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return c.invalid(at, name, what);
    };
    if domain.len() > 253 {
        c.too_long(at, 253);
    }
    let mut parts = |whole: &str, rule: fn(&str) -> Vec<String>| {
        let wrong = whole.split('.').map(|part| (part, rule(part))).find(|(_, wrong)| !wrong.is_empty());
        for (part, what) in wrong.into_iter().flat_map(|(part, all)| all.into_iter().map(move |m| (part, m)))
        {
            c.invalid(at, whole, format!("validating label {part:?}: {what}"));
        }
    };
    parts(domain, names::dns1123_label);
    parts(path, names::dns1123_subdomain);
    if !domain.contains('.') {
        let what = "should be a domain with at least two segments separated by dots";
        c.invalid(at, domain, what);
    }
    if name.len() > MAX_SIGNER {
        c.too_long(at, MAX_SIGNER);
    }
}

/// What approvers say, each thing once.
pub(super) fn conditions(c: &mut Checks, obj: &Value) {
    const AT: At<'_> = At::root("status.conditions");
    let all = list(&obj["status"], "conditions");
    let mut seen = HashSet::new();
    for (i, condition) in all.iter().enumerate() {
        let (at, kind) = (AT.index(i), text(condition, "type"));
        c.needs(condition, "type", at);
        let allowed: &[&str] = if matches!(kind, "Approved" | "Denied" | "Failed") {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        c.required_one_of(condition, "status", at, allowed);
        let other = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !other.is_empty() && seen.contains(other) {
            let what = "Approved and Denied conditions are mutually exclusive";
            c.invalid(AT, kind, what);
        }
        if !seen.insert(kind) {
            c.duplicate(at.child("type"), kind);
        }
    }
}

pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate, new, old);
    c.immutable(new, old, "/spec");
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
