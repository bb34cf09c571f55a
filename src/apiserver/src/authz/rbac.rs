//! Role based access control: pure rule evaluation over an immutable snapshot of the RBAC objects.
//!
//! Touches nothing but memory. The caller keeps a [`RuleSet`] behind an `Arc`, builds a new one when a role
//! or binding changes, lets `system:masters` through before it asks here, and decides on the `escalate` and
//! `bind` verbs itself. Semantics follow upstream's plugin/pkg/auth/authorizer/rbac, pkg/apis/rbac/v1
//! (evaluation helpers) and pkg/registry/rbac/validation (rule resolution and coverage).

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};

/// Matches every verb, API group, resource or URL.
const ALL: &str = "*";

/// One policy rule (`rbac.authorization.k8s.io/v1` PolicyRule), parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rule {
    /// Verbs, or `*`.
    pub(crate) verbs: Vec<String>,
    /// API groups (`""` is the core group), or `*`.
    pub(crate) api_groups: Vec<String>,
    /// `resource`, `resource/subresource`, `*/subresource` or `*`.
    pub(crate) resources: Vec<String>,
    /// Names the rule is limited to; empty means every name.
    pub(crate) resource_names: Vec<String>,
    /// URL paths; a trailing `*` matches any rest.
    pub(crate) non_resource_urls: Vec<String>,
}

impl Rule {
    /// Reads one rule of a role's `rules` list. Absent and null lists are empty.
    pub(crate) fn parse(value: &Value) -> Self {
        Self {
            verbs: strings(value, "verbs"),
            api_groups: strings(value, "apiGroups"),
            resources: strings(value, "resources"),
            resource_names: strings(value, "resourceNames"),
            non_resource_urls: strings(value, "nonResourceURLs"),
        }
    }

    /// The rule in its v1 form; `verbs` is always there, the other lists only when they hold something.
    pub(crate) fn to_value(&self) -> Value {
        let mut out = Map::new();
        out.insert("verbs".to_owned(), Value::from(self.verbs.clone()));
        let optional = [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ];
        for (key, list) in optional {
            if !list.is_empty() {
                out.insert(key.to_owned(), Value::from(list.clone()));
            }
        }
        Value::Object(out)
    }

    /// Whether this rule alone allows the request.
    pub(crate) fn allows(&self, request: &Attributes<'_>) -> bool {
        if !any_or_all(&self.verbs, request.verb) {
            return false;
        }
        if !request.is_resource {
            return self.non_resource_urls.iter().any(|url| url_covers(url, request.path));
        }
        any_or_all(&self.api_groups, request.api_group)
            && self.resources.iter().any(|r| resource_matches(r, request.resource, request.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == request.name))
    }

    /// Splits the rule into rules of one verb, one group, one resource, one name (or one verb, one URL).
    fn split(&self) -> Vec<Self> {
        let mut out = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let one = Self {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(one);
                        continue;
                    }
                    for name in &self.resource_names {
                        out.push(Self { resource_names: vec![name.clone()], ..one.clone() });
                    }
                }
            }
            for url in &self.non_resource_urls {
                out.push(Self {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![url.clone()],
                    ..Self::default()
                });
            }
        }
        out
    }

    /// Whether this rule grants all that `one` (made by [`Rule::split`]) grants.
    fn covers_one(&self, one: &Self) -> bool {
        one.verbs.iter().all(|v| any_or_all(&self.verbs, v))
            && one.api_groups.iter().all(|g| any_or_all(&self.api_groups, g))
            && one.resources.iter().all(|r| {
                // Only the literal rest after the first slash counts, as for a request.
                let (resource, sub) = r.split_once('/').unwrap_or((r.as_str(), ""));
                self.resources.iter().any(|own| own == r || resource_matches(own, resource, sub))
            })
            && one
                .non_resource_urls
                .iter()
                .all(|url| self.non_resource_urls.iter().any(|own| url_covers(own, url)))
            && (self.resource_names.is_empty()
                || (!one.resource_names.is_empty()
                    && one.resource_names.iter().all(|n| self.resource_names.contains(n))))
    }
}

/// The rules of a Role or ClusterRole object.
pub(crate) fn rules_of(role: &Value) -> Vec<Rule> {
    role.get("rules")
        .and_then(Value::as_array)
        .map(|l| l.iter().map(Rule::parse).collect())
        .unwrap_or_default()
}

/// Checks that the `owner` rules together grant everything the `wanted` rules grant. The error lists, one
/// verb and one resource (or URL) at a time, what is not covered. As upstream, a piece must be covered by
/// one owner rule; pieces of one wanted rule may be covered by different ones.
pub(crate) fn covers(owner: &[Rule], wanted: &[Rule]) -> Result<(), Vec<Rule>> {
    let uncovered: Vec<Rule> = wanted
        .iter()
        .flat_map(Rule::split)
        .filter(|one| !owner.iter().any(|rule| rule.covers_one(one)))
        .collect();
    if uncovered.is_empty() { Ok(()) } else { Err(uncovered) }
}

/// What a request wants to do and who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a> {
    /// User name.
    pub(crate) user: &'a str,
    /// The user's groups, with the virtual ones (`system:authenticated`, ...).
    pub(crate) groups: &'a [String],
    /// API verb, or the lower-case HTTP method for a non-resource request.
    pub(crate) verb: &'a str,
    /// Namespace; empty for cluster-wide requests.
    pub(crate) namespace: &'a str,
    /// API group; empty is the core group.
    pub(crate) api_group: &'a str,
    /// Plural resource name.
    pub(crate) resource: &'a str,
    /// Subresource or empty.
    pub(crate) subresource: &'a str,
    /// Object name or empty.
    pub(crate) name: &'a str,
    /// URL path, looked at for non-resource requests only.
    pub(crate) path: &'a str,
    /// Whether this is a request for an API resource.
    pub(crate) is_resource: bool,
}

/// The answer of the RBAC authorizer: it never denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Allowed, with upstream's reason text.
    Allow(String),
    /// No rule allows it; another authorizer may.
    NoOpinion,
}

/// A parsed, immutable snapshot of all roles and bindings, indexed by subject.
#[derive(Debug, Default)]
pub(crate) struct RuleSet {
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    /// Namespace, then role name.
    roles: HashMap<String, HashMap<String, Arc<[Rule]>>>,
    bindings: Vec<Binding>,
    cluster_wide: SubjectIndex,
    /// By namespace of the RoleBindings.
    namespaced: HashMap<String, SubjectIndex>,
}

#[derive(Debug)]
struct Binding {
    name: String,
    /// Empty for a ClusterRoleBinding.
    namespace: String,
    role_kind: String,
    role_name: String,
    /// `Kind "name"` as the reason text has it, in the order of the object.
    subjects: Vec<String>,
}

/// From a subject's name to (binding, subject within the binding). A service account counts as its user.
#[derive(Debug, Default)]
struct SubjectIndex {
    users: HashMap<String, Vec<(usize, usize)>>,
    groups: HashMap<String, Vec<(usize, usize)>>,
}

impl SubjectIndex {
    fn add(&mut self, binding: usize, place: usize, subject: &Value, binding_namespace: &str) -> String {
        let kind = text(subject, "/kind");
        let name = text(subject, "/name");
        match kind {
            "User" => self.users.entry(name.to_owned()).or_default().push((binding, place)),
            "Group" => self.groups.entry(name.to_owned()).or_default().push((binding, place)),
            "ServiceAccount" => {
                let own = text(subject, "/namespace");
                let namespace = if own.is_empty() { binding_namespace } else { own };
                // Without a namespace the subject matches nobody.
                if !namespace.is_empty() {
                    let user = format!("system:serviceaccount:{namespace}:{name}");
                    self.users.entry(user).or_default().push((binding, place));
                }
                return format!("{kind} \"{name}/{namespace}\"");
            }
            _ => {}
        }
        format!("{kind} {name:?}")
    }

    /// Bindings that apply to the user, each once with its first matching subject, in snapshot order.
    fn matching(&self, user: &str, groups: &[String]) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = self.users.get(user).cloned().unwrap_or_default();
        for group in groups {
            if let Some(more) = self.groups.get(group) {
                found.extend_from_slice(more);
            }
        }
        found.sort_unstable();
        found.dedup_by_key(|(binding, _)| *binding);
        found
    }
}

impl RuleSet {
    /// Parses the four kinds of RBAC objects. Order of the bindings decides which one a reason names.
    pub(crate) fn new<'a>(
        roles: impl IntoIterator<Item = &'a Value>,
        cluster_roles: impl IntoIterator<Item = &'a Value>,
        role_bindings: impl IntoIterator<Item = &'a Value>,
        cluster_role_bindings: impl IntoIterator<Item = &'a Value>,
    ) -> Self {
        let mut set = Self::default();
        for role in cluster_roles {
            set.cluster_roles.insert(text(role, "/metadata/name").to_owned(), rules_of(role).into());
        }
        for role in roles {
            let in_namespace = set.roles.entry(text(role, "/metadata/namespace").to_owned()).or_default();
            in_namespace.insert(text(role, "/metadata/name").to_owned(), rules_of(role).into());
        }
        for binding in cluster_role_bindings {
            set.add_binding(binding, "");
        }
        for binding in role_bindings {
            set.add_binding(binding, text(binding, "/metadata/namespace"));
        }
        set
    }

    fn add_binding(&mut self, object: &Value, namespace: &str) {
        let index = if namespace.is_empty() {
            &mut self.cluster_wide
        } else {
            self.namespaced.entry(namespace.to_owned()).or_default()
        };
        let number = self.bindings.len();
        let mut subjects = Vec::new();
        if let Some(list) = object.get("subjects").and_then(Value::as_array) {
            for (place, subject) in list.iter().enumerate() {
                subjects.push(index.add(number, place, subject, namespace));
            }
        }
        self.bindings.push(Binding {
            name: text(object, "/metadata/name").to_owned(),
            namespace: namespace.to_owned(),
            role_kind: text(object, "/roleRef/kind").to_owned(),
            role_name: text(object, "/roleRef/name").to_owned(),
            subjects,
        });
    }

    /// The rules of the role a binding in `namespace` (empty: a ClusterRoleBinding) refers to; `None` when
    /// there is no such role, or a ClusterRoleBinding names a Role.
    pub(crate) fn role_rules(&self, kind: &str, namespace: &str, name: &str) -> Option<&[Rule]> {
        match kind {
            "ClusterRole" => self.cluster_roles.get(name).map(|rules| &**rules),
            "Role" => self.roles.get(namespace).and_then(|roles| roles.get(name)).map(|rules| &**rules),
            _ => None,
        }
    }

    /// Decides on one request: cluster-wide bindings first, then those of the request's namespace.
    pub(crate) fn allows(&self, request: &Attributes<'_>) -> Decision {
        for (number, place) in self.applying(request.user, request.groups, request.namespace) {
            let Some((binding, rules)) = self.resolve(number) else { continue };
            if rules.iter().any(|rule| rule.allows(request)) {
                return Decision::Allow(binding.reason(place));
            }
        }
        Decision::NoOpinion
    }

    /// Every rule that applies to the user in the namespace (empty: cluster-wide bindings only).
    pub(crate) fn rules_for(&self, user: &str, groups: &[String], namespace: &str) -> Vec<Rule> {
        let mut out = Vec::new();
        for (number, _) in self.applying(user, groups, namespace) {
            if let Some((_, rules)) = self.resolve(number) {
                out.extend_from_slice(rules);
            }
        }
        out
    }

    fn applying(&self, user: &str, groups: &[String], namespace: &str) -> Vec<(usize, usize)> {
        let mut found = self.cluster_wide.matching(user, groups);
        if !namespace.is_empty()
            && let Some(index) = self.namespaced.get(namespace)
        {
            found.extend(index.matching(user, groups));
        }
        found
    }

    fn resolve(&self, number: usize) -> Option<(&Binding, &[Rule])> {
        let binding = self.bindings.get(number)?;
        let rules = self.role_rules(&binding.role_kind, &binding.namespace, &binding.role_name)?;
        Some((binding, rules))
    }
}

impl Binding {
    fn reason(&self, place: usize) -> String {
        let subject = self.subjects.get(place).map_or("", String::as_str);
        let (kind, name) = if self.namespace.is_empty() {
            ("ClusterRoleBinding", self.name.clone())
        } else {
            ("RoleBinding", format!("{}/{}", self.name, self.namespace))
        };
        format!(
            "RBAC: allowed by {kind} \"{name}\" of {} \"{}\" to {subject}",
            self.role_kind, self.role_name
        )
    }
}

fn any_or_all(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

/// `*` matches all; `*/sub` matches that subresource of anything; else the combined name must be equal.
fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == ALL {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    match rule.split_once('/') {
        Some((ALL, sub)) => sub == subresource,
        Some((res, sub)) => res == resource && sub == subresource,
        None => false,
    }
}

fn url_covers(rule: &str, path: &str) -> bool {
    rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    value
        .get(key)
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let list = |s: &str| s.split(' ').map(str::to_owned).collect::<Vec<_>>();
        Rule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: if names.is_empty() { Vec::new() } else { list(names) },
            non_resource_urls: Vec::new(),
        }
    }

    fn urls(verbs: &str, urls: &str) -> Rule {
        Rule {
            verbs: verbs.split(' ').map(str::to_owned).collect(),
            non_resource_urls: urls.split(' ').map(str::to_owned).collect(),
            ..Rule::default()
        }
    }

    /// `verb group resource[/sub] name` with `-` for the core group and for no name.
    fn request(line: &str) -> Attributes<'_> {
        let words: Vec<&str> = line.split(' ').collect();
        let (resource, subresource) = words[2].split_once('/').unwrap_or((words[2], ""));
        Attributes {
            user: "u",
            groups: &[],
            verb: words[0],
            namespace: "",
            api_group: if words[1] == "-" { "" } else { words[1] },
            resource,
            subresource,
            name: if words[3] == "-" { "" } else { words[3] },
            path: "",
            is_resource: true,
        }
    }

    #[test]
    fn one_rule_against_resource_requests() {
        let cases = [
            (rule("get", "", "pods", ""), "get - pods a", true),
            (rule("get", "", "pods", ""), "list - pods -", false),
            (rule("*", "", "pods", ""), "deletecollection - pods -", true),
            (rule("get", "apps", "pods", ""), "get - pods a", false),
            (rule("get", "*", "pods", ""), "get apps pods a", true),
            (rule("get", "", "pods", ""), "get - pods/log a", false),
            (rule("get", "", "pods/log", ""), "get - pods/log a", true),
            (rule("get", "", "pods/log", ""), "get - pods a", false),
            (rule("get", "", "*", ""), "get - pods/log a", true),
            (rule("get", "*", "*/scale", ""), "get apps deployments/scale a", true),
            (rule("get", "*", "*/scale", ""), "get apps deployments a", false),
            (rule("get", "*", "*/scale", ""), "get apps deployments/status a", false),
            (rule("get", "", "configmaps", "one two"), "get - configmaps two", true),
            (rule("get", "", "configmaps", "one two"), "get - configmaps three", false),
            (rule("list", "", "configmaps", "one"), "list - configmaps -", false),
            (urls("*", "*"), "get - pods a", false),
        ];
        for (rule, line, wanted) in cases {
            assert_eq!(rule.allows(&request(line)), wanted, "{rule:?} {line}");
        }
    }

    #[test]
    fn one_rule_against_paths() {
        let cases = [
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz/", false),
            ("/healthz/*", "/healthz/ping", true),
            ("/healthz/*", "/healthz", false),
            ("/apis*", "/apis/apps", true),
            ("*", "/anything", true),
        ];
        for (pattern, path, wanted) in cases {
            let mut ask = request("get - - -");
            ask.is_resource = false;
            ask.path = path;
            assert_eq!(urls("get", pattern).allows(&ask), wanted, "{pattern} {path}");
            ask.verb = "post";
            assert!(!urls("get", pattern).allows(&ask));
            ask.verb = "get";
            assert!(!rule("*", "*", "*", "").allows(&ask), "resource rules say nothing of paths");
        }
    }

    #[test]
    fn coverage() {
        let cases = [
            (vec![rule("*", "*", "*", "")], vec![rule("get list", "apps", "deployments/scale", "a")], 0),
            (vec![rule("get", "", "pods", "")], vec![rule("get list", "", "pods", "")], 1),
            (
                vec![rule("get", "", "pods", ""), rule("list", "", "pods", "")],
                vec![rule("get list", "", "pods", "")],
                0,
            ),
            (vec![rule("get", "", "pods", "a")], vec![rule("get", "", "pods", "")], 1),
            (vec![rule("get", "", "pods", "a")], vec![rule("get", "", "pods", "a b")], 1),
            (vec![rule("get", "", "pods", "")], vec![rule("get", "", "pods", "a b")], 0),
            (vec![rule("get", "", "*/scale", "")], vec![rule("get", "", "x/scale x/status x", "")], 2),
            (vec![rule("get", "", "*/scale", "")], vec![rule("get", "", "*/scale", "")], 0),
            (vec![rule("get", "", "pods", "")], vec![rule("*", "", "pods", "")], 1),
            (vec![rule("get", "", "pods", "")], vec![rule("get", "*", "pods", "")], 1),
            (vec![rule("get", "", "pods", "")], vec![rule("get", "", "*", "")], 1),
            (vec![urls("get", "/a/*")], vec![urls("get", "/a/b /a/* /b")], 1),
            (vec![urls("*", "*")], vec![urls("get post", "/x *")], 0),
            (vec![rule("*", "*", "*", "")], vec![urls("get", "/x")], 1),
        ];
        for (owner, wanted, missing) in cases {
            let got = covers(&owner, &wanted).map_or_else(|list| list.len(), |()| 0);
            assert_eq!(got, missing, "{owner:?} over {wanted:?}");
        }
    }

    fn sample() -> RuleSet {
        let cluster_roles = [
            json!({"metadata": {"name": "view"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
            json!({"metadata": {"name": "null"}, "rules": null}),
        ];
        let roles = [json!({"metadata": {"name": "edit", "namespace": "a"},
            "rules": [{"verbs": ["update"], "apiGroups": [""], "resources": ["pods"]}]})];
        let cluster_bindings = [
            json!({"metadata": {"name": "gone"}, "roleRef": {"kind": "ClusterRole", "name": "missing"},
                "subjects": [{"kind": "Group", "name": "dev"}]}),
            json!({"metadata": {"name": "devs"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
                "subjects": [{"kind": "User", "name": "x"}, {"kind": "Group", "name": "dev"}]}),
        ];
        let bindings = [
            json!({"metadata": {"name": "robots", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "edit"},
                "subjects": [{"kind": "ServiceAccount", "name": "bot"}]}),
            json!({"metadata": {"name": "see", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
                "subjects": [{"kind": "User", "name": "ann"}]}),
        ];
        RuleSet::new(&roles, &cluster_roles, &bindings, &cluster_bindings)
    }

    #[test]
    fn decisions_name_the_binding() {
        let set = sample();
        let dev = vec!["dev".to_owned()];
        let bot = "system:serviceaccount:a:bot";
        let cases: [(&str, &[String], &str, &str, Option<&str>); 7] = [
            (
                "joe",
                &dev,
                "get - pods p",
                "b",
                Some(r#"RBAC: allowed by ClusterRoleBinding "devs" of ClusterRole "view" to Group "dev""#),
            ),
            ("joe", &dev, "update - pods p", "b", None),
            ("joe", &[], "get - pods p", "b", None),
            (
                bot,
                &[],
                "update - pods p",
                "a",
                Some(r#"RBAC: allowed by RoleBinding "robots/a" of Role "edit" to ServiceAccount "bot/a""#),
            ),
            (bot, &[], "update - pods p", "b", None),
            (
                "ann",
                &[],
                "get - pods p",
                "a",
                Some(r#"RBAC: allowed by RoleBinding "see/a" of ClusterRole "view" to User "ann""#),
            ),
            ("ann", &[], "get - pods p", "", None),
        ];
        for (user, groups, line, namespace, wanted) in cases {
            let ask = Attributes { user, groups, namespace, ..request(line) };
            let wanted = wanted.map_or(Decision::NoOpinion, |reason| Decision::Allow(reason.to_owned()));
            assert_eq!(set.allows(&ask), wanted, "{user} {line} {namespace}");
        }
    }

    #[test]
    fn rules_for_a_review() {
        let set = sample();
        let dev = vec!["dev".to_owned()];
        assert_eq!(set.rules_for("system:serviceaccount:a:bot", &dev, "a").len(), 2);
        assert_eq!(set.rules_for("system:serviceaccount:a:bot", &dev, "").len(), 1);
        assert!(set.rules_for("nobody", &[], "a").is_empty());
        assert_eq!(set.role_rules("ClusterRole", "", "null").map(<[Rule]>::len), Some(0));
        assert!(set.role_rules("Role", "b", "edit").is_none());
    }

    #[test]
    fn rules_survive_the_round_trip() {
        for wanted in [rule("get", "", "pods", "a"), urls("get", "/x")] {
            assert_eq!(Rule::parse(&wanted.to_value()), wanted);
        }
    }
}
