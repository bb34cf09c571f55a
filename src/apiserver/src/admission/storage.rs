//! DefaultStorageClass and StorageObjectInUseProtection.

use kedge_api::status::Status;
use serde_json::{Value, json};

use super::{Operation, Request};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

pub(super) fn mutate(request: &Request<'_>, value: &mut Value) -> Result<(), Status> {
    if request.operation != Operation::Create {
        return Ok(());
    }
    if request.is("", "persistentvolumeclaims") {
        default_class(request, value);
        protect(value, "kubernetes.io/pvc-protection");
    }
    if request.is("", "persistentvolumes") {
        protect(value, "kubernetes.io/pv-protection");
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
fn default_class(request: &Request<'_>, claim: &mut Value) {
    let annotation = "volume.beta.kubernetes.io/storage-class";
    if claim["spec"]["storageClassName"].is_string()
        || claim["metadata"]["annotations"][annotation].is_string()
    {
        return;
    }
    let classes = request.state.cache.bucket("storageclasses.storage.k8s.io").objects();
    let default = classes
        .values()
        .filter_map(|stored| serde_json::from_slice::<Value>(&stored.bytes).ok())
        .filter(|class| class["metadata"]["annotations"][DEFAULT_CLASS] == "true")
        .max_by(|a, b| {
            let created = |class: &Value| {
                class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned()
            };
            let name = |class: &Value| class["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            created(a).cmp(&created(b)).then_with(|| name(b).cmp(&name(a)))
        });
    if let Some(class) = default {
        claim["spec"]["storageClassName"] = json!(class["metadata"]["name"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
