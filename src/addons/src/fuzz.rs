//! What fuzz/ calls: files of addons and watched folders.

use std::collections::BTreeMap;

use crate::definition::Addon;
use crate::render;

/// An `addon.yaml`; the arguments that it takes; a manifest with its values put in.
pub fn addon(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (definition, manifest) = text.split_once('\0').unwrap_or((text, ""));
    let manifests = vec![("m.yaml".to_owned(), manifest.to_owned())];
    let Ok(addon) = Addon::parse("a", definition, manifests) else { return };
    let Ok(values) = addon.values(&BTreeMap::new()) else { return };
    let _ = addon.split_arguments(manifest);
    if let Ok(objects) = render::objects(&addon, &values) {
        let _ = render::digest(&objects);
    }
}

/// A manifest of a watched folder.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(objects) = render::plain(text) {
        let _ = render::digest(&objects);
    }
}
