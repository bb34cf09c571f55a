//! Names of images, as `distribution/reference` reads them.

/// The name with `:latest` when it has neither tag nor digest; `None` when it is not a name.
pub(crate) fn with_default_tag(image: &str) -> Option<String> {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return None;
    }
    let (path, tag) = split_tag(rest);
    if !is_path(path) || tag.is_some_and(|tag| !is_tag(tag)) {
        return None;
    }
    if digest.is_some() || tag.is_some() { Some(image.to_owned()) } else { Some(format!("{image}:latest")) }
}

fn split_tag(rest: &str) -> (&str, Option<&str>) {
    match rest.rsplit_once(':') {
        // A colon before the last slash belongs to a port.
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    }
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_path(path: &str) -> bool {
    let mut parts: Vec<&str> = path.split('/').collect();
    if parts.len() > 1 && has_domain(parts[0]) {
        let domain = parts.remove(0);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        if domain.is_empty() || !domain.bytes().all(plain) {
            return false;
        }
    }
    parts.iter().all(|part| {
        let edge = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(part.bytes().next())
            && edge(part.bytes().last())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
    })
}

fn has_domain(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// The registry's host and the full path, `docker.io/library/` filled in.
pub(crate) fn registry_and_path(image: &str) -> (String, String) {
    let (rest, _) = image.split_once('@').unwrap_or((image, ""));
    let (path, _) = split_tag(rest);
    match path.split_once('/') {
        Some((first, tail)) if has_domain(first) => (first.to_owned(), format!("{first}/{tail}")),
        Some(_) => ("docker.io".to_owned(), format!("docker.io/{path}")),
        None => ("docker.io".to_owned(), format!("docker.io/library/{path}")),
    }
}

/// The full name that the runtime stores: registry, path, and tag.
pub(crate) fn canonical(image: &str) -> Option<String> {
    let tagged = with_default_tag(image)?;
    let (_, path) = registry_and_path(&tagged);
    let (rest, digest) = match tagged.split_once('@') {
        Some((rest, digest)) => (rest.to_owned(), Some(digest.to_owned())),
        None => (tagged.clone(), None),
    };
    let mut name = path;
    if let (_, Some(tag)) = split_tag(&rest) {
        name.push_str(&format!(":{tag}"));
    }
    if let Some(digest) = digest {
        name.push_str(&format!("@{digest}"));
    }
    Some(name)
}

/// What the API server would have put there.
pub(crate) fn default_policy(image: &str) -> &'static str {
    if image.ends_with(":latest") { "Always" } else { "IfNotPresent" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for (image, expected) in [
            ("nginx", Some("nginx:latest")),
            ("nginx:1.27", Some("nginx:1.27")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            (digest.as_str(), Some(digest.as_str())),
            ("Nginx", None),
            ("", None),
            ("a b", None),
            ("nginx:", None),
            ("a@sha256:1", None),
        ] {
            assert_eq!(with_default_tag(image).as_deref(), expected, "{image}");
        }
        for (image, expected) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("registry.example/x:2", "registry.example/x:2"),
        ] {
            assert_eq!(canonical(image).as_deref(), Some(expected));
        }
    }
}
