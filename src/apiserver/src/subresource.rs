//! Subresources: status, scale, binding, eviction, tokens, approval, finalize. Streams to kubelets
//! are in `proxy`.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use kedge_api::decode::Target as Kind;
use kedge_api::field::FieldError;
use kedge_api::managed;
use kedge_api::object;
use kedge_api::registry::{Resource, ScalePaths};
use kedge_api::status::Status;
use serde_json::{Value, json};

use crate::admission;
use crate::respond::{self, Form};
use crate::token::{Bound, Claims, Kubernetes, now};
use crate::verbs::options::WriteOptions;
use crate::verbs::update::{Change, Edit, Target};
use crate::verbs::{Context, read, run_part};

pub(crate) async fn run(context: &Arc<Context>, body: Bytes) -> Result<Response<Body>, Status> {
    let info = &context.info;
    let resource = &context.resource;
    if !resource.subresources.iter().any(|known| *known.name == info.subresource) {
        return Err(unknown(context));
    }
    match (&*resource.group, &*resource.plural, info.subresource.as_str()) {
        (_, _, "status") => run_part(context, body, Target::STATUS).await,
        (_, _, "scale") => scale(context, &body).await,
        ("", "pods", "binding") => bind(context, &body).await,
        ("", "pods", "eviction") => crate::eviction::evict(context, &body).await,
        ("", "pods", "ephemeralcontainers") => {
            run_part(context, body, Target::Part("ephemeralcontainers")).await
        }
        ("", "pods", "resize") => run_part(context, body, Target::Part("resize")).await,
        ("", "serviceaccounts", "token") => token(context, &body).await,
        ("", "namespaces", "finalize") => finalize(context, &body).await,
        ("certificates.k8s.io", "certificatesigningrequests", "approval") => {
            run_part(context, body, Target::Part("approval")).await
        }
        _ => Err(unknown(context)),
    }
}

fn unknown(context: &Context) -> Status {
    let info = &context.info;
    Status::not_found(&context.group_resource(), &format!("{}/{}", info.name, info.subresource))
}

const SCALE: Kind<'_> = Kind { group: "autoscaling", version: "v1", kind: "Scale" };
const BINDING: Kind<'_> = Kind { group: "", version: "v1", kind: "Binding" };
const TOKEN_REQUEST: Kind<'_> = Kind { group: "authentication.k8s.io", version: "v1", kind: "TokenRequest" };

/// `autoscaling/v1.Scale` of whatever has `spec.replicas` (registry/apps/*/storage, `ScaleREST`).
async fn scale(context: &Arc<Context>, body: &Bytes) -> Result<Response<Body>, Status> {
    let info = &context.info;
    let change = Change {
        state: &context.state,
        user: &context.user,
        resource: &context.resource,
        target: Target::Scale,
    };
    let show = |bytes: &Bytes| -> Result<Response<Body>, Status> {
        present_scale(context, scale_of(context, &read::parse(bytes)?)?)
    };
    let value = match info.verb {
        "get" => {
            context.state.fresh_revision().await?;
            let bucket = context.state.cache.bucket(&context.resource.storage_key);
            return show(&bucket.get(&context.key()).ok_or_else(|| context.not_found())?.bytes);
        }
        "update" => Some(crate::body::value(context.content_type(), body)?),
        "patch" => None,
        verb => return Err(Status::method_not_supported(&context.group_resource(), verb)),
    };
    let paths = scale_paths(context);
    let options = WriteOptions::of(context)?;
    let kind = context.content_type().to_owned();
    if kind == "application/apply-patch+yaml" {
        let applied = applied_scale(context, body)?;
        let manager = options.manager(&context.resource, "scale");
        let mut edit = |old: &Value| {
            let schema = &context.resource.schema;
            let mut value = managed::apply(schema, Some(old), &applied, &manager, options.force)?;
            // A number that nobody wants any more is none.
            if object::get(&value, &paths.spec_replicas).is_null() {
                object::set(&mut value, &paths.spec_replicas, 0);
            }
            Ok(Edit { value, managed: true })
        };
        let (bytes, _) = change.run(&info.namespace, &info.name, &options, &mut edit).await?;
        return show(&bytes);
    }
    let mut edit = |old: &Value| {
        let wanted = match (&value, kind.as_str()) {
            (Some(scale), _) => scale.clone(),
            (None, "application/json-patch+json") => {
                kedge_api::patch::json_patch(&scale_of(context, old)?, body)?
            }
            (None, "application/merge-patch+json" | "application/strategic-merge-patch+json") => {
                kedge_api::patch::merge_patch(&scale_of(context, old)?, &crate::body::value(&kind, body)?)?
            }
            (None, other) => return Err(crate::body::unsupported(other)),
        };
        let invalid = |error: FieldError| Status::invalid("autoscaling", "Scale", &info.name, vec![error]);
        let (wanted, _) = crate::body::of_kind("", &wanted.to_string().into(), SCALE, options.validation)?;
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            return Err(invalid(FieldError::invalid(
                "spec.replicas",
                json!(replicas),
                "must be greater than or equal to 0",
            )));
        }
        let mut new = old.clone();
        object::set(&mut new, &paths.spec_replicas, replicas);
        // The version is checked when the client of an update named one.
        new["metadata"]["resourceVersion"] = match &value {
            Some(scale) => scale["metadata"]["resourceVersion"].clone(),
            None => json!(object::resource_version(old)),
        };
        if new["metadata"]["resourceVersion"].is_null() {
            new["metadata"]["resourceVersion"] = json!("");
        }
        Ok(Edit::replace(new))
    };
    let (bytes, _) = change.run(&info.namespace, &info.name, &options, &mut edit).await?;
    show(&bytes)
}

/// What server-side apply of a Scale says of the object itself: its number of replicas (apimachinery
/// `managedfields/scalehandler.go`).
fn applied_scale(context: &Context, body: &Bytes) -> Result<Value, Status> {
    if context.query.get("fieldManager").is_none() {
        let missing = FieldError::required("fieldManager", "is required for apply patch");
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", vec![missing]));
    }
    let (scale, _) = crate::yaml::parse(body)?;
    if scale["apiVersion"] != "autoscaling/v1" || scale["kind"] != "Scale" {
        return Err(Status::bad_request("a Scale of autoscaling/v1 is expected"));
    }
    let mut applied = json!({
        "apiVersion": context.resource.api_version(), "kind": &*context.resource.kind,
        "metadata": { "name": context.info.name, "namespace": context.info.namespace },
    });
    match &scale["spec"]["replicas"] {
        Value::Null => {}
        replicas if replicas.as_i64().is_some_and(|number| number >= 0) => {
            object::set(&mut applied, &scale_paths(context).spec_replicas, replicas.clone());
        }
        replicas => {
            let wrong =
                FieldError::invalid("spec.replicas", replicas.clone(), "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", &context.info.name, vec![wrong]));
        }
    }
    Ok(applied)
}

/// A Scale in the form that was asked for.
fn present_scale(context: &Context, scale: Value) -> Result<Response<Body>, Status> {
    let shown = match context.accepted.form {
        Form::Object => scale,
        Form::Metadata => kedge_api::table::partial_object_metadata(&scale),
        Form::Table => {
            let version = json!({ "resourceVersion": scale["metadata"]["resourceVersion"] });
            let resource = Resource {
                group: "autoscaling".into(),
                kind: "Scale".into(),
                custom: false,
                ..Resource::clone(&context.resource)
            };
            read::table_of(context, &resource, std::iter::once(Ok(scale)), version)?
        }
    };
    Ok(respond::object(StatusCode::OK, shown.to_string().into(), context.accepted))
}

/// Where the resource keeps what a Scale shows.
fn scale_paths(context: &Context) -> ScalePaths {
    let own = context.resource.subresource("scale").and_then(|scale| scale.scale.as_deref().cloned());
    own.unwrap_or_else(|| ScalePaths {
        spec_replicas: "/spec/replicas".to_owned(),
        status_replicas: "/status/replicas".to_owned(),
        label_selector: None,
    })
}

fn scale_of(context: &Context, object: &Value) -> Result<Value, Status> {
    let paths = scale_paths(context);
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !object["metadata"][field].is_null() {
            metadata[field] = object["metadata"][field].clone();
        }
    }
    let custom = context.resource.custom;
    let selector = if let Some(path) = &paths.label_selector {
        Some(object::get_str(object, path).to_owned())
    } else if custom {
        None
    } else if &*context.resource.plural == "replicationcontrollers" {
        object["spec"]["selector"].as_object().map(|labels| {
            labels
                .iter()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(",")
        })
    } else {
        kedge_api::selector::LabelSelector::from_object(&object["spec"]["selector"])
            .ok()
            .map(|selector| selector.to_string())
    };
    let wanted = object::get(object, &paths.spec_replicas).as_i64();
    if custom && wanted.is_none() {
        let path = paths.spec_replicas.replace('/', ".");
        return Err(Status::internal(format!("the spec replicas field {path:?} does not exist")));
    }
    let mut status = json!({ "replicas": object::get(object, &paths.status_replicas).as_i64().unwrap_or(0) });
    if let Some(selector) = selector.filter(|selector| !custom || !selector.is_empty()) {
        status["selector"] = json!(selector);
    }
    Ok(json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": { "replicas": wanted.unwrap_or(0) },
        "status": status,
    }))
}

/// `pods/binding`: the scheduler's decision (`registry/core/pod/storage`, `BindingREST`).
async fn bind(context: &Arc<Context>, body: &Bytes) -> Result<Response<Body>, Status> {
    if context.info.verb != "create" {
        return Err(Status::method_not_supported(&context.group_resource(), context.info.verb));
    }
    let options = WriteOptions::of(context)?;
    let (binding, _) = crate::body::of_kind(context.content_type(), body, BINDING, options.validation)?;
    bind_as(context, &binding, &options).await
}

/// What a Binding says of the pod.
pub(crate) async fn bind_as(
    context: &Arc<Context>,
    binding: &Value,
    options: &WriteOptions,
) -> Result<Response<Body>, Status> {
    let target = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    let invalid = |error: FieldError| Status::invalid("", "Binding", &context.info.name, vec![error]);
    if target.is_empty() {
        return Err(invalid(FieldError::required("target.name", "")));
    }
    match binding["target"]["kind"].as_str() {
        None | Some("" | "Node") => {}
        Some(kind) => {
            return Err(invalid(FieldError::not_supported("target.kind", json!(kind), &["Node", "<empty>"])));
        }
    }
    let name = context.info.name.clone();
    let group_resource = context.group_resource();
    let mut edit = |old: &Value| {
        let conflict = |text: &str| Status::conflict(&group_resource, &name, text);
        let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && uid != object::uid(old) {
            return Err(conflict(&format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object::uid(old)
            )));
        }
        if old["metadata"]["deletionTimestamp"].is_string() {
            return Err(conflict(&format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let assigned = old["spec"]["nodeName"].as_str().unwrap_or_default();
        if !assigned.is_empty() {
            return Err(conflict(&format!("pod {name} is already assigned to node {assigned:?}")));
        }
        if old["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
            return Err(conflict(&format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        let mut new = old.clone();
        new["spec"]["nodeName"] = json!(target);
        for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            new["metadata"]["annotations"][key] = value.clone();
        }
        for (key, value) in binding["metadata"]["labels"].as_object().into_iter().flatten() {
            new["metadata"]["labels"][key] = value.clone();
        }
        crate::admission::pod::topology_labels(&context.state, &target, &mut new);
        set_condition(&mut new, "PodScheduled", "True");
        Ok(Edit::replace(new))
    };
    let change = Change {
        state: &context.state,
        user: &context.user,
        resource: &context.resource,
        target: Target::Trusted("binding"),
    };
    change.run(&context.info.namespace, &context.info.name, options, &mut edit).await?;
    Ok(respond::json(StatusCode::CREATED, &success()))
}

fn success() -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 })
}

fn set_condition(pod: &mut Value, kind: &str, status: &str) {
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    if conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == status) {
        return;
    }
    conditions.retain(|condition| condition["type"] != kind);
    conditions.push(json!({
        "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": object::now_rfc3339(),
        "observedGeneration": pod["metadata"]["generation"],
    }));
    pod["status"]["conditions"] = json!(conditions);
}

/// `serviceaccounts/token` (`registry/core/serviceaccount/storage/token.go`).
async fn token(context: &Arc<Context>, body: &Bytes) -> Result<Response<Body>, Status> {
    const SHORTEST: i64 = 600;
    const LONGEST: i64 = 1 << 32;
    if context.info.verb != "create" {
        return Err(Status::method_not_supported(&context.group_resource(), context.info.verb));
    }
    let options = WriteOptions::of(context)?;
    let state = &context.state;
    let namespace = context.info.namespace.as_str();
    let (mut request, mut warnings) =
        crate::body::of_kind(context.content_type(), body, TOKEN_REQUEST, options.validation)?;
    let find = |resource: &str, group: &str, namespace: &str, name: &str| -> Result<Value, Status> {
        let stored = state.cache.bucket(resource).get(&format!("{namespace}/{name}"));
        let missing = || Status::not_found(&kedge_api::status::GroupResource::new(group, resource), name);
        read::parse(&stored.ok_or_else(missing)?.bytes)
    };
    let own = request["metadata"].take();
    for (key, here) in [("name", &*context.info.name), ("namespace", namespace)] {
        let said = own[key].as_str().unwrap_or_default();
        if !said.is_empty() && said != here {
            let message = format!("must match the service account {key} if specified");
            let error = FieldError::invalid(format!("metadata.{key}"), json!(said), message);
            return Err(Status::invalid(
                "authentication.k8s.io",
                "TokenRequest",
                &context.info.name,
                vec![error],
            ));
        }
    }
    let account = find("serviceaccounts", "", namespace, &context.info.name)?;
    let uid = own["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && uid != object::uid(&account) {
        return Err(Status::conflict(
            &kedge_api::status::GroupResource::new("authentication.k8s.io", "TokenRequest"),
            &context.info.name,
            format!(
                "the UID in the token request ({uid}) does not match the UID of the service account ({})",
                object::uid(&account)
            ),
        ));
    }
    let invalid =
        |error: FieldError| Status::invalid("authentication.k8s.io", "TokenRequest", "", vec![error]);
    request["kind"] = json!("TokenRequest");
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["metadata"] = json!({
        "name": context.info.name, "namespace": context.info.namespace, "creationTimestamp": object::now_rfc3339(),
    });
    if request["spec"]["expirationSeconds"].is_null() {
        request["spec"]["expirationSeconds"] = json!(3600);
    }
    let admitted = admission::Request {
        state,
        user: &context.user,
        resource: &context.resource,
        subresource: "token",
        namespace: &context.info.namespace,
        name: &context.info.name,
        operation: admission::Operation::Create,
        old: None,
        dry_run: options.dry_run,
    };
    admission::other_kind(&admitted, &mut request, &mut warnings).await?;
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or_default();
    if seconds < SHORTEST {
        return Err(invalid(FieldError::invalid(
            "spec.expirationSeconds",
            json!(seconds),
            "may not specify a duration less than 10 minutes",
        )));
    }
    if seconds > LONGEST {
        return Err(invalid(FieldError::invalid(
            "spec.expirationSeconds",
            json!(seconds),
            "may not specify a duration larger than 2^32 seconds",
        )));
    }
    let mut audiences: Vec<String> = request["spec"]["audiences"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    if audiences.is_empty() {
        audiences = vec![state.tokens.issuer().to_owned()];
    }
    let (mut pod, mut node, mut secret) = (None, None, None);
    let reference = &request["spec"]["boundObjectRef"];
    if !reference.is_null() {
        let name = reference["name"].as_str().unwrap_or_default();
        let bound = |object: &Value| Bound {
            name: object::name(object).to_owned(),
            uid: object::uid(object).to_owned(),
        };
        let object = match reference["kind"].as_str() {
            Some("Pod") => {
                let object = find("pods", "", namespace, name)?;
                if object["spec"]["serviceAccountName"] != context.info.name.as_str() {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        context.info.name
                    )));
                }
                if let Some(name) = object["spec"]["nodeName"].as_str().filter(|name| !name.is_empty()) {
                    let stored = state.cache.bucket("nodes").get(&format!("/{name}"));
                    node = stored.map(|stored| read::parse(&stored.bytes)).transpose()?.as_ref().map(bound);
                }
                pod = Some(bound(&object));
                object
            }
            Some("Secret") => {
                let object = find("secrets", "", namespace, name)?;
                secret = Some(bound(&object));
                object
            }
            Some("Node") => {
                let object = find("nodes", "", "", name)?;
                node = Some(bound(&object));
                object
            }
            other => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for object of type {}, Kind={}",
                    reference["apiVersion"].as_str().unwrap_or("/"),
                    other.unwrap_or_default()
                )));
            }
        };
        let uid = reference["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && uid != object::uid(&object) {
            return Err(Status::conflict(
                &context.group_resource(),
                name,
                format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
                ),
            ));
        }
    }
    let issued = now();
    // An hour's token of a pod lives a year, for clients that do not read it again (upstream's extended expiration).
    // For this API server's audience only: others were told how long it is good.
    let extended = pod.is_some() && seconds == 3607 && audiences == [state.tokens.issuer()];
    let seconds = u64::try_from(seconds).unwrap_or_default();
    let life = if extended { 365 * 86_400 } else { seconds };
    let claims = Claims {
        iss: state.tokens.issuer().to_owned(),
        sub: format!("system:serviceaccount:{}:{}", context.info.namespace, context.info.name),
        aud: audiences.clone(),
        exp: issued + life,
        iat: issued,
        nbf: issued,
        jti: Some(uuid::Uuid::new_v4().to_string()),
        kubernetes: Kubernetes {
            namespace: context.info.namespace.clone(),
            serviceaccount: Bound {
                name: object::name(&account).to_owned(),
                uid: object::uid(&account).to_owned(),
            },
            pod,
            node,
            secret,
            warnafter: extended.then_some(issued + seconds),
        },
    };
    let token = state.tokens.sign(&claims).map_err(Status::internal)?;
    let expires = i64::try_from(issued + seconds).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["status"] = json!({ "token": token, "expirationTimestamp": expires.map(object::format_time) });
    let mut response = respond::object(StatusCode::CREATED, request.to_string().into(), context.accepted);
    respond::add_warnings(&mut response, &warnings);
    Ok(response)
}

/// `namespaces/finalize`: the namespace controller takes its finalizer away.
async fn finalize(context: &Arc<Context>, body: &Bytes) -> Result<Response<Body>, Status> {
    if context.info.verb != "update" {
        return Err(Status::method_not_supported(&context.group_resource(), context.info.verb));
    }
    let options = WriteOptions::of(context)?;
    let (wanted, _) =
        crate::body::object(context.content_type(), body, &context.resource, options.validation)?;
    let mut edit = |old: &Value| {
        let mut new = old.clone();
        new["spec"]["finalizers"] = wanted["spec"]["finalizers"].clone();
        new["metadata"]["resourceVersion"] = match &wanted["metadata"]["resourceVersion"] {
            Value::Null => json!(""),
            version => version.clone(),
        };
        if new["spec"]["finalizers"].is_null()
            && let Some(spec) = new["spec"].as_object_mut()
        {
            spec.remove("finalizers");
        }
        Ok(Edit::replace(new))
    };
    let change = Change {
        state: &context.state,
        user: &context.user,
        resource: &context.resource,
        target: Target::Trusted("finalize"),
    };
    let (bytes, _) = change.run("", &context.info.name, &options, &mut edit).await?;
    read::present(context, StatusCode::OK, &bytes).await
}
