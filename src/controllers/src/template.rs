//! Pod templates: whether two are the same, and a short stable name for one.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

/// The label that keeps the pods of two ReplicaSets of one Deployment apart.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// Whether two templates describe the same pods, the hash label aside
/// (upstream EqualIgnoreHash; like there, an empty list or map equals a missing one).
pub(crate) fn equal_ignoring_hash(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let meta = template.metadata.get_or_insert_default();
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.creation_timestamp = None;
        template
    };
    let (a, b) = (bare(a), bare(b));
    if a == b {
        return true;
    }
    match (serde_json::to_value(&a), serde_json::to_value(&b)) {
        (Ok(mut a), Ok(mut b)) => {
            prune(&mut a);
            prune(&mut b);
            a == b
        }
        _ => false,
    }
}

/// Take out what means the same as nothing: nulls, empty lists, empty maps of strings. An empty
/// object elsewhere (`emptyDir: {}`, `podSelector: {}`) does mean something.
fn prune(value: &mut Value) {
    const MAPS: [&str; 7] =
        ["labels", "annotations", "nodeSelector", "matchLabels", "limits", "requests", "metadata"];
    match value {
        Value::Object(fields) => {
            for field in fields.values_mut() {
                prune(field);
            }
            fields.retain(|name, field| match field {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(inner) => !(inner.is_empty() && MAPS.contains(&name.as_str())),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

/// A name for the template: FNV-1a of its canonical JSON and of the number of collisions so far,
/// written in upstream's alphabet (no vowels, so no bad words; no digits that look like letters).
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut bytes = serde_json::to_vec(template).unwrap_or_default();
    if let Some(collisions) = collisions {
        bytes.extend_from_slice(&collisions.to_le_bytes());
    }
    safe_encode(&fnv1a(&bytes).to_string())
}

pub(crate) fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// apimachinery's `rand.SafeEncodeString`.
pub(crate) fn safe_encode(text: &str) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).expect("a template")
    }

    #[test]
    fn equality_ignores_the_hash_label_and_emptiness() {
        let base = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
        let a = template(base.clone());
        for (pointer, value, expected) in [
            ("/metadata/labels", json!({"app": "web", "pod-template-hash": "x"}), true),
            ("/metadata/annotations", json!({}), true),
            ("/spec/volumes", json!([]), true),
            ("/spec/containers", json!([{"name": "c", "image": "b"}]), false),
            ("/metadata/labels", json!({"app": "db"}), false),
            ("/spec/securityContext", json!({}), false),
        ] {
            let mut other = base.clone();
            let (parent, field) = pointer.rsplit_once('/').expect("a path");
            other.pointer_mut(parent).expect("there")[field] = value.clone();
            assert_eq!(equal_ignoring_hash(&a, &template(other)), expected, "{pointer} {value}");
        }
    }

    #[test]
    fn hashes_are_stable_and_differ_after_a_collision() {
        let a = template(json!({"spec": {"containers": []}}));
        assert_eq!(hash(&a, None), hash(&a.clone(), None));
        assert_ne!(hash(&a, None), hash(&a, Some(1)));
        assert!(hash(&a, None).chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c)));
        // Known values of FNV-1a (32 bits) and of upstream's encoding.
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
        assert_eq!(fnv1a(b"a"), 0xe40c_292c);
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
    }
}
