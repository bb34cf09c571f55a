//! Who the user is, as the front proxy's headers say
//! (`staging/src/k8s.io/apiserver/pkg/authentication/request/headerrequest`).

use std::collections::BTreeMap;

use http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

/// What the cluster's front proxy is and does, from the ConfigMap
/// `kube-system/extension-apiserver-authentication`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrontProxy {
    /// PEM; empty: there is none.
    pub(crate) authority: String,
    /// Common names of its certificate; empty: any.
    names: Vec<String>,
    user: Vec<String>,
    uid: Vec<String>,
    group: Vec<String>,
    extra: Vec<String>,
}

impl FrontProxy {
    pub(crate) fn of(map: &ConfigMap) -> Self {
        let data = map.data.as_ref();
        let text = |key: &str| data.and_then(|data| data.get(key)).cloned().unwrap_or_default();
        let list = |key: &str| serde_json::from_str::<Vec<String>>(&text(key)).unwrap_or_default();
        Self {
            authority: text("requestheader-client-ca-file"),
            names: list("requestheader-allowed-names"),
            user: list("requestheader-username-headers"),
            uid: list("requestheader-uid-headers"),
            group: list("requestheader-group-headers"),
            extra: list("requestheader-extra-headers-prefix"),
        }
    }

    /// Whether a certificate that its authority signed is the proxy's.
    pub(crate) fn is_proxy(&self, common_name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| name == common_name)
    }

    /// `None`: the headers name nobody.
    pub(crate) fn user(&self, headers: &HeaderMap) -> Option<User> {
        let first = |names: &[String]| {
            names
                .iter()
                .filter_map(|name| headers.get(name)?.to_str().ok())
                .find(|value| !value.is_empty())
                .map(str::to_owned)
        };
        let name = first(&self.user)?;
        let groups = self.group.iter().flat_map(|name| headers.get_all(name));
        let groups = groups.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for prefix in &self.extra {
            let prefix = prefix.to_ascii_lowercase();
            for (name, value) in headers {
                let (Some(key), Ok(value)) = (name.as_str().strip_prefix(&prefix), value.to_str()) else {
                    continue;
                };
                extra.entry(unescape(key)).or_default().push(value.to_owned());
            }
        }
        Some(User { name, uid: first(&self.uid).unwrap_or_default(), groups, extra })
    }
}

/// Undoes percent encoding; what is not valid stays as it is.
pub(crate) fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                plain.push(byte);
                at += 3;
            }
            _ => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy() -> FrontProxy {
        let data = [
            ("requestheader-client-ca-file", "PEM"),
            ("requestheader-allowed-names", "[\"front-proxy-client\"]"),
            ("requestheader-username-headers", "[\"X-Remote-User\"]"),
            ("requestheader-uid-headers", "[\"X-Remote-Uid\"]"),
            ("requestheader-group-headers", "[\"X-Remote-Group\"]"),
            ("requestheader-extra-headers-prefix", "[\"X-Remote-Extra-\"]"),
        ];
        let data = data.map(|(key, value)| (key.to_owned(), value.to_owned()));
        FrontProxy::of(&ConfigMap { data: Some(data.into()), ..ConfigMap::default() })
    }

    #[test]
    fn headers_name_the_user() {
        let mut headers = HeaderMap::new();
        assert_eq!(proxy().user(&headers), None);
        for (name, value) in [
            ("x-remote-user", "ann"),
            ("x-remote-uid", "7"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
            ("x-remote-extra-example.com%2fk", "v"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let user = proxy().user(&headers).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("ann", "7"));
        assert_eq!(user.groups, ["a", "b"]);
        assert_eq!(user.extra["example.com/k"], ["v"]);
    }

    #[test]
    fn only_the_named_certificate_is_the_proxy() {
        assert!(proxy().is_proxy("front-proxy-client"));
        assert!(!proxy().is_proxy("someone"));
        assert!(FrontProxy::default().is_proxy("anyone"));
    }
}
