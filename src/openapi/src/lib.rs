//! OpenAPI v3 and v2 documents, made from the resource registry and the types' schemas when a
//! client asks, so that built-in kinds and those of CRDs take the same way. Descriptions are packed
//! into the program at build time. Pure: no I/O.

mod custom;
mod merge;
mod operations;
mod proto;
mod schema;

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use kedge_api::registry::Resource;
use serde_json::{Map, Value, json};

use crate::schema::{Dialect, Writer};

const DESCRIPTIONS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.json.gz"));

/// Why a document could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Packing or unpacking failed; it means that the program is damaged.
    #[error("pack an OpenAPI document")]
    Pack(#[from] std::io::Error),
    /// The packed descriptions are not JSON; it means that the program is damaged.
    #[error("read the packed descriptions")]
    Descriptions(#[from] serde_json::Error),
    /// Another server's document is not what it should be.
    #[error("read another server's OpenAPI document: {0}")]
    Foreign(String),
}

/// Texts of types and fields, unpacked for as long as a document is being made.
pub(crate) type Descriptions = BTreeMap<String, BTreeMap<String, String>>;

fn descriptions() -> Result<Descriptions, Error> {
    Ok(serde_json::from_slice(&unpack(DESCRIPTIONS)?)?)
}

/// The schema of a custom resource as its definition has it: it is what is published.
pub type Schemas<'a> = &'a dyn Fn(&Resource) -> Option<Value>;

/// `api/v1` or `apis/GROUP/VERSION`: the name of a group version's document.
pub fn document_name(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The OpenAPI v3 document of one group version, gzip-compressed.
///
/// # Errors
/// See [`Error`].
pub fn v3<'a>(
    resources: impl Iterator<Item = &'a Resource>,
    version: &str,
    schemas: Schemas<'_>,
) -> Result<Vec<u8>, Error> {
    let descriptions = descriptions()?;
    let mut paths = Map::new();
    let mut writer = Writer::new(Dialect::V3, &descriptions);
    for resource in resources {
        operations::add_paths(resource, Dialect::V3, &mut paths);
        writer.add_resource(resource, schemas(resource));
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": version },
        "paths": paths,
        "components": { "schemas": writer.finish() },
    });
    Ok(pack(document.to_string().as_bytes())?)
}

/// The OpenAPI v2 document of everything as JSON, gzip-compressed. `others` are parts of other servers' documents as
/// [`part_of_v2`] makes them.
///
/// # Errors
/// See [`Error`].
pub fn v2<'a, B: AsRef<[u8]>>(
    resources: impl Iterator<Item = &'a Resource>,
    others: &[B],
    version: &str,
    schemas: Schemas<'_>,
) -> Result<Vec<u8>, Error> {
    Ok(pack(v2_document(resources, others, version, schemas)?.to_string().as_bytes())?)
}

/// The part of another server's v2 document (JSON) that is about the paths below `prefix`, gzip-compressed; `None`
/// when there is none.
///
/// # Errors
/// [`Error::Foreign`].
pub fn part_of_v2(document: &[u8], prefix: &str) -> Result<Option<Vec<u8>>, Error> {
    let document: Value =
        serde_json::from_slice(document).map_err(|error| Error::Foreign(error.to_string()))?;
    match merge::part(&document, prefix) {
        Some(part) => Ok(Some(pack(part.to_string().as_bytes())?)),
        None => Ok(None),
    }
}

/// The same as protobuf (gnostic's `openapi.v2.Document`), gzip-compressed.
///
/// # Errors
/// See [`Error`].
pub fn v2_proto<'a, B: AsRef<[u8]>>(
    resources: impl Iterator<Item = &'a Resource>,
    others: &[B],
    version: &str,
    schemas: Schemas<'_>,
) -> Result<Vec<u8>, Error> {
    let document = v2_document(resources, others, version, schemas)?;
    let bytes = proto::document(&document);
    drop(document);
    Ok(pack(&bytes)?)
}

fn v2_document<'a, B: AsRef<[u8]>>(
    resources: impl Iterator<Item = &'a Resource>,
    others: &[B],
    version: &str,
    schemas: Schemas<'_>,
) -> Result<Value, Error> {
    let descriptions = descriptions()?;
    let mut paths = Map::new();
    let mut writer = Writer::new(Dialect::V2, &descriptions);
    for resource in resources {
        operations::add_paths(resource, Dialect::V2, &mut paths);
        writer.add_resource(resource, schemas(resource));
    }
    let mut document = json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": version },
        "paths": paths,
        "definitions": writer.finish(),
    });
    for other in others {
        let part: Value = serde_json::from_slice(&unpack(other.as_ref())?)
            .map_err(|error| Error::Foreign(error.to_string()))?;
        merge::add(&mut document, part);
    }
    Ok(document)
}

fn pack(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::new(6));
    gzip.write_all(bytes)?;
    gzip.finish()
}

/// What [`v3`], [`v2`] and [`v2_proto`] have compressed.
///
/// # Errors
/// When the bytes are not gzip.
pub fn unpack(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_api::registry::Registry;

    fn document(group: &str) -> Value {
        let registry = Registry::builtin();
        let resources: Vec<_> =
            registry.iter().filter(|r| &*r.group == group && &*r.version == "v1").cloned().collect();
        let packed = v3(resources.iter().map(|r| &**r), "v1.36.0", &|_| None).expect("document");
        serde_json::from_slice(&unpack(&packed).expect("gzip")).expect("JSON")
    }

    #[test]
    fn explain_finds_fields_and_their_descriptions() {
        let document = document("apps");
        let schemas = &document["components"]["schemas"];
        let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
        let spec = &schemas["io.k8s.api.apps.v1.DeploymentSpec"];
        assert!(spec["properties"]["strategy"]["description"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(
            spec["properties"]["strategy"]["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy"
        );
        assert_eq!(spec["properties"]["replicas"]["format"], "int32");
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    }

    #[test]
    fn every_reference_has_a_target() {
        for group in ["", "apps", "apiextensions.k8s.io"] {
            let document = document(group);
            let text = document.to_string();
            for part in text.split("\"#/components/schemas/").skip(1) {
                let name = part.split('"').next().expect("name");
                assert!(document["components"]["schemas"][name].is_object(), "{group}: {name}");
            }
        }
    }

    #[test]
    fn kubectl_finds_out_what_a_patch_may_be() {
        let document = document("apps");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
        assert!(patch["parameters"].as_array().expect("list").iter().any(|p| p["name"] == "fieldValidation"));
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    }
}
