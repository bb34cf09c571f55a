//! FlowSchemas and PriorityLevelConfigurations (upstream's `pkg/apis/flowcontrol/validation`).

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::checks::{number, ratchet, required, required_name, syntax};
use super::util::{list, put, spec, text};
use crate::field::{FieldError, index, join};
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

pub(super) fn validate_schema(obj: &Value, errors: &mut Vec<FieldError>) {
    const PRECEDENCE: &str = "spec.matchingPrecedence";
    let spec = &obj["spec"];
    let precedence = number(spec, "matchingPrecedence");
    let mut say = |what: &str| errors.push(FieldError::invalid(PRECEDENCE, precedence, what));
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
        errors.push(FieldError::not_supported("spec.distinguisherMethod.type", method.clone(), &allowed));
    }
    let path = "spec.priorityLevelConfiguration.name";
    match text(&spec["priorityLevelConfiguration"], "name") {
        "" => required(path, "must reference a priority level", errors),
        name => syntax(names::dns1123_subdomain, name, path, errors),
    }
    for (i, r) in list(spec, "rules").iter().enumerate() {
        rule(r, &index("spec.rules", i), errors);
    }
    conditions(obj, errors);
}

pub(super) fn update_schema(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate_schema, new, old, errors);
}

fn conditions(obj: &Value, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, c) in list(&obj["status"], "conditions").iter().enumerate() {
        let (path, kind) = (format!("status.conditions[{i}].type"), text(c, "type"));
        if !seen.insert(kind) {
            errors.push(FieldError::duplicate(path.as_str(), kind));
        }
        if kind.is_empty() {
            required(path, "", errors);
        }
    }
}

fn rule(r: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let subjects = list(r, "subjects");
    if subjects.is_empty() {
        required(join(at, "subjects"), "subjects must contain at least one value", errors);
    }
    for (i, s) in subjects.iter().enumerate() {
        subject(s, &index(&join(at, "subjects"), i), errors);
    }
    let (resources, urls) = (list(r, "resourceRules"), list(r, "nonResourceRules"));
    if resources.is_empty() && urls.is_empty() {
        required(at, "at least one of resourceRules and nonResourceRules has to be non-empty", errors);
    }
    for (i, r) in resources.iter().enumerate() {
        resource_rule(r, &index(&join(at, "resourceRules"), i), errors);
    }
    for (i, r) in urls.iter().enumerate() {
        let at = index(&join(at, "nonResourceRules"), i);
        verbs(r, &at, errors);
        url_rule(r, &join(&at, "nonResourceURLs"), errors);
    }
}

fn subject(s: &Value, at: &str, errors: &mut Vec<FieldError>) {
    const MEMBERS: [(&str, &str); 3] =
        [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = text(s, "kind");
    let Some((_, member)) = MEMBERS.iter().find(|(k, _)| *k == kind) else {
        let kinds = ["Group", "ServiceAccount", "User"];
        return errors.push(FieldError::not_supported(join(at, "kind"), kind, &kinds));
    };
    let (body, path) = (&s[*member], join(at, member));
    if !body.is_object() {
        required(path, &format!("{member} is required when subject kind is '{kind}'"), errors);
    } else if kind == "ServiceAccount" {
        if text(body, "name") != "*" {
            required_name(body, "name", names::dns1123_subdomain, &path, errors);
        }
        let namespace = join(&path, "namespace");
        match text(body, "namespace") {
            "" => required(namespace, "must specify namespace for service account", errors),
            name => syntax(names::dns1123_label, name, &namespace, errors),
        }
    } else if text(body, "name").is_empty() {
        required(join(&path, "name"), "", errors);
    }
    for (other, field) in MEMBERS.iter().filter(|(k, f)| *k != kind && !s[*f].is_null()) {
        let what = format!("{field} is forbidden when subject kind is not '{other}'");
        errors.push(FieldError::forbidden(join(at, field), what));
    }
}

fn verbs(r: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (path, verbs) = (join(at, "verbs"), list(r, "verbs"));
    if verbs.is_empty() {
        required(path, "verbs must contain at least one value", errors);
    } else if has_wildcard(verbs) {
        if verbs.len() > 1 {
            let what = "if '*' is present, must not specify other verbs";
            errors.push(FieldError::invalid(path, verbs.to_vec(), what));
        }
    } else if verbs.iter().any(|v| !VERBS.iter().any(|known| v == known)) {
        errors.push(FieldError::not_supported(path, verbs.to_vec(), &VERBS));
    }
}

fn resource_rule(r: &Value, at: &str, errors: &mut Vec<FieldError>) {
    verbs(r, at, errors);
    for (field, one, many) in
        [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        let (path, values) = (join(at, field), list(r, field));
        if values.is_empty() {
            required(path, &format!("resource rules must supply at least one {one}"), errors);
        } else if values.len() > 1 && has_wildcard(values) {
            let what = format!("if '*' is present, must not specify other {many}");
            errors.push(FieldError::invalid(path, values.to_vec(), what));
        }
    }
    let (path, namespaces) = (join(at, "namespaces"), list(r, "namespaces"));
    if namespaces.is_empty() && r["clusterScope"] != true {
        let what = "resource rules that are not cluster scoped must supply at least one namespace";
        required(path, what, errors);
    } else if has_wildcard(namespaces) {
        if namespaces.len() > 1 {
            let what = "if '*' is present, must not specify other namespaces";
            errors.push(FieldError::invalid(path, namespaces.to_vec(), what));
        }
    } else {
        for (i, n) in namespaces.iter().enumerate() {
            let n = n.as_str().unwrap_or_default();
            errors.extend(names::dns1123_label(n).into_iter().map(|m| {
                let what = format!("each member of this list must be '*' or a DNS-1123 label; {m}");
                FieldError::invalid(index(&path, i), n, what)
            }));
        }
    }
}

fn url_rule(r: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let urls = list(r, "nonResourceURLs");
    if urls.is_empty() {
        return required(path, "nonResourceURLs must contain at least one value", errors);
    }
    if has_wildcard(urls) {
        if urls.len() > 1 {
            let what = "if '*' is present, must not specify other non-resource URLs";
            errors.push(FieldError::invalid(path, urls.to_vec(), what));
        }
        return;
    }
    for (i, url) in urls.iter().enumerate() {
        let url = url.as_str().unwrap_or_default();
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
        errors.push(FieldError::invalid(index(path, i), url, what));
    }
}

pub(super) fn validate_level(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    let kind = text(spec, "type");
    if (object::name(obj) == "exempt") != (kind == "Exempt") {
        let what = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.push(FieldError::invalid("spec.type", kind, what));
    }
    let (limited, exempt) = (&spec["limited"], &spec["exempt"]);
    match kind {
        "Exempt" => {
            if !limited.is_null() {
                let what = "must be nil if the type is not Limited";
                errors.push(FieldError::forbidden("spec.limited", what));
            }
            shares(exempt, "spec.exempt", errors);
            lendable(exempt, "spec.exempt", errors);
        }
        "Limited" => {
            if !exempt.is_null() {
                errors.push(FieldError::forbidden("spec.exempt", "must be nil if the type is Limited"));
            }
            if limited.is_null() {
                required("spec.limited", "must not be empty when type is Limited", errors);
            } else {
                level(limited, errors);
            }
        }
        other => errors.push(FieldError::not_supported("spec.type", other, &["Exempt", "Limited"])),
    }
    conditions(obj, errors);
}

pub(super) fn update_level(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate_level, new, old, errors);
}

fn shares(level: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let n = number(level, "nominalConcurrencyShares");
    if n < 0 {
        let path = join(at, "nominalConcurrencyShares");
        errors.push(FieldError::invalid(path, n, "must be a non-negative integer"));
    }
}

fn lendable(level: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let n = number(level, "lendablePercent");
    if !(0..=100).contains(&n) {
        let path = join(at, "lendablePercent");
        errors.push(FieldError::invalid(path, n, "must be between 0 and 100, inclusive"));
    }
}

fn level(limited: &Value, errors: &mut Vec<FieldError>) {
    const AT: &str = "spec.limited";
    const RESPONSE: &str = "spec.limited.limitResponse";
    shares(limited, AT, errors);
    let response = &limited["limitResponse"];
    let (path, queuing) = (join(RESPONSE, "queuing"), &response["queuing"]);
    match text(response, "type") {
        "Reject" if !queuing.is_null() => errors
            .push(FieldError::forbidden(path, "must be nil if limited.limitResponse.type is not Limited")),
        "Reject" => {}
        "Queue" if queuing.is_null() => {
            required(path, "must not be empty if limited.limitResponse.type is Limited", errors);
        }
        "Queue" => queues(queuing, &path, errors),
        other => {
            errors.push(FieldError::not_supported(join(RESPONSE, "type"), other, &["Queue", "Reject"]));
        }
    }
    lendable(limited, AT, errors);
    let borrowed = number(limited, "borrowingLimitPercent");
    if borrowed < 0 {
        let what = "if specified, must be a non-negative integer";
        errors.push(FieldError::invalid(join(AT, "borrowingLimitPercent"), borrowed, what));
    }
}

/// The bits that a hand of that size out of that many queues needs, on the safe side.
fn entropy(queues: i64, hand: i64) -> f64 {
    ((queues as f64).log2() * hand as f64).ceil()
}

fn queues(queuing: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let [limit, queues, hand] = ["queueLengthLimit", "queues", "handSize"].map(|f| number(queuing, f));
    let mut say = |field: &str, n: i64, what: String| {
        errors.push(FieldError::invalid(join(at, field), n, what));
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
