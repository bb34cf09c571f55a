//! Label and field selectors on cached objects.

use std::sync::Arc;

use bytes::Bytes;
use kedge_api::registry::Resource;
use kedge_api::selector::{FieldOperator, FieldSelector, LabelSelector, SelectorError};
use kedge_api::status::Status;

use super::Context;
use crate::cache::Stored;
use crate::conversion;
use crate::extract::{Extracted, Paths};

/// What a list, watch or deletecollection selects, beyond its namespace.
#[derive(Clone, Default)]
pub(crate) struct Selection {
    namespace: String,
    labels: Option<LabelSelector>,
    fields: Vec<(FieldRef, bool, String)>,
    /// Fields of a version that is not the stored one: they are looked for in the converted objects.
    late: Option<Arc<Paths>>,
}

#[derive(Clone, Copy)]
enum FieldRef {
    Name,
    Namespace,
    Extracted(usize),
    /// The same in [`Selection::late`].
    Late(usize),
}

impl Selection {
    pub(crate) fn of(context: &Context) -> Result<Self, Status> {
        let labels = context
            .query
            .get("labelSelector")
            .map(|text| LabelSelector::parse(text).map_err(|error| invalid(&error)))
            .transpose()?;
        let mut fields = Vec::new();
        let resource = &context.resource;
        let own = resource.custom
            && (resource.version != resource.storage_version.1
                || (resource.converts() && resource.conversion.is_some()));
        let own = own.then(|| Arc::new(paths(resource)));
        if let Some(text) = context.query.get("fieldSelector") {
            let bucket = context.state.cache.bucket(&context.resource.storage_key);
            for requirement in FieldSelector::parse(text).map_err(|error| invalid(&error))?.requirements {
                let field = match requirement.path.as_str() {
                    "metadata.name" => FieldRef::Name,
                    "metadata.namespace" => FieldRef::Namespace,
                    path if own.is_some() => {
                        let index = own.as_ref().and_then(|own| own.index(path));
                        FieldRef::Late(index.ok_or_else(|| unknown_field(context, path))?)
                    }
                    path => {
                        FieldRef::Extracted(bucket.field(path).ok_or_else(|| unknown_field(context, path))?)
                    }
                };
                fields.push((field, requirement.op == FieldOperator::Equals, requirement.value.clone()));
            }
        }
        // The old form /api/v1/watch/.../NAME.
        if context.info.verb == "watch" && !context.info.name.is_empty() {
            fields.push((FieldRef::Name, true, context.info.name.clone()));
        }
        let late = own.filter(|_| fields.iter().any(|(field, ..)| matches!(field, FieldRef::Late(_))));
        Ok(Self { namespace: context.info.namespace.clone(), labels, fields, late })
    }

    /// Some of its fields are in the converted objects only: see [`Self::matches_shown`].
    pub(crate) fn is_late(&self) -> bool {
        self.late.is_some()
    }

    /// Whether an object that [`Self::matches`] is selected by the fields of the version that the client sees.
    pub(crate) fn matches_shown(&self, shown: &[u8]) -> bool {
        let Some(paths) = &self.late else { return true };
        let extracted = paths.extract(shown);
        self.fields.iter().all(|(field, equal, value)| match field {
            FieldRef::Late(index) => {
                (extracted.fields.get(*index).map_or("", |text| text) == value) == *equal
            }
            _ => true,
        })
    }

    /// What is left of objects that [`Self::matches`] when they were converted.
    pub(crate) async fn keep(
        &self,
        context: &Context,
        objects: Vec<Arc<Stored>>,
    ) -> Result<Vec<Arc<Stored>>, Status> {
        if !self.is_late() || objects.is_empty() {
            return Ok(objects);
        }
        let bytes: Vec<Bytes> = objects.iter().map(|stored| stored.bytes.clone()).collect();
        let shown = conversion::shown(&context.state, &context.resource, bytes).await?;
        let all = objects.into_iter().zip(shown);
        Ok(all.filter(|(_, shown)| self.matches_shown(shown)).map(|(stored, _)| stored).collect())
    }

    /// Whether the object is selected; the namespace counts, late fields do not.
    pub(crate) fn matches(&self, object: &Stored) -> bool {
        self.matches_with(object, &object.extracted)
    }

    /// The same for the object with other labels and fields: those of another version of it.
    pub(crate) fn matches_with(&self, object: &Stored, extracted: &Extracted) -> bool {
        (self.namespace.is_empty() || object.namespace() == self.namespace)
            && self.labels.as_ref().is_none_or(|labels| labels.matches(|key| extracted.label(key)))
            && self.fields.iter().all(|(field, equal, value)| {
                let actual = match field {
                    FieldRef::Name => object.name(),
                    FieldRef::Namespace => object.namespace(),
                    FieldRef::Extracted(index) => extracted.fields.get(*index).map_or("", |text| text),
                    FieldRef::Late(_) => return true,
                };
                (actual == value) == *equal
            })
    }

    /// A selector other than the namespace is set.
    pub(crate) fn is_selective(&self) -> bool {
        self.labels.is_some() || !self.fields.is_empty()
    }

    /// Where the scan of the bucket starts.
    pub(crate) fn prefix(&self) -> String {
        if self.namespace.is_empty() { String::new() } else { format!("{}/", self.namespace) }
    }
}

/// Kinds with selectable fields of their own and those without have different words upstream.
fn unknown_field(context: &Context, path: &str) -> Status {
    if context.resource.selectable.is_empty() {
        return Status::bad_request(format!(
            "{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ));
    }
    Status::bad_request(format!("field label not supported: {path}"))
}

fn invalid(error: &SelectorError) -> Status {
    Status::bad_request(error.to_string())
}

/// The selectable fields of a resource beyond name and namespace.
pub(crate) fn paths(resource: &Resource) -> Paths {
    Paths::new(&resource.selectable)
}
