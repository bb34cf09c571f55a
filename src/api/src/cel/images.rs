//! References of images (apiserver `pkg/cel/library/image.go`; what may stand in one is
//! go-containerregistry's `pkg/name`).

use std::sync::Arc;

use super::meter::Meter;
use super::value::Value;
use super::{Outcome, Stop, no_overload};

const DEFAULT_REGISTRY: &str = "index.docker.io";

/// A reference, what is left out filled in.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    registry: String,
    repository: String,
    /// Empty where there is a digest.
    tag: String,
    digest: String,
}

impl Image {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("could not parse reference: {text}: {why}"));
        let (base, digest) = match text.split_once('@') {
            Some((base, digest)) => {
                let hex = digest.strip_prefix("sha256:").unwrap_or_default();
                if hex.len() != 64 || !hex.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)) {
                    return wrong("unsupported digest algorithm or checksum");
                }
                (base, digest)
            }
            None => (text, ""),
        };
        // What follows a colon before a slash is a port.
        let (name, tag) = match base.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (base, None),
        };
        let in_tag = |c: u8| c.is_ascii_alphanumeric() || b"_-.".contains(&c);
        if tag.is_some_and(|tag| tag.is_empty() || tag.len() > 128 || !tag.bytes().all(in_tag)) {
            return wrong("tag can only contain the characters of names, and up to 128 of them");
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => ("", name),
        };
        let in_host = |c: u8| c.is_ascii_alphanumeric() || b".-_:[]".contains(&c);
        if !registry.bytes().all(in_host) {
            return wrong("registries must be valid RFC 3986 URI authorities");
        }
        let in_path = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-./".contains(&c);
        if !(2..=255).contains(&path.len())
            || !path.bytes().all(in_path)
            || path.split('/').any(str::is_empty)
        {
            return wrong("repository must be of 2 to 255 of the characters a-z, 0-9, '_', '-', '.' and '/'");
        }
        let registry =
            if registry.is_empty() || registry == "docker.io" { DEFAULT_REGISTRY } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        let tag = if digest.is_empty() { tag.unwrap_or("latest") } else { "" };
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.to_owned(), digest: digest.to_owned() })
    }
}

pub(super) fn image(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    Image::parse(text).map(|image| Value::Image(Arc::new(image))).map_err(Stop::failed)
}

pub(super) fn is_image(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    Ok(Image::parse(text).is_ok().into())
}

pub(super) fn contains_digest(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Image(image)] = args else { return no_overload() };
    Ok((!image.digest.is_empty()).into())
}

macro_rules! parts {
    ($($name:ident => $part:expr),* $(,)?) => {
        $(pub(super) fn $name(_: &mut Meter, args: &[Value]) -> Outcome {
            let [Value::Image(image)] = args else { return no_overload() };
            let part: fn(&Image) -> &str = $part;
            Ok(part(image).into())
        })*
    };
}

parts! {
    registry => |image| &image.registry,
    repository => |image| &image.repository,
    tag => |image| &image.tag,
    digest => |image| &image.digest,
    identifier => |image| if image.digest.is_empty() { &image.tag } else { &image.digest },
}
