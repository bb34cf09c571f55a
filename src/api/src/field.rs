//! Validation errors of single fields, worded as apimachinery's `field.Error`.

use std::fmt;

use serde_json::Value;

use crate::status::Cause;

/// The kind of a field error; decides its wording and the cause's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    TooLong,
    TooMany,
    NotFound,
    TypeInvalid,
    Internal,
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    /// `spec.containers[0].name`
    pub path: String,
    pub value: Value,
    pub detail: String,
    /// The value is not told: it is too much (`field.OmitValueType`).
    pub omits_value: bool,
}

impl FieldError {
    fn new(kind: FieldErrorKind, path: impl Into<String>, value: Value, detail: impl Into<String>) -> Self {
        Self { kind, path: path.into(), value, detail: detail.into(), omits_value: false }
    }
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, path, Value::Null, detail)
    }
    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, path, value.into(), detail)
    }
    pub fn type_invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::TypeInvalid, path, value.into(), detail)
    }
    pub fn not_supported<S: AsRef<str>>(
        path: impl Into<String>,
        value: impl Into<Value>,
        supported: &[S],
    ) -> Self {
        let names: Vec<String> = supported.iter().map(|s| format!("{:?}", s.as_ref())).collect();
        let detail =
            if names.is_empty() { String::new() } else { format!("supported values: {}", names.join(", ")) };
        Self::new(FieldErrorKind::NotSupported, path, value.into(), detail)
    }
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, path, value.into(), "")
    }
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, path, Value::Null, detail)
    }
    /// The same error, without what the value is.
    #[must_use]
    pub fn without_value(self) -> Self {
        Self { value: Value::Null, omits_value: true, ..self }
    }
    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, path, value.into(), "")
    }
    pub fn too_long(path: impl Into<String>, max: u64) -> Self {
        Self::new(FieldErrorKind::TooLong, path, Value::Null, format!("may not be more than {max} bytes"))
    }
    pub fn too_many(path: impl Into<String>, actual: usize, max: u64) -> Self {
        let noun = if max == 1 { "item" } else { "items" };
        Self::new(
            FieldErrorKind::TooMany,
            path,
            Value::from(actual),
            format!("must have at most {max} {noun}"),
        )
    }

    /// The message without the path: what a cause carries.
    pub fn body(&self) -> String {
        use FieldErrorKind as K;
        let head = match self.kind {
            K::Required => "Required value",
            K::Forbidden => "Forbidden",
            K::TooLong => "Too long",
            K::Internal => "Internal error",
            K::Invalid | K::TypeInvalid => "Invalid value",
            K::NotSupported => "Unsupported value",
            K::Duplicate => "Duplicate value",
            K::NotFound => "Not found",
            K::TooMany => "Too many",
        };
        let mut out = match self.kind {
            K::Required | K::Forbidden | K::TooLong | K::Internal => head.to_string(),
            _ if self.omits_value => head.to_string(),
            _ => format!("{head}: {}", self.value),
        };
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }

    /// The cause that `metav1.Status` lists for this error.
    pub fn cause(&self) -> Cause {
        use FieldErrorKind as K;
        let reason = match self.kind {
            K::Required => "FieldValueRequired",
            K::Invalid => "FieldValueInvalid",
            K::NotSupported => "FieldValueNotSupported",
            K::Duplicate => "FieldValueDuplicate",
            K::Forbidden => "FieldValueForbidden",
            K::TooLong => "FieldValueTooLong",
            K::TooMany => "FieldValueTooMany",
            K::NotFound => "FieldValueNotFound",
            K::TypeInvalid => "FieldValueTypeInvalid",
            K::Internal => "InternalError",
        };
        Cause { reason: reason.to_string(), message: self.body(), field: self.path.clone() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// The path of a field (`field.Path`), written out only for an error: validation is on the way of each write.
#[derive(Clone, Copy)]
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    part: Part<'a>,
}

#[derive(Clone, Copy)]
enum Part<'a> {
    Name(&'a str),
    Index(usize),
    Item(&'a str, usize),
    Key(&'a str),
}

impl At<'static> {
    /// The object itself; its fields' paths begin with their names.
    pub const ROOT: Self = At::root("");
    pub const SPEC: Self = At::root("spec");
}

impl<'a> At<'a> {
    /// A path that is already written.
    pub const fn root(path: &'a str) -> Self {
        Self { parent: None, part: Part::Name(path) }
    }
    pub fn is_root(&self) -> bool {
        matches!(self, At { parent: None, part: Part::Name("") })
    }
    /// `a.b`
    pub const fn child(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), part: Part::Name(name) }
    }
    /// `a[3]`
    pub const fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), part: Part::Index(index) }
    }
    /// `a.b[3]`
    pub const fn item(&'a self, list: &'a str, index: usize) -> Self {
        Self { parent: Some(self), part: Part::Item(list, index) }
    }
    /// `a[key]`
    pub const fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), part: Part::Key(key) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if matches!(self.part, Part::Name(_) | Part::Item(..)) && !parent.is_root() {
                f.write_str(".")?;
            }
        }
        match self.part {
            Part::Name(name) => f.write_str(name),
            Part::Index(index) => write!(f, "[{index}]"),
            Part::Item(list, index) => write!(f, "{list}[{index}]"),
            Part::Key(key) => write!(f, "[{key}]"),
        }
    }
}

impl From<At<'_>> for String {
    fn from(at: At<'_>) -> Self {
        at.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let list = At::SPEC.child("containers");
        let (one, same) = (list.index(3), At::SPEC.item("containers", 3));
        for one in [one, same] {
            assert_eq!(one.child("limits").key("cpu").to_string(), "spec.containers[3].limits[cpu]");
        }
        assert_eq!(At::ROOT.child("data").key("a").to_string(), "data[a]");
        assert_eq!(At::ROOT.item("rules", 0).child("verbs").to_string(), "rules[0].verbs");
        assert_eq!(At::ROOT.to_string(), "");
    }

    #[test]
    fn wording() {
        let cases = [
            (FieldError::required("spec.name", ""), "spec.name: Required value"),
            (
                FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0"),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                FieldError::not_supported("t", "x", &["b", "a"]),
                r#"t: Unsupported value: "x": supported values: "b", "a""#,
            ),
            (FieldError::duplicate("a[1].name", "x"), r#"a[1].name: Duplicate value: "x""#),
            (FieldError::forbidden("spec", "no"), "spec: Forbidden: no"),
            (FieldError::too_long("data", 5), "data: Too long: may not be more than 5 bytes"),
            (FieldError::invalid("spec", 1, "no").without_value(), "spec: Invalid value: no"),
            (FieldError::too_many("l", 3, 2), "l: Too many: 3: must have at most 2 items"),
        ];
        for (e, want) in cases {
            assert_eq!(e.to_string(), want);
        }
    }
}
