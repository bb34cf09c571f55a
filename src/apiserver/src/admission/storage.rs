//! DefaultStorageClass, DefaultIngressClass: the class of what names none.

use kedge_api::status::Status;
use serde_json::{Value, json};

use super::{Operation, Request};

const STORAGE: &str = "storageclass.kubernetes.io/is-default-class";
const INGRESS: &str = "ingressclass.kubernetes.io/is-default-class";

pub(super) fn mutate(request: &Request<'_>, value: &mut Value) -> Result<(), Status> {
    if request.operation != Operation::Create {
        return Ok(());
    }
    if request.is("", "persistentvolumeclaims") {
        protect(value, "kubernetes.io/pvc-protection");
    } else if request.is("", "persistentvolumes") {
        protect(value, "kubernetes.io/pv-protection");
    }
    // The annotations are older than the fields.
    let (field, annotation, classes, mark) = if request.is("", "persistentvolumeclaims") {
        (
            "storageClassName",
            "volume.beta.kubernetes.io/storage-class",
            "storageclasses.storage.k8s.io",
            STORAGE,
        )
    } else if request.is("networking.k8s.io", "ingresses") {
        ("ingressClassName", "kubernetes.io/ingress.class", "ingressclasses.networking.k8s.io", INGRESS)
    } else {
        return Ok(());
    };
    if value["spec"][field].is_string() || value["metadata"]["annotations"][annotation].is_string() {
        return Ok(());
    }
    let classes = request.state.cache.bucket(classes).objects();
    let classes = classes.values().filter_map(|stored| serde_json::from_slice::<Value>(&stored.bytes).ok());
    if let Some(name) = newest_default(classes, mark) {
        value["spec"][field] = json!(name);
    }
    Ok(())
}

/// From its first moment: the controllers take the finalizer away when nobody uses the object any more.
fn protect(object: &mut Value, finalizer: &str) {
    let finalizers = &mut object["metadata"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|known| known == finalizer) => {}
        Some(list) => list.push(json!(finalizer)),
        None => *finalizers = json!([finalizer]),
    }
}

/// The newest default class; of equally new ones the first by name.
fn newest_default(classes: impl Iterator<Item = Value>, mark: &str) -> Option<String> {
    let text = |class: &Value, field: &str| class["metadata"][field].as_str().unwrap_or_default().to_owned();
    classes
        .filter(|class| class["metadata"]["annotations"][mark] == "true")
        .max_by(|a, b| {
            let created = text(a, "creationTimestamp").cmp(&text(b, "creationTimestamp"));
            created.then_with(|| text(b, "name").cmp(&text(a, "name")))
        })
        .map(|class| text(&class, "name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_default_class_counts() {
        let class = |name: &str, second: u8, mark: &str, value: &str| json!({ "metadata": { "name": name, "creationTimestamp": format!("2026-01-01T00:00:0{second}Z"), "annotations": { mark: value } } });
        for (what, classes, expected) in [
            ("none", vec![], None),
            ("not a default", vec![class("a", 1, INGRESS, "false")], None),
            ("of another kind", vec![class("a", 1, STORAGE, "true")], None),
            ("newest", vec![class("a", 1, INGRESS, "true"), class("b", 2, INGRESS, "true")], Some("b")),
            ("equally new", vec![class("b", 1, INGRESS, "true"), class("a", 1, INGRESS, "true")], Some("a")),
        ] {
            assert_eq!(newest_default(classes.into_iter(), INGRESS).as_deref(), expected, "{what}");
        }
    }

    #[test]
    fn finalizers_are_added_once() {
        let mut object = json!({"metadata": {"name": "a"}});
        protect(&mut object, "x/y");
        assert_eq!(object["metadata"]["finalizers"], json!(["x/y"]));
        object["metadata"]["finalizers"] = json!(["own/one"]);
        protect(&mut object, "x/y");
        protect(&mut object, "x/y");
        assert_eq!(object["metadata"]["finalizers"], json!(["own/one", "x/y"]));
    }
}
