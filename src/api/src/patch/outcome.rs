//! What comes out of a patch has to be an object of its kind again. What is said when it is not differs from
//! what a whole body is told (apiserver `pkg/endpoints/handlers/patch.go`): a JSON or merge patch is shown its
//! outcome and told what the JSON decoder says of it, a strategic one is shown itself and told what the
//! converter of maps says (apimachinery `pkg/runtime/converter.go`).

use std::fmt::Write as _;

use serde_json::Value;

use crate::decode::{self, FieldValidation, Problem};
use crate::field::FieldError;
use crate::registry::Resource;
use crate::schema::Shape;
use crate::status::Status;

/// A patch as it was read: the outcome's checks are part of it.
#[derive(Clone, Debug)]
pub struct Checked<'a> {
    /// Keys that came twice in the patch, as [`decode::patch`] names them.
    pub twice: &'a [String],
    /// A strategic merge patch; `None` for the others.
    pub strategic: Option<&'a Value>,
}

impl Checked<'_> {
    /// Checks and normalizes what `make` makes of an object; the strings are warnings.
    ///
    /// # Errors
    /// Those of `make`, and 422 with what is wrong of the outcome.
    pub fn outcome(
        &self,
        resource: &Resource,
        mode: FieldValidation,
        make: impl Fn() -> Result<Value, Status>,
    ) -> Result<(Value, Vec<String>), Status> {
        let checked = decode::patched(make()?, resource, mode, self.twice, self.strategic.is_some());
        checked.map_err(|problem| match problem {
            Problem::Other(status) => status,
            Problem::Words(words) => {
                let shown = match self.strategic {
                    Some(patch) => Ok(go_text(patch)),
                    None => make().map(|outcome| outcome.to_string()),
                };
                match shown {
                    Ok(shown) => {
                        Status::invalid("", "", "", vec![FieldError::invalid("patch", shown, words)])
                    }
                    Err(status) => status,
                }
            }
        })
    }
}

/// What the converter says of a value of kind `got` (`string`, `number`, `number 1.5`, `bool`, `array` or
/// `object`, as the JSON decoder names it) where this shape is wanted; `None` where it leaves that to the
/// decoder.
pub(crate) fn conversion(got: &str, shape: Shape) -> Option<String> {
    let source = match got {
        "array" => "slice",
        "object" => "map",
        "string" | "bool" => got,
        // Named when it is what is wrong; where a word is wanted, most are integers.
        _ => match got.strip_prefix("number ") {
            Some(number) if number.contains(['.', 'e']) => "float64",
            _ => "int64",
        },
    };
    let simple = match shape {
        Shape::Object => return Some(format!("cannot restore struct from: {source}")),
        Shape::Map => return Some(format!("cannot restore map from {source}")),
        Shape::Array | Shape::Bytes => return Some(format!("cannot restore slice from {source}")),
        Shape::String => "string",
        Shape::Int32 => "int32",
        Shape::Int64 => "int64",
        Shape::Number => "float64",
        Shape::Bool => "bool",
        Shape::Any | Shape::Quantity | Shape::IntOrString | Shape::Time | Shape::MicroTime => return None,
    };
    // Go converts integers to words, and between numbers; JSON does not.
    Some(match (source, shape) {
        ("int64", Shape::String) | ("float64", Shape::Int32 | Shape::Int64) => {
            format!("cannot convert {source} to {simple}")
        }
        _ => format!("unrecognized type: {simple}"),
    })
}

/// As Go prints a map (`%+v`).
fn go_text(value: &Value) -> String {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Null => out.push_str("<nil>"),
            Value::String(text) => out.push_str(text),
            Value::Array(list) => {
                out.push('[');
                for (index, item) in list.iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    write(item, out);
                }
                out.push(']');
            }
            Value::Object(map) => {
                let mut fields: Vec<_> = map.iter().collect();
                fields.sort_by_key(|(name, _)| *name);
                out.push_str("map[");
                for (index, (name, item)) in fields.into_iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    out.push_str(name);
                    out.push(':');
                    write(item, out);
                }
                out.push(']');
            }
            // Writing to a String cannot fail.
            other => drop(write!(out, "{other}")),
        }
    }
    let mut out = String::new();
    write(value, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::{merge_patch, strategic_merge_patch};
    use crate::registry::Registry;
    use serde_json::json;

    fn deployment() -> (std::sync::Arc<Resource>, Value) {
        let resource = Registry::builtin().find("apps", "v1", "deployments").expect("there");
        let old = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" }, "spec": {
            "template": { "spec": { "containers": [{ "name": "c", "image": "i" }] } } } });
        (resource, old)
    }

    fn strategic(patch: &str, mode: FieldValidation) -> Result<Vec<String>, String> {
        let (resource, old) = deployment();
        let (patch, twice) = decode::patch(patch.as_bytes(), mode).expect("JSON");
        let make = || strategic_merge_patch(&resource.schema, &old, &patch);
        let checked = Checked { twice: &twice, strategic: Some(&patch) };
        checked.outcome(&resource, mode, make).map(|(_, warnings)| warnings).map_err(|status| {
            assert_eq!((status.code, status.reason), (422, "Invalid"));
            status.message
        })
    }

    #[test]
    fn a_strategic_patch_is_shown_itself() {
        for (patch, words) in [
            (
                r#"{"spec":{"replicas":"x","paused":null}}"#,
                r#"patch: Invalid value: "map[spec:map[paused:<nil> replicas:x]]": unrecognized type: int32"#,
            ),
            (
                r#"{"spec":{"replicas":1.5}}"#,
                r#"patch: Invalid value: "map[spec:map[replicas:1.5]]": cannot convert float64 to int32"#,
            ),
            (
                r#"{"metadata":{"labels":{"a":1}}}"#,
                r#"patch: Invalid value: "map[metadata:map[labels:map[a:1]]]": cannot convert int64 to string"#,
            ),
            (
                r#"{"metadata":{"labels":{"a":true}}}"#,
                r#"patch: Invalid value: "map[metadata:map[labels:map[a:true]]]": unrecognized type: string"#,
            ),
            (
                r#"{"spec":{"selector":"a"}}"#,
                r#"patch: Invalid value: "map[spec:map[selector:a]]": cannot restore struct from: string"#,
            ),
            (
                r#"{"metadata":{"labels":["a","b"]}}"#,
                r#"patch: Invalid value: "map[metadata:map[labels:[a b]]]": cannot restore map from slice"#,
            ),
        ] {
            assert_eq!(strategic(patch, FieldValidation::Ignore), Err(format!(r#" "" is invalid: {words}"#)));
        }
    }

    #[test]
    fn what_is_unknown_or_comes_twice() {
        let patch = r#"{"spec":{"zz":1,"replicas":1,"replicas":2,"aa":1}}"#;
        let all =
            ["duplicate field \"spec.replicas\"", "unknown field \"spec.aa\"", "unknown field \"spec.zz\""];
        assert_eq!(strategic(patch, FieldValidation::Warn).expect("taken"), all);
        assert_eq!(strategic(patch, FieldValidation::Ignore).expect("taken"), [""; 0]);
        let refused = strategic(patch, FieldValidation::Strict).expect_err("refused");
        let shown = r#" "" is invalid: patch: Invalid value: "map[spec:map[aa:1 replicas:2 zz:1]]": "#;
        assert_eq!(refused, format!("{shown}strict decoding error: {}", all.join(", ")));
    }

    #[test]
    fn a_merge_patch_is_shown_its_outcome() {
        let (resource, old) = deployment();
        let patch = json!({ "spec": { "replicas": "x" } });
        let checked = Checked { twice: &[], strategic: None };
        let make = || merge_patch(&old, &patch);
        let refused = checked.outcome(&resource, FieldValidation::Warn, make).expect_err("refused");
        let outcome = Value::from(make().expect("made").to_string());
        let words =
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32";
        assert_eq!(refused.message, format!(r#" "" is invalid: patch: Invalid value: {outcome}: {words}"#));
    }
}
