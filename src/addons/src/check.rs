//! `health:` of an `addon.yaml`: what must be so beside the objects' own status. A condition of an object, or a
//! Service that answers.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::render::replace;

/// An answer that takes longer is none.
const ANSWER: Duration = Duration::from_secs(2);

/// One thing that must be so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub enum Check {
    /// The object's condition is `True`.
    Condition { api_version: String, kind: String, namespace: String, name: String, condition: String },
    /// GET of the path, sent by the API server to one of the Service's endpoints, is answered with 2xx.
    Answer { service: String, namespace: String, port: String, path: String, https: bool },
}

/// As it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Fields {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    api_version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    condition: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    service: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    port: Value,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    path: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    scheme: String,
}

impl TryFrom<Fields> for Check {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let Fields { api_version, kind, namespace, name, condition, service, port, path, scheme } = fields;
        let port = match port {
            Value::Null => String::new(),
            Value::String(name) => name,
            number => number.to_string(),
        };
        let of_object =
            [("apiVersion", &api_version), ("kind", &kind), ("name", &name), ("condition", &condition)];
        let of_service = [("service", &service), ("port", &port), ("path", &path), ("scheme", &scheme)];
        let is_given = |(_, value): &(&'static str, &String)| !value.is_empty();
        let (wanted, foreign, words) = match (kind.is_empty(), service.is_empty()) {
            (false, true) => (&of_object[..], &of_service, "an entry with kind"),
            (true, false) => (&of_service[..2], &of_object, "an entry with service"),
            _ => {
                return Err(
                    "each entry of health has either kind (apiVersion, kind, namespace, name, condition) or \
                            service (service, namespace, port, path, scheme)"
                        .to_owned(),
                );
            }
        };
        if let Some((field, _)) = foreign.iter().find(|field| is_given(field)) {
            return Err(format!("health: {words} has no {field}"));
        }
        if let Some((field, _)) = wanted.iter().find(|field| !is_given(field)) {
            return Err(format!("health: {words} needs {field}"));
        }
        if service.is_empty() {
            return Ok(Self::Condition { api_version, kind, namespace, name, condition });
        }
        if namespace.is_empty() {
            return Err(format!("health: {words} needs namespace"));
        }
        let path = if path.is_empty() { "/".to_owned() } else { path };
        if !path.starts_with('/') || path.contains(char::is_whitespace) {
            return Err(format!("health: path {path:?} does not begin with / or has spaces"));
        }
        let https = match scheme.to_ascii_lowercase().as_str() {
            "" | "http" => false,
            "https" => true,
            _ => return Err(format!("health: scheme {scheme:?} is neither http nor https")),
        };
        Ok(Self::Answer { service, namespace, port, path, https })
    }
}

impl From<Check> for Fields {
    fn from(check: Check) -> Self {
        match check {
            Check::Condition { api_version, kind, namespace, name, condition } => {
                Self { api_version, kind, namespace, name, condition, ..Self::default() }
            }
            Check::Answer { service, namespace, port, path, https } => {
                let scheme = if https { "https".to_owned() } else { String::new() };
                Self { service, namespace, port: port.into(), path, scheme, ..Self::default() }
            }
        }
    }
}

impl Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Condition { kind, namespace, name, condition, .. } if namespace.is_empty() => {
                write!(f, "condition {condition} of {kind} {name}")
            }
            Self::Condition { kind, namespace, name, condition, .. } => {
                write!(f, "condition {condition} of {kind} {namespace}/{name}")
            }
            Self::Answer { service, namespace, port, path, .. } => {
                write!(f, "{path} of Service {namespace}/{service}, port {port}")
            }
        }
    }
}

impl Check {
    /// With the values of arguments and of the cluster in place of `${name}`.
    pub(crate) fn filled(&self, values: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut check = self.clone();
        let texts = match &mut check {
            Self::Condition { api_version, kind, namespace, name, condition } => {
                vec![api_version, kind, namespace, name, condition]
            }
            Self::Answer { service, namespace, port, path, .. } => vec![service, namespace, port, path],
        };
        for text in texts {
            *text = replace(text, values)?;
        }
        Ok(check)
    }

    /// What a user looks at when it is not so.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Condition { kind, namespace, name, .. } => {
                let place = if namespace.is_empty() { String::new() } else { format!("-n {namespace} ") };
                format!("see kedge kubectl {place}describe {} {name}", kind.to_lowercase())
            }
            Self::Answer { service, namespace, .. } => {
                format!(
                    "see kedge kubectl -n {namespace} describe service {service}, and the logs of its pods"
                )
            }
        })
    }

    /// Is it so? If not, why.
    pub(crate) async fn ask(&self, client: &kube::Client) -> Result<(), String> {
        match tokio::time::timeout(ANSWER, self.answer(client)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
        }
    }

    async fn answer(&self, client: &kube::Client) -> Result<(), String> {
        let told = |error: kube::Error| kedge_client::told(&error);
        match self {
            Self::Condition { api_version, kind, namespace, name, condition } => {
                let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
                let gvk = GroupVersionKind::gvk(group, version, kind);
                let (resource, capabilities) = pinned_kind(client, &gvk).await.map_err(told)?;
                let path = path_of(&resource, &capabilities.scope, namespace);
                let request = http::Request::get(format!("{path}/{name}")).body(Vec::new());
                let request = request.map_err(|error| error.to_string())?;
                let object: Value = client.request(request).await.map_err(told)?;
                crate::health::of_condition(&object, condition)
            }
            Self::Answer { service, namespace, port, path, https } => {
                let scheme = if *https { "https:" } else { "" };
                let services = format!("/api/v1/namespaces/{namespace}/services");
                let request = http::Request::get(format!("{services}/{scheme}{service}:{port}/proxy{path}"));
                let request = request.body(Vec::new()).map_err(|error| error.to_string())?;
                client.request_text(request).await.map(drop).map_err(told)
            }
        }
    }
}

fn path_of(resource: &ApiResource, scope: &Scope, namespace: &str) -> String {
    let root = if resource.group.is_empty() { "/api" } else { "/apis" };
    let version = &resource.api_version;
    match scope {
        Scope::Cluster => format!("{root}/{version}/{}", resource.plural),
        Scope::Namespaced => {
            let namespace = if namespace.is_empty() { "default" } else { namespace };
            format!("{root}/{version}/namespaces/{namespace}/{}", resource.plural)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Check, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_are_read_written_and_filled() {
        let values = BTreeMap::from([("ns".to_owned(), "here".to_owned())]);
        for (text, said) in [
            (
                "{apiVersion: v1, kind: Pod, namespace: '${ns}', name: web, condition: Ready}",
                "condition Ready of Pod here/web",
            ),
            ("{apiVersion: v1, kind: Node, name: n1, condition: Ready}", "condition Ready of Node n1"),
            ("{service: web, namespace: a, port: 80}", "/ of Service a/web, port 80"),
            (
                "{service: web, namespace: '${ns}', port: https, path: /readyz, scheme: HTTPS}",
                "/readyz of Service here/web, port https",
            ),
        ] {
            let check = parse(text).unwrap();
            assert_eq!(check.filled(&values).unwrap().to_string(), said);
            let again: Check = serde_json::from_str(&serde_json::to_string(&check).unwrap()).unwrap();
            assert_eq!(again, check);
        }
        assert!(parse("{service: '${no}', namespace: a, port: 1}").unwrap().filled(&values).is_err());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("{}", "either kind"),
            ("{kind: Pod, service: web}", "either kind"),
            ("{kind: Pod, apiVersion: v1, name: web}", "an entry with kind needs condition"),
            (
                "{kind: Pod, apiVersion: v1, name: web, condition: Ready, port: 1}",
                "an entry with kind has no port",
            ),
            ("{service: web, namespace: a}", "an entry with service needs port"),
            ("{service: web, port: 1}", "an entry with service needs namespace"),
            ("{service: web, namespace: a, port: 1, path: x}", "does not begin with /"),
            ("{service: web, namespace: a, port: 1, scheme: ftp}", "neither http nor https"),
            ("{service: web, namespace: a, port: 1, pat: /}", "pat"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
