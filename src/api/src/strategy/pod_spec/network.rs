//! How a pod is named and reaches others: name servers, names of hosts, the host's network (upstream:
//! `validatePodDNSConfig`, `ValidateHostAliases`, `validatePodHostNetworkDeps`, `validatePodHostName`).

use serde_json::Value;

use crate::field::At;
use crate::names;
use crate::strategy::checks::Checks;
use crate::strategy::ips;
use crate::strategy::util::{flag, list, number, strings, text};

/// What the resolvers of Linux can hold.
const NAMESERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCH_BYTES: usize = 2048;

pub(super) fn dns(c: &mut Checks, spec: &Value, at: At<'_>) {
    let config = &spec["dnsConfig"];
    let at = at.child("dnsConfig");
    let servers = list(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if !config.is_object() {
            return c.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return c.required(at.child("nameservers"), why);
        }
    }
    if !config.is_object() {
        return;
    }
    let path = at.child("nameservers");
    if servers.len() > NAMESERVERS {
        c.invalid(path, servers.to_vec(), format!("must not have more than {NAMESERVERS} nameservers"));
    }
    for (i, server) in strings(config, "nameservers").enumerate() {
        ips::address(c, server, path.index(i));
    }
    let (path, searches) = (at.child("searches"), list(config, "searches"));
    if searches.len() > SEARCHES {
        c.invalid(path, searches.to_vec(), format!("must not have more than {SEARCHES} search paths"));
    }
    let bytes: usize = strings(config, "searches").map(|search| search.len() + 1).sum();
    if bytes > SEARCH_BYTES + 1 {
        let why = format!(
            "must not have more than {SEARCH_BYTES} characters (including spaces) in the search list"
        );
        c.invalid(path, searches.to_vec(), why);
    }
    for (i, search) in strings(config, "searches").enumerate() {
        if search != "." {
            let search = search.strip_suffix('.').unwrap_or(search);
            c.syntax(path.index(i), search, search_domain);
        }
    }
    for (i, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            c.required(at.item("options", i), "must not be empty");
        }
    }
}

/// A subdomain whose parts may begin with an underscore and have some within (`ValidateDNS1123SubdomainWithUnderScore`).
fn search_domain(name: &str) -> Vec<String> {
    let end = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let is_valid = name.split('.').all(|part| {
        let part = part.strip_prefix('_').unwrap_or(part).as_bytes();
        end(part.first()) && end(part.last()) && part.iter().all(|b| end(Some(b)) || matches!(b, b'-' | b'_'))
    });
    let mut wrong = Vec::new();
    if name.len() > 253 {
        wrong.push("must be no more than 253 bytes".to_owned());
    }
    if !is_valid {
        wrong.push("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')".to_owned());
    }
    wrong
}

pub(super) fn host_aliases(c: &mut Checks, spec: &Value, at: At<'_>) {
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let at = at.item("hostAliases", i);
        ips::address(c, text(alias, "ip"), at.child("ip"));
        for (j, name) in strings(alias, "hostnames").enumerate() {
            c.syntax(at.item("hostnames", j), name, names::dns1123_subdomain);
        }
    }
}

/// On the host's network a container's port is the host's.
pub(super) fn host_ports(c: &mut Checks, spec: &Value, at: At<'_>) {
    if flag(spec, "hostNetwork") != Some(true) {
        return;
    }
    for (i, container) in list(spec, "containers").iter().enumerate() {
        let at = at.item("containers", i);
        for (j, port) in list(container, "ports").iter().enumerate() {
            let of = |field: &str| number(port, field);
            let host = of("hostPort");
            if (c.is_pod || host != 0) && host != of("containerPort") {
                let why = "must match `containerPort` when `hostNetwork` is true";
                c.invalid(at.item("ports", j).child("hostPort"), host, why);
            }
        }
    }
}

pub(super) fn hostname_override(c: &mut Checks, spec: &Value, at: At<'_>) {
    let Some(name) = spec.get("hostnameOverride").and_then(Value::as_str) else { return };
    let at = at.child("hostnameOverride");
    if flag(spec, "setHostnameAsFQDN") == Some(true) {
        c.forbidden(at, "may not be specified when setHostnameAsFQDN is true");
    }
    if flag(spec, "hostNetwork") == Some(true) {
        c.forbidden(at, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        c.too_long(at, 64);
    }
    c.syntax(at, name, names::dns1123_subdomain);
}
