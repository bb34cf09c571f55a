//! The paths of the API, and the objects that they answer with
//! (`staging/src/k8s.io/metrics/pkg/apis/metrics/v1beta1`, metrics-server `pkg/api`).

mod objects;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_base::Chain;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::auth::{Delegated, Denied, Subject};
use crate::headers::unescape;
use crate::points::Points;
use crate::server::Answer;
use crate::{GROUP, VERSION};
use objects::Measured;

pub(crate) struct Api {
    pub(crate) client: kube::Client,
    pub(crate) points: Arc<Points>,
    pub(crate) auth: Arc<Delegated>,
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Health { ready: bool },
    Document(Value),
    Nodes { name: Option<String> },
    Pods { namespace: Option<String>, name: Option<String> },
}

impl Wanted {
    fn of(path: &str) -> Option<Self> {
        let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(unescape).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let some = |text: &str| Some(text.to_owned());
        Some(match parts.as_slice() {
            ["healthz" | "livez"] => Self::Health { ready: false },
            ["readyz"] => Self::Health { ready: true },
            ["apis"] => Self::Document(objects::group_list()),
            ["apis", GROUP] => Self::Document(objects::group()),
            ["apis", GROUP, VERSION] => Self::Document(objects::resources()),
            ["openapi", "v2"] => Self::Document(objects::openapi_v2()),
            ["openapi", "v3"] => Self::Document(objects::openapi_paths()),
            ["openapi", "v3", "apis", GROUP, VERSION] => Self::Document(objects::openapi_v3()),
            ["apis", GROUP, VERSION, rest @ ..] => match rest {
                ["nodes"] => Self::Nodes { name: None },
                ["nodes", name] => Self::Nodes { name: some(name) },
                ["pods"] => Self::Pods { namespace: None, name: None },
                ["namespaces", namespace, "pods"] => Self::Pods { namespace: some(namespace), name: None },
                ["namespaces", namespace, "pods", name] => {
                    Self::Pods { namespace: some(namespace), name: some(name) }
                }
                _ => return None,
            },
            _ => return None,
        })
    }

    fn subject(&self, path: &str) -> Subject {
        let of = |resource, namespace: &Option<String>, name: &Option<String>| Subject::Resource {
            verb: if name.is_some() { "get" } else { "list" },
            resource,
            namespace: namespace.clone().unwrap_or_default(),
            name: name.clone().unwrap_or_default(),
        };
        match self {
            Self::Nodes { name } => of("nodes", &None, name),
            Self::Pods { namespace, name } => of("pods", namespace, name),
            Self::Health { .. } | Self::Document(_) => Subject::Path(path.to_owned()),
        }
    }
}

impl Api {
    pub(crate) async fn answer<B>(&self, request: &Request<B>, peer: Option<&str>) -> Answer {
        let path = request.uri().path();
        let wanted = Wanted::of(path);
        if let Some(Wanted::Health { ready }) = wanted {
            // Told to everybody, as upstream does: probes have no identity.
            return health(!ready || self.points.is_ready());
        }
        let subject = wanted.as_ref().map_or_else(|| Subject::Path(path.to_owned()), |w| w.subject(path));
        if let Err(denied) = self.auth.check(peer, request.headers(), subject.clone()).await {
            return refusal(denied, &subject);
        }
        let Some(wanted) = wanted else {
            return status(404, "NotFound", "the server could not find the requested resource");
        };
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let text = "the server does not allow this method on the requested resource";
            return status(405, "MethodNotAllowed", text);
        }
        let query = request.uri().query().unwrap_or_default();
        let as_table = wants_table(request.headers());
        match wanted {
            Wanted::Health { .. } => health(true),
            Wanted::Document(document) => json_answer(200, &document),
            Wanted::Nodes { name } => self.nodes(name, query, as_table).await,
            Wanted::Pods { namespace, name } => self.pods(namespace, name, query, as_table).await,
        }
    }

    async fn nodes(&self, name: Option<String>, query: &str, as_table: bool) -> Answer {
        let api: kube::Api<Node> = kube::Api::all(self.client.clone());
        let found = match metadata(&api, name.as_deref(), query, "").await {
            Ok(found) => found,
            Err(error) => return upstream(&error),
        };
        let measure = |meta: ObjectMeta| {
            let rate = self.points.node(meta.name.as_deref().unwrap_or_default())?;
            Some(Measured::node(meta, rate))
        };
        answer_with(found.into_iter().filter_map(measure).collect(), name, "Node", as_table)
    }

    async fn pods(
        &self,
        namespace: Option<String>,
        name: Option<String>,
        query: &str,
        as_table: bool,
    ) -> Answer {
        let api: kube::Api<Pod> = match &namespace {
            Some(namespace) => kube::Api::namespaced(self.client.clone(), namespace),
            None => kube::Api::all(self.client.clone()),
        };
        let found = match metadata(&api, name.as_deref(), query, "status.phase=Running").await {
            Ok(found) => found,
            Err(error) => return upstream(&error),
        };
        let measure = |meta: ObjectMeta| {
            let rates = self.points.pod(
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            )?;
            Measured::pod(meta, rates)
        };
        let name = name.map(|name| format!("{}/{name}", namespace.unwrap_or_default()));
        answer_with(found.into_iter().filter_map(measure).collect(), name, "Pod", as_table)
    }
}

/// The names and labels of what there is, from the API server: it knows selectors, and nothing has to be
/// held here.
async fn metadata<K>(
    api: &kube::Api<K>,
    name: Option<&str>,
    query: &str,
    fields: &str,
) -> Result<Vec<ObjectMeta>, kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    if let Some(name) = name {
        let found = api.get_metadata_opt(name).await?;
        return Ok(found.into_iter().map(|object| object.metadata).collect());
    }
    let mut params = ListParams::default();
    let mut selected: Vec<String> = vec![fields.to_owned()];
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = unescape(&value.replace('+', " "));
        match key {
            "labelSelector" if !value.is_empty() => params.label_selector = Some(value),
            "fieldSelector" => selected.push(value),
            _ => {}
        }
    }
    selected.retain(|selector| !selector.is_empty());
    if !selected.is_empty() {
        params.field_selector = Some(selected.join(","));
    }
    // From the server's memory, as an informer's contents would be.
    let params = params.match_any();
    Ok(api.list_metadata(&params).await?.items.into_iter().map(|object| object.metadata).collect())
}

fn answer_with(items: Vec<Measured>, name: Option<String>, kind: &str, as_table: bool) -> Answer {
    if let Some(name) = name {
        let Some(found) = items.first() else {
            let resource = format!("{}metrics.{GROUP}", kind.to_lowercase());
            return status(404, "NotFound", &format!("{resource} \"{name}\" not found"));
        };
        let document = if as_table { objects::table(&items) } else { found.object(kind) };
        return json_answer(200, &document);
    }
    json_answer(200, &if as_table { objects::table(&items) } else { objects::list(&items, kind) })
}

fn wants_table(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    // The first that can be given counts.
    for range in accepts.flat_map(|value| value.split(',')) {
        let mut words = range.split(';').map(str::trim);
        let kind = words.next().unwrap_or_default();
        if !matches!(kind, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let params: Vec<&str> = words.collect();
        match params.iter().find_map(|word| word.strip_prefix("as=")) {
            Some("Table") => return params.contains(&"g=meta.k8s.io"),
            Some(_) => {}
            None => return false,
        }
    }
    false
}

fn health(good: bool) -> Answer {
    let (code, words) = if good {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "no metrics to serve")
    };
    let mut answer = Response::new(Full::new(Bytes::from_static(words.as_bytes())));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn json_answer(code: u16, value: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn status(code: u16, reason: &str, message: &str) -> Answer {
    json_answer(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }),
    )
}

/// What the API server refused is refused in its words; that it did not answer is our failure.
fn upstream(error: &kube::Error) -> Answer {
    match error {
        kube::Error::Api(own) if (400..500).contains(&own.code) => {
            status(own.code, &own.reason, &own.message)
        }
        error => {
            tracing::warn!(error = %Chain(error), "objects not listed");
            status(500, "InternalError", "Internal error occurred: the API server does not answer")
        }
    }
}

fn refusal(denied: Denied, subject: &Subject) -> Answer {
    match denied {
        Denied::Unauthorized => status(401, "Unauthorized", "Unauthorized"),
        Denied::Unknown(error) => {
            tracing::warn!(error, "access could not be reviewed");
            status(500, "InternalError", "Internal error occurred: access could not be reviewed")
        }
        Denied::Forbidden { user, reason } => {
            let tail = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            let text = match subject {
                Subject::Path(path) => {
                    format!("forbidden: User \"{user}\" cannot get path \"{path}\"{tail}")
                }
                Subject::Resource { verb, resource, namespace, name } => {
                    let place = if namespace.is_empty() {
                        "at the cluster scope".to_owned()
                    } else {
                        format!("in the namespace \"{namespace}\"")
                    };
                    let what = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
                    format!(
                        "{resource}.{GROUP}{what} is forbidden: User \"{user}\" cannot {verb} resource \
                         \"{resource}\" in API group \"{GROUP}\" {place}{tail}"
                    )
                }
            };
            status(403, "Forbidden", &text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let pods = |namespace: Option<&str>, name: Option<&str>| Wanted::Pods {
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
        };
        for (path, wanted) in [
            ("/readyz", Some(Wanted::Health { ready: true })),
            ("/apis/metrics.k8s.io/v1beta1/nodes/n%31", Some(Wanted::Nodes { name: Some("n1".into()) })),
            ("/apis/metrics.k8s.io/v1beta1/pods", Some(pods(None, None))),
            ("/apis/metrics.k8s.io/v1beta1/namespaces/a/pods", Some(pods(Some("a"), None))),
            ("/apis/metrics.k8s.io/v1beta1/namespaces/a/pods/b", Some(pods(Some("a"), Some("b")))),
            ("/apis/metrics.k8s.io/v1beta1/services", None),
            ("/apis/other/v1", None),
        ] {
            assert_eq!(Wanted::of(path), wanted, "{path}");
        }
        let subject = pods(Some("a"), Some("b")).subject("");
        let Subject::Resource { verb, namespace, name, .. } = subject else { panic!("a resource") };
        assert_eq!((verb, namespace.as_str(), name.as_str()), ("get", "a", "b"));
    }

    #[test]
    fn tables_are_for_those_who_ask() {
        for (accept, table) in [
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", true),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io", true),
            ("application/vnd.kubernetes.protobuf,application/json", false),
            ("application/json", false),
            ("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json", false),
        ] {
            let headers = [(ACCEPT, HeaderValue::from_static(accept))].into_iter().collect();
            assert_eq!(wants_table(&headers), table, "{accept}");
        }
    }

    #[test]
    fn refusals_are_worded_as_elsewhere() {
        let subject = Wanted::Pods { namespace: Some("a".into()), name: None }.subject("");
        let denied = Denied::Forbidden { user: "ann".into(), reason: String::new() };
        assert_eq!(refusal(denied, &subject).status(), 403);
        assert_eq!(refusal(Denied::Unauthorized, &subject).status(), 401);
    }
}
