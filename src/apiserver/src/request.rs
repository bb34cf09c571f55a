//! What a request asks for, read from its method, path and query
//! (apiserver `pkg/endpoints/request/requestinfo.go`).

use http::{Method, Uri};

/// The parts of a request that every later step looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the lower-case method for
    /// paths that name no resource.
    pub(crate) verb: &'static str,
    pub(crate) is_resource: bool,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    /// What follows the subresource: the path that a proxy passes on.
    pub(crate) rest: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) path: String,
    /// The path reads like a resource's and is none: what could be served for it is not what its authorisation spoke
    /// of, here or at an aggregated server.
    pub(crate) no_route: bool,
}

impl RequestInfo {
    pub(crate) fn parse(method: &Method, uri: &Uri, query: &Query) -> Self {
        let path = uri.path();
        let mut info = Self { path: path.to_owned(), verb: plain_verb(method), ..Self::default() };
        let decoded: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(percent_decode).collect();
        let mut parts = decoded.iter().map(String::as_str);
        match parts.next() {
            Some("api") => {
                let Some(version) = parts.next() else { return info };
                info.version = version.to_owned();
            }
            Some("apis") => {
                let (Some(group), Some(version)) = (parts.next(), parts.next()) else { return info };
                (info.group, info.version) = (group.to_owned(), version.to_owned());
            }
            _ => return info,
        }
        let mut rest: Vec<&str> = parts.collect();
        if rest.is_empty() {
            return info;
        }
        // The old form /api/v1/watch/...
        let old_watch = rest[0] == "watch" && rest.len() > 1;
        if old_watch {
            rest.remove(0);
        }
        info.is_resource = true;
        if rest[0] == "namespaces" && rest.len() > 1 {
            info.namespace = rest[1].to_owned();
            // /namespaces/NAME, /namespaces/NAME/status and /finalize speak of the namespace itself.
            if rest.len() > 2 && !matches!(rest[2], "status" | "finalize") {
                rest.drain(..2);
                // No namespace lies in another one.
                info.no_route = info.group.is_empty() && rest[0] == "namespaces";
            }
        }
        // A watch of one object is the old form's longest path, and nothing is written by it.
        info.no_route |= old_watch && (rest.len() > 2 || !matches!(*method, Method::GET | Method::HEAD));
        // Servers that decode a path before they split it would see other parts than these.
        let leading = decoded.len() - rest.len().saturating_sub(3);
        info.no_route |=
            decoded[..leading].iter().any(|part| part.contains('/') || part == "." || part == "..");
        info.resource = rest[0].to_owned();
        info.name = rest.get(1).copied().unwrap_or_default().to_owned();
        info.subresource = rest.get(2).copied().unwrap_or_default().to_owned();
        if rest.len() > 3 {
            info.rest = raw_tail(path, rest.len() - 3);
        }
        info.verb = match (method.as_str(), info.name.is_empty()) {
            ("POST", _) => "create",
            ("GET" | "HEAD", false) => "get",
            ("GET" | "HEAD", true) => "list",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", false) => "delete",
            ("DELETE", true) => "deletecollection",
            _ => info.verb,
        };
        if (info.verb == "list" && query.flag("watch")) || (old_watch && matches!(info.verb, "list" | "get"))
        {
            info.verb = "watch";
        }
        // A list or watch of one name is authorised as that name.
        if matches!(info.verb, "list" | "watch" | "deletecollection")
            && info.name.is_empty()
            && let Some(name) = query.get("fieldSelector").and_then(|s| s.strip_prefix("metadata.name="))
            && !name.contains([',', '=', '!'])
        {
            info.name = name.to_owned();
        }
        info
    }

    /// Whether its answer has no end of its own: such requests have no time limit and are not counted
    /// (`BasicLongRunningRequestCheck` with upstream's settings).
    pub(crate) fn is_long_running(&self) -> bool {
        let subresource = self.subresource.as_str();
        self.verb == "watch" || matches!(subresource, "attach" | "exec" | "proxy" | "log" | "portforward")
    }
}

/// The last `count` segments of a path as the client wrote them, with a trailing slash if there is one.
fn raw_tail(path: &str, count: usize) -> String {
    let trimmed = path.trim_end_matches('/');
    let tail = trimmed.rsplitn(count + 1, '/').take(count).collect::<Vec<_>>();
    let mut text = tail.into_iter().rev().collect::<Vec<_>>().join("/");
    if path.ends_with('/') {
        text.push('/');
    }
    text
}

fn plain_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        _ => "unknown",
    }
}

/// The decoded query parameters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(uri: &Uri) -> Self {
        Self(form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// As Go's `strconv.ParseBool` with "present but empty" as true.
    pub(crate) fn flag(&self, key: &str) -> bool {
        let value = self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        matches!(value, Some("" | "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
}

pub(crate) fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> RequestInfo {
        let uri: Uri = uri.parse().expect("URI");
        RequestInfo::parse(&method.parse().expect("method"), &uri, &Query::parse(&uri))
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        // (method, path, verb, group, version, namespace, resource, subresource, name)
        for (method, uri, expected) in [
            ("GET", "/api/v1/namespaces", ("list", "", "v1", "", "namespaces", "", "")),
            ("GET", "/api/v1/namespaces/x", ("get", "", "v1", "x", "namespaces", "", "x")),
            (
                "PUT",
                "/api/v1/namespaces/x/finalize",
                ("update", "", "v1", "x", "namespaces", "finalize", "x"),
            ),
            ("GET", "/api/v1/namespaces/x/pods", ("list", "", "v1", "x", "pods", "", "")),
            ("GET", "/api/v1/namespaces/x/pods?watch=true", ("watch", "", "v1", "x", "pods", "", "")),
            ("GET", "/api/v1/watch/namespaces/x/pods", ("watch", "", "v1", "x", "pods", "", "")),
            (
                "POST",
                "/api/v1/namespaces/x/pods/y/exec?command=ls",
                ("create", "", "v1", "x", "pods", "exec", "y"),
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/x/deployments",
                ("deletecollection", "apps", "v1", "x", "deployments", "", ""),
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/x/deployments/y/scale",
                ("patch", "apps", "v1", "x", "deployments", "scale", "y"),
            ),
            (
                "GET",
                "/apis/apps/v1/deployments?fieldSelector=metadata.name%3Dy",
                ("list", "apps", "v1", "", "deployments", "", "y"),
            ),
        ] {
            let info = parse(method, uri);
            assert!(info.is_resource, "{uri}");
            let got = (
                info.verb,
                info.group.as_str(),
                info.version.as_str(),
                info.namespace.as_str(),
                info.resource.as_str(),
                info.subresource.as_str(),
                info.name.as_str(),
            );
            assert_eq!(got, expected, "{method} {uri}");
        }
        assert!(!parse("GET", "/apis/apps/v1").is_resource);
        assert!(!parse("GET", "/healthz").is_resource);
    }

    #[test]
    fn paths_that_are_no_ones_are_not_served() {
        for (method, uri) in [
            ("GET", "/api/v1/namespaces/x/namespaces"),
            ("DELETE", "/api/v1/namespaces/x/namespaces/y"),
            ("PUT", "/api/v1/namespaces/x/namespaces/y/finalize"),
            ("GET", "/api/v1/watch/nodes/n/proxy/metrics"),
            ("GET", "/api/v1/watch/namespaces/x/pods/p/log"),
            ("DELETE", "/api/v1/watch/namespaces/x/pods/p"),
            ("GET", "/apis/g/v1/namespaces/x/things/a%2Fscale"),
            ("GET", "/apis/g/v1/namespaces/x/things/%2e%2e/a"),
            ("GET", "/apis/g/v1/namespaces/../things"),
        ] {
            assert!(parse(method, uri).no_route, "{method} {uri}");
        }
        for (method, uri) in [
            ("GET", "/api/v1/namespaces"),
            ("PUT", "/api/v1/namespaces/x/finalize"),
            ("GET", "/api/v1/namespaces/x/pods/p/status"),
            ("GET", "/api/v1/watch/namespaces/x/pods/p"),
            ("GET", "/api/v1/watch/pods"),
            ("GET", "/apis/example.com/v1/namespaces/x/namespaces/y"),
            ("GET", "/api/v1/namespaces/x/services/web:80/proxy/a%2Fb/../c"),
            ("GET", "/healthz"),
        ] {
            assert!(!parse(method, uri).no_route, "{method} {uri}");
        }
    }

    #[test]
    fn a_proxy_gets_the_rest_of_the_path_as_written() {
        let info = parse("GET", "/api/v1/namespaces/x/services/web:80/proxy/a%2Fb/c/");
        assert_eq!(
            (info.name.as_str(), info.subresource.as_str(), info.rest.as_str()),
            ("web:80", "proxy", "a%2Fb/c/")
        );
        assert_eq!(parse("GET", "/api/v1/nodes/n/proxy/healthz").rest, "healthz");
    }
}
