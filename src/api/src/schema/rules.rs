//! Validation rules of CRDs (`x-kubernetes-validations`, KEP-2876): compiled when first needed, checked
//! on values whose types are right.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::check::{same_item, type_name};
use super::{Cursor, SchemaRef};
use crate::cel::{Error, Program, typed};
use crate::field::{FieldError, index, join, key};

/// One rule of one node.
#[derive(Debug)]
pub struct Rule {
    source: String,
    /// With `optionalOldSelf`, which is not supported.
    optional: bool,
    program: OnceLock<Result<Program, Error>>,
    message: String,
    message_source: Option<String>,
    message_program: OnceLock<Option<Program>>,
    reason: String,
    /// `.spec.x`, below the node.
    field_path: String,
    /// It compares with the value before, and has nothing to say about a new one.
    transition: bool,
}

impl Rule {
    /// One that cannot be compiled is told about, and never checked.
    fn program(&self) -> &Result<Program, Error> {
        self.program.get_or_init(|| {
            if self.optional {
                return Err(Error::Unsupported("optionalOldSelf".to_owned()));
            }
            Program::compile(&self.source)
        })
    }

    fn message_program(&self) -> Option<&Program> {
        let make = || self.message_source.as_deref().and_then(|text| Program::compile(text).ok());
        self.message_program.get_or_init(make).as_ref()
    }
}

/// Reads a node's rules.
pub(super) fn compile(list: Option<&Value>) -> Arc<[Rule]> {
    let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|rule| {
            let text = |field: &str| rule[field].as_str().unwrap_or_default().to_owned();
            let source = text("rule");
            let message = match text("message") {
                message if message.is_empty() => format!("failed rule: {}", source.trim()),
                message => message,
            };
            Rule {
                transition: source.contains("oldSelf"),
                optional: rule["optionalOldSelf"] == true,
                program: OnceLock::new(),
                message,
                message_source: rule["messageExpression"].as_str().map(str::to_owned),
                message_program: OnceLock::new(),
                reason: text("reason"),
                field_path: text("fieldPath"),
                source,
            }
        })
        .collect()
}

/// Rules that cannot be checked here, with the reason: the user is warned about them.
pub fn unenforced(schema: &SchemaRef) -> Vec<String> {
    let nodes = schema.set().nodes.iter();
    nodes
        .filter_map(|node| node.limits.as_ref())
        .flat_map(|limits| limits.validations.iter())
        .filter_map(|rule| {
            let error = rule.program().as_ref().err()?;
            Some(format!("validation rule {:?} is not enforced: {error}", rule.source))
        })
        .collect()
}

/// Checks the rules of a place and of everything below it.
pub(super) fn check(
    at: Cursor<'_>,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if old == Some(value) || value.is_null() {
        return;
    }
    if let Some(limits) = &at.node.limits {
        for rule in limits.validations.iter() {
            one(rule, at, value, old, path, errors);
        }
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let Some(child) = at.child(name) else { continue };
                let path = if at.node.field(name).is_some() { join(path, name) } else { key(path, name) };
                check(child, value, old.and_then(|old| old.get(name)), &path, errors);
            }
        }
        Value::Array(items) => {
            let Some(item) = at.item() else { return };
            for (i, value) in items.iter().enumerate() {
                check(item, value, same_item(at, old, value), &index(path, i), errors);
            }
        }
        _ => {}
    }
}

fn one(
    rule: &Rule,
    at: Cursor<'_>,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let Ok(program) = rule.program() else { return };
    let mut variables = vec![("self", typed(at, value))];
    match old {
        Some(old) => variables.push(("oldSelf", typed(at, old))),
        None if rule.transition => return,
        None => {}
    }
    let failed = match program.is_true(&variables) {
        Ok(true) | Err(Error::Unsupported(_) | Error::Syntax(_)) => return,
        Ok(false) => {
            let own = rule.message_program().and_then(|program| program.evaluate(&variables).ok());
            match own {
                Some(crate::cel::Value::String(text)) if !text.trim().is_empty() => text.trim().to_owned(),
                _ => rule.message.clone(),
            }
        }
        Err(error) => format!("rule evaluation error: {error}: evaluating rule: {}", rule.source),
    };
    // A field's path starts with a dot: `.spec.x`.
    let path = match rule.field_path.strip_prefix('.') {
        Some(below) => join(path, below),
        None => path.to_owned(),
    };
    errors.push(match rule.reason.as_str() {
        "FieldValueForbidden" => FieldError::forbidden(path, failed),
        "FieldValueRequired" => FieldError::required(path, failed),
        "FieldValueDuplicate" => FieldError::duplicate(path, type_name(at.node.shape)),
        _ => FieldError::invalid(path, type_name(at.node.shape), failed),
    });
}

#[cfg(test)]
mod tests {
    use super::super::{validate_schema, validate_schema_update};
    use super::*;
    use serde_json::json;

    fn schema(rules: Value) -> SchemaRef {
        SchemaRef::from_openapi(&json!({"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": rules, "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"}, "my-name": {"type": "string"}}}}}))
        .unwrap()
    }

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_refuse_and_say_why() {
        let s = schema(json!([
            {"rule": "self.min <= self.max", "message": "min must not exceed max"},
            {"rule": "!has(self.my__dash__name) || self.my__dash__name != 'bad'", "messageExpression": "'not ' + self.my__dash__name",
             "fieldPath": ".my-name", "reason": "FieldValueForbidden"},
        ]));
        assert_eq!(texts(&validate_schema(&s, &json!({"spec": {"min": 1, "max": 2}}))), [""; 0]);
        assert_eq!(
            texts(&validate_schema(&s, &json!({"spec": {"min": 3, "max": 2, "my-name": "bad"}}))),
            ["spec: Invalid value: \"object\": min must not exceed max", "spec.my-name: Forbidden: not bad"]
        );
        assert_eq!(
            texts(&validate_schema(&s, &json!({"spec": {"min": "x", "max": 2}}))).len(),
            1,
            "types first"
        );
    }

    #[test]
    fn transitions_and_what_is_not_enforced() {
        let s = schema(
            json!([{"rule": "self.min == oldSelf.min", "message": "min is immutable"}, {"rule": "self =="}]),
        );
        let (old, new) = (json!({"spec": {"min": 1}}), json!({"spec": {"min": 2}}));
        assert_eq!(texts(&validate_schema(&s, &new)), [""; 0]);
        assert_eq!(
            texts(&validate_schema_update(&s, &new, Some(&old))),
            ["spec: Invalid value: \"object\": min is immutable"]
        );
        assert_eq!(unenforced(&s).len(), 1);
    }
}
