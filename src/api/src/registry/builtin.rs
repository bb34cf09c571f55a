//! Parses `data/resources.txt` into rows.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Registry, Resource, Subresource, selectable};
use crate::schema::{Name, SchemaSet};
use crate::strategy::{Generic, rules_for};

const TABLE: &str = include_str!("../../data/resources.txt");

fn word(s: &'static str) -> Name {
    Cow::Borrowed(if s == "-" { "" } else { s })
}

fn words(s: &'static str) -> Vec<Name> {
    if s == "-" { Vec::new() } else { s.split(',').map(Cow::Borrowed).collect() }
}

/// The key under which all versions are stored, and in which group and version.
fn storage(group: &Name, version: &Name, plural: &Name) -> (Name, (Name, Name)) {
    match (group.as_ref(), plural.as_ref()) {
        ("events.k8s.io", "events") => ("events".into(), ("".into(), "v1".into())),
        ("autoscaling", "horizontalpodautoscalers") => {
            ("horizontalpodautoscalers.autoscaling".into(), ("autoscaling".into(), "v2".into()))
        }
        ("", _) => (plural.clone(), (group.clone(), version.clone())),
        _ => (Cow::Owned(format!("{plural}.{group}")), (group.clone(), version.clone())),
    }
}

pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    let mut lines = TABLE.lines().filter(|l| !l.starts_with('#')).peekable();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("R ") else { continue };
        let c: Vec<&'static str> = rest.split(' ').collect();
        let [group, version, plural, kind, scope, verbs, short, categories] = c[..] else { continue };
        let (group, version, plural, kind) = (word(group), word(version), word(plural), word(kind));
        let namespaced = scope == "N";
        let mut subresources = Vec::new();
        while let Some(sub) = lines.peek().and_then(|l| l.strip_prefix("S ")) {
            lines.next();
            let c: Vec<&'static str> = sub.split(' ').collect();
            let [name, g, v, k, verbs] = c[..] else { continue };
            subresources.push(Subresource {
                name: word(name),
                group: word(g),
                version: word(v),
                kind: word(k),
                verbs: words(verbs),
                namespaced,
                scale: None,
            });
        }
        let Some(schema) = SchemaSet::builtin().by_gvk(&group, &version, &kind) else { continue };
        let has_status = subresources.iter().any(|s| s.name == "status");
        let rules = rules_for(&group, &kind);
        let strategy = Arc::new(Generic::new(schema.clone(), namespaced, has_status, rules));
        let (storage_key, storage_version) = storage(&group, &version, &plural);
        let verbs = words(verbs);
        if !registry.order.contains(&group) {
            registry.order.push(group.clone());
        }
        registry.insert(Resource {
            list_kind: Cow::Owned(format!("{kind}List")),
            singular: Cow::Owned(kind.to_lowercase()),
            short_names: words(short),
            categories: words(categories),
            namespaced,
            stored: verbs.iter().any(|v| v == "update"),
            verbs,
            subresources,
            schema,
            columns: Vec::new(),
            selectable: selectable::of_kind(&kind),
            strategy,
            storage_key,
            storage_version,
            mixed: false,
            defaulted: false,
            conversion: None,
            custom: false,
            group,
            version,
            plural,
            kind,
        });
    }
    registry
}
