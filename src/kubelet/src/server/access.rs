//! Who may use the kubelet's server: the API server by its client certificate, and everybody whom
//! the API server allows to use the node's proxy (webhook authentication and authorization).

use http::{Request, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use rustls_pki_types::CertificateDer;

use super::Refusal;
use crate::core::Shared;

/// The API server's client certificate has it. A common name says nothing: anybody may be given a certificate of
/// any name.
const MASTERS: &str = "system:masters";

/// An authenticated caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

/// The caller that a verified client certificate names.
pub(crate) fn subject(certificate: &CertificateDer<'_>) -> Option<Caller> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups =
        subject.iter_organization().filter_map(|value| value.as_str().ok()).map(str::to_owned).collect();
    Some(Caller { name, groups })
}

fn is_trusted(caller: &Caller) -> bool {
    caller.groups.iter().any(|group| group == MASTERS)
}

/// 401 or 403 unless the caller may do this.
pub(crate) async fn check<B>(
    core: &Shared,
    request: &Request<B>,
    peer: Option<&Caller>,
) -> Result<(), Refusal> {
    let caller = match peer {
        Some(peer) if is_trusted(peer) => return Ok(()),
        Some(peer) => peer.clone(),
        None => by_token(core, request).await?,
    };
    let subresource = match request.uri().path().split('/').nth(1).unwrap_or_default() {
        "stats" => "stats",
        "metrics" => "metrics",
        "pods" | "runningpods" => "pods",
        "logs" => "log",
        _ => "proxy",
    };
    let verb = if request.method() == http::Method::GET { "get" } else { "create" };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(caller.name.clone()),
            groups: Some(caller.groups),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(subresource.to_owned()),
                name: Some(core.config.node_name.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api = kube::Api::<SubjectAccessReview>::all(core.client.clone());
    let answer = api.create(&PostParams::default(), &review).await.map_err(unreachable_server)?;
    if answer.status.is_some_and(|status| status.allowed) {
        return Ok(());
    }
    Err(Refusal(
        StatusCode::FORBIDDEN,
        format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])",
            caller.name
        ),
    ))
}

async fn by_token<B>(core: &Shared, request: &Request<B>) -> Result<Caller, Refusal> {
    let unauthorized = || Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
    let header = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|header| header.strip_prefix("Bearer ")).ok_or_else(unauthorized)?;
    let review = TokenReview {
        spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
        ..TokenReview::default()
    };
    let api = kube::Api::<TokenReview>::all(core.client.clone());
    let status = api.create(&PostParams::default(), &review).await.map_err(unreachable_server)?.status;
    let user = status.filter(|status| status.authenticated == Some(true)).and_then(|status| status.user);
    let user = user.ok_or_else(unauthorized)?;
    Ok(Caller { name: user.username.unwrap_or_default(), groups: user.groups.unwrap_or_default() })
}

fn unreachable_server(error: kube::Error) -> Refusal {
    tracing::warn!(%error, "access to the kubelet could not be reviewed");
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, "access could not be reviewed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_and_administrators_need_no_review() {
        let caller = |name: &str, group: &str| Caller { name: name.into(), groups: vec![group.into()] };
        assert!(is_trusted(&caller("kube-apiserver-kubelet-client", MASTERS)));
        assert!(is_trusted(&caller("jane", MASTERS)));
        assert!(!is_trusted(&caller("kube-apiserver-kubelet-client", "")));
        assert!(!is_trusted(&caller("system:node:other", "system:nodes")));
    }
}
