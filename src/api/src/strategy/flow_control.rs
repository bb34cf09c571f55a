//! FlowSchemas and PriorityLevelConfigurations (upstream's `pkg/apis/flowcontrol/validation`).

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::checks::Checks;
use super::util::{list, number, put, spec, strings, text};
use crate::field::At;
use crate::names;
use crate::object;

const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// The highest matching precedence.
const LAST: i64 = 10_000;
/// Bits of a flow's hash that shuffle sharding can use.
const HASH_BITS: u32 = 60;
const MAX_QUEUES: i64 = 10_000_000;

pub(super) fn default_schema(obj: &mut Value) {
    if let Some(s) = spec(obj) {
        put_number(s, "matchingPrecedence", 1000);
    }
}

pub(super) fn default_level(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    for (kind, shares) in [("exempt", 0), ("limited", 30)] {
        let Some(level) = s.get_mut(kind).and_then(Value::as_object_mut) else { continue };
        put(level, "nominalConcurrencyShares", shares);
        put(level, "lendablePercent", 0);
        let queuing = level.get_mut("limitResponse").and_then(|r| r.get_mut("queuing"));
        if let Some(queuing) = queuing.and_then(Value::as_object_mut) {
            put_number(queuing, "handSize", 8);
            put_number(queuing, "queues", 64);
            put_number(queuing, "queueLengthLimit", 50);
        }
    }
}

/// Sets a number that is missing or zero.
fn put_number(m: &mut Map<String, Value>, field: &str, value: i64) {
    if m.get(field).is_none_or(|v| v.is_null() || v == 0) {
        m.insert(field.to_owned(), value.into());
    }
}

fn has_wildcard(values: &[Value]) -> bool {
    values.iter().any(|v| v == "*")
}

pub(super) fn validate_schema(c: &mut Checks, obj: &Value) {
    const PRECEDENCE: &str = "spec.matchingPrecedence";
    let spec = &obj["spec"];
    let precedence = number(spec, "matchingPrecedence");
    let mut say = |what: &str| c.invalid(PRECEDENCE, precedence, what);
    match precedence {
        ..1 => say("must be a positive value"),
        1 if object::name(obj) != "exempt" => {
            say("only the schema named 'exempt' may have matchingPrecedence 1");
        }
        1..=LAST => {}
        _ => say("must not be greater than 10000"),
    }
    let method = &spec["distinguisherMethod"];
    if method.is_object() && !matches!(text(method, "type"), "ByUser" | "ByNamespace") {
        let allowed = ["ByNamespace", "ByUser"];
        c.unsupported("spec.distinguisherMethod.type", method.clone(), &allowed);
    }
    let path = At::root("spec.priorityLevelConfiguration.name");
    match text(&spec["priorityLevelConfiguration"], "name") {
        "" => c.required(path, "must reference a priority level"),
        name => c.syntax(path, name, names::dns1123_subdomain),
    }
    for (i, r) in list(spec, "rules").iter().enumerate() {
        rule(c, r, At::SPEC.item("rules", i));
    }
    conditions(c, obj);
}

pub(super) fn update_schema(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate_schema, new, old);
}

fn conditions(c: &mut Checks, obj: &Value) {
    const STATUS: At<'_> = At::root("status");
    let mut seen = HashSet::new();
    for (i, condition) in list(&obj["status"], "conditions").iter().enumerate() {
        let (at, kind) = (STATUS.item("conditions", i), text(condition, "type"));
        let path = at.child("type");
        if !seen.insert(kind) {
            c.duplicate(path, kind);
        }
        if kind.is_empty() {
            c.required(path, "");
        }
    }
}

fn rule(c: &mut Checks, r: &Value, at: At<'_>) {
    let subjects = list(r, "subjects");
    if subjects.is_empty() {
        c.required(at.child("subjects"), "subjects must contain at least one value");
    }
    for (i, s) in subjects.iter().enumerate() {
        subject(c, s, at.item("subjects", i));
    }
    let (resources, urls) = (list(r, "resourceRules"), list(r, "nonResourceRules"));
    if resources.is_empty() && urls.is_empty() {
        c.required(at, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (i, r) in resources.iter().enumerate() {
        resource_rule(c, r, at.item("resourceRules", i));
    }
    for (i, r) in urls.iter().enumerate() {
        let at = at.item("nonResourceRules", i);
        verbs(c, r, at);
        url_rule(c, r, at.child("nonResourceURLs"));
    }
}

fn subject(c: &mut Checks, s: &Value, at: At<'_>) {
    const MEMBERS: [(&str, &str); 3] =
        [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = text(s, "kind");
    let Some((_, member)) = MEMBERS.iter().find(|(k, _)| *k == kind) else {
        let kinds = ["Group", "ServiceAccount", "User"];
        return c.unsupported(at.child("kind"), kind, &kinds);
    };
    let (body, path) = (&s[*member], at.child(member));
    if !body.is_object() {
        c.required(path, format!("{member} is required when subject kind is '{kind}'"));
    } else if kind == "ServiceAccount" {
        if text(body, "name") != "*" {
            c.required_name(body, "name", path, names::dns1123_subdomain);
        }
        let namespace = path.child("namespace");
        match text(body, "namespace") {
            "" => c.required(namespace, "must specify namespace for service account"),
            name => c.syntax(namespace, name, names::dns1123_label),
        }
    } else {
        c.needs(body, "name", path);
    }
    for (other, field) in MEMBERS.iter().filter(|(k, f)| *k != kind && !s[*f].is_null()) {
        let what = format!("{field} is forbidden when subject kind is not '{other}'");
        c.forbidden(at.child(field), what);
    }
}

fn verbs(c: &mut Checks, r: &Value, at: At<'_>) {
    let (path, verbs) = (at.child("verbs"), list(r, "verbs"));
    if verbs.is_empty() {
        c.required(path, "verbs must contain at least one value");
    } else if has_wildcard(verbs) {
        if verbs.len() > 1 {
            let what = "if '*' is present, must not specify other verbs";
            c.invalid(path, verbs.to_vec(), what);
        }
    } else if verbs.iter().any(|v| !VERBS.iter().any(|known| v == known)) {
        c.unsupported(path, verbs.to_vec(), &VERBS);
    }
}

fn resource_rule(c: &mut Checks, r: &Value, at: At<'_>) {
    verbs(c, r, at);
    for (field, one, many) in
        [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        let (path, values) = (at.child(field), list(r, field));
        if values.is_empty() {
            c.required(path, format!("resource rules must supply at least one {one}"));
        } else if values.len() > 1 && has_wildcard(values) {
            let what = format!("if '*' is present, must not specify other {many}");
            c.invalid(path, values.to_vec(), what);
        }
    }
    let (path, namespaces) = (at.child("namespaces"), list(r, "namespaces"));
    if namespaces.is_empty() && r["clusterScope"] != true {
        let what = "resource rules that are not cluster scoped must supply at least one namespace";
        c.required(path, what);
    } else if has_wildcard(namespaces) {
        if namespaces.len() > 1 {
            let what = "if '*' is present, must not specify other namespaces";
            c.invalid(path, namespaces.to_vec(), what);
        }
    } else {
        for (i, n) in strings(r, "namespaces").enumerate() {
            for m in names::dns1123_label(n) {
                let what = format!("each member of this list must be '*' or a DNS-1123 label; {m}");
                c.invalid(path.index(i), n, what);
            }
        }
    }
}

fn url_rule(c: &mut Checks, r: &Value, path: At<'_>) {
    let urls = list(r, "nonResourceURLs");
    if urls.is_empty() {
        return c.required(path, "nonResourceURLs must contain at least one value");
    }
    if has_wildcard(urls) {
        if urls.len() > 1 {
            let what = "if '*' is present, must not specify other non-resource URLs";
            c.invalid(path, urls.to_vec(), what);
        }
        return;
    }
    for (i, url) in strings(r, "nonResourceURLs").enumerate() {
        let stars = url.matches('*').count();
        let what = if url.is_empty() {
            "must not be empty"
        } else if !url.starts_with('/') {
            "must start with slash"
        } else if url.contains(' ') {
            "must not contain white-space"
        } else if url.contains("//") {
            "must not contain double slash"
        } else if stars > 1 || stars == 1 && !url.ends_with("/*") {
            "wildcard can only do suffix matching"
        } else {
            continue;
        };
        c.invalid(path.index(i), url, what);
    }
}

pub(super) fn validate_level(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    let kind = text(spec, "type");
    if (object::name(obj) == "exempt") != (kind == "Exempt") {
        let what = "must be 'Exempt' if and only if `name` is 'exempt'";
        c.invalid("spec.type", kind, what);
    }
    let (limited, exempt) = (&spec["limited"], &spec["exempt"]);
    match kind {
        "Exempt" => {
            if !limited.is_null() {
                let what = "must be nil if the type is not Limited";
                c.forbidden("spec.limited", what);
            }
            shares(c, exempt, At::SPEC.child("exempt"));
            lendable(c, exempt, At::SPEC.child("exempt"));
        }
        "Limited" => {
            if !exempt.is_null() {
                c.forbidden("spec.exempt", "must be nil if the type is Limited");
            }
            if limited.is_null() {
                c.required("spec.limited", "must not be empty when type is Limited");
            } else {
                level(c, limited);
            }
        }
        other => c.unsupported("spec.type", other, &["Exempt", "Limited"]),
    }
    conditions(c, obj);
}

pub(super) fn update_level(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate_level, new, old);
}

fn shares(c: &mut Checks, level: &Value, at: At<'_>) {
    let n = number(level, "nominalConcurrencyShares");
    if n < 0 {
        let path = at.child("nominalConcurrencyShares");
        c.invalid(path, n, "must be a non-negative integer");
    }
}

fn lendable(c: &mut Checks, level: &Value, at: At<'_>) {
    let n = number(level, "lendablePercent");
    if !(0..=100).contains(&n) {
        let path = at.child("lendablePercent");
        c.invalid(path, n, "must be between 0 and 100, inclusive");
    }
}

fn level(c: &mut Checks, limited: &Value) {
    const AT: At<'_> = At::root("spec.limited");
    const RESPONSE: At<'_> = At::root("spec.limited.limitResponse");
    shares(c, limited, AT);
    let response = &limited["limitResponse"];
    let (path, queuing) = (RESPONSE.child("queuing"), &response["queuing"]);
    match text(response, "type") {
        "Reject" if !queuing.is_null() => {
            c.forbidden(path, "must be nil if limited.limitResponse.type is not Limited");
        }
        "Reject" => {}
        "Queue" if queuing.is_null() => {
            c.required(path, "must not be empty if limited.limitResponse.type is Limited");
        }
        "Queue" => queues(c, queuing, path),
        other => {
            c.unsupported(RESPONSE.child("type"), other, &["Queue", "Reject"]);
        }
    }
    lendable(c, limited, AT);
    let borrowed = number(limited, "borrowingLimitPercent");
    if borrowed < 0 {
        let what = "if specified, must be a non-negative integer";
        c.invalid(AT.child("borrowingLimitPercent"), borrowed, what);
    }
}

/// The bits that a hand of that size out of that many queues needs, on the safe side.
fn entropy(queues: i64, hand: i64) -> f64 {
    ((queues as f64).log2() * hand as f64).ceil()
}

fn queues(c: &mut Checks, queuing: &Value, at: At<'_>) {
    let [limit, queues, hand] = ["queueLengthLimit", "queues", "handSize"].map(|f| number(queuing, f));
    let mut say = |field: &str, n: i64, what: String| {
        c.invalid(at.child(field), n, what);
    };
    if limit <= 0 {
        say("queueLengthLimit", limit, "must be positive".into());
    }
    if queues <= 0 {
        say("queues", queues, "must be positive".into());
    } else if queues > MAX_QUEUES {
        say("queues", queues, format!("must not be greater than {MAX_QUEUES}"));
    }
    if hand <= 0 {
        say("handSize", hand, "must be positive".into());
    } else if hand > queues {
        say("handSize", hand, format!("should not be greater than queues ({queues})"));
    } else if entropy(queues, hand) > f64::from(HASH_BITS) {
        let what = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        say("handSize", hand, what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    fn schema(rule: Value) -> Value {
        json!({"metadata": {"name": "s"}, "spec": {"matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "p"}, "rules": [rule]}})
    }

    #[test]
    fn schemas() {
        let user = json!([{"kind": "User", "user": {"name": "*"}}]);
        let fine = json!({"subjects": user, "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
            "clusterScope": true, "namespaces": ["*"]}], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]}]});
        assert_eq!(told(validate_schema, &schema(fine)), "");
        let at = "spec.rules[0].";
        for (rule, wanted) in [
            (
                json!({"subjects": user}),
                "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty".to_owned(),
            ),
            (
                json!({"subjects": [{"kind": "x"}], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["*"]}]}),
                format!("{at}subjects[0].kind: Unsupported value: \"x\": supported values: \"Group\", \"ServiceAccount\", \"User\""),
            ),
            (
                json!({"subjects": [{"kind": "User", "group": {"name": "g"}}], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["*"]}]}),
                format!("{at}subjects[0].user: Required value: user is required when subject kind is 'User'; {at}subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'"),
            ),
            (
                json!({"subjects": user, "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["a"]}]}),
                format!("{at}nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"a\": must start with slash"),
            ),
            (
                json!({"subjects": user, "resourceRules": [{"verbs": ["*"], "apiGroups": ["*", "a"], "resources": ["*"]}]}),
                format!("{at}resourceRules[0].apiGroups: Invalid value: [\"*\",\"a\"]: if '*' is present, must not specify other api groups; {at}resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace"),
            ),
        ] {
            assert_eq!(told(validate_schema, &schema(rule)), wanted);
        }
        let first = json!({"metadata": {"name": "s"}, "spec": {"matchingPrecedence": 1}});
        assert_eq!(
            told(validate_schema, &first),
            "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1; spec.priorityLevelConfiguration.name: Required value: must reference a priority level"
        );
    }

    #[test]
    fn defaults() {
        let mut schema =
            json!({"metadata": {"name": "s"}, "spec": {"priorityLevelConfiguration": {"name": "x"}}});
        default_schema(&mut schema);
        assert_eq!(schema["spec"]["matchingPrecedence"], 1000);
        assert_eq!(told(validate_schema, &schema), "");
        let mut level = json!({"metadata": {"name": "l"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}});
        default_level(&mut level);
        assert_eq!(
            level["spec"]["limited"],
            json!({"nominalConcurrencyShares": 30, "lendablePercent": 0, "limitResponse": {"type": "Queue",
                "queuing": {"handSize": 8, "queues": 64, "queueLengthLimit": 50}}})
        );
        assert_eq!(told(validate_level, &level), "");
    }

    #[test]
    fn levels() {
        let of = |spec: Value| told(validate_level, &json!({"metadata": {"name": "l"}, "spec": spec}));
        let queue = |queues: i64, hand: i64| {
            json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 30, "lendablePercent": 50, "limitResponse":
                {"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}}}})
        };
        assert_eq!(of(queue(64, 6)), "");
        assert_eq!(of(queue(128, 6)), "");
        assert_eq!(of(json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}})), "");
        for (spec, wanted) in [
            (
                json!({"type": "Limited"}),
                "spec.limited: Required value: must not be empty when type is Limited",
            ),
            (
                json!({"type": "Exempt"}),
                "spec.type: Invalid value: \"Exempt\": must be 'Exempt' if and only if `name` is 'exempt'",
            ),
            (
                queue(4, 5),
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 5: should not be greater than queues (4)",
            ),
            (
                queue(512, 8),
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60",
            ),
            (
                json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue"}}}),
                "spec.limited.limitResponse.queuing: Required value: must not be empty if limited.limitResponse.type is Limited",
            ),
            (
                json!({"type": "Limited", "limited": {"lendablePercent": 101, "limitResponse": {"type": "Reject"}}}),
                "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
            ),
        ] {
            assert_eq!(of(spec), wanted);
        }
    }
}
