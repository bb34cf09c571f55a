//! Validation rules of CRDs (`x-kubernetes-validations`, KEP-2876): compiled when first needed, checked
//! on values whose types are right.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::check::{same_item, type_name};
use super::{Cursor, NodeId, SchemaRef, Shape};
use crate::cel::{Budget, Error, Program, Scope, Type, Value as Cel, typed};
use crate::field::{At, FieldError};

/// One rule of one node.
#[derive(Debug)]
pub struct Rule {
    source: String,
    /// With `optionalOldSelf`: the value before may be missing.
    optional: bool,
    program: OnceLock<Result<Program, Error>>,
    message: String,
    /// How errors name the rule.
    name: String,
    message_source: Option<String>,
    message_program: OnceLock<Option<Program>>,
    reason: String,
    /// `.spec.x`, below the node.
    field_path: String,
    /// It compares with the value before, and has nothing to say about a new one.
    transition: bool,
}

impl Rule {
    /// It looks at the value before.
    pub(super) fn is_transition(&self) -> bool {
        self.transition
    }

    /// One that cannot be compiled is told about, and never checked.
    fn program(&self) -> &Result<Program, Error> {
        self.program.get_or_init(|| Program::compile(&self.source))
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
            let (message, name) = match text("message").trim() {
                "" => (format!("failed rule: {}", source.trim()), source.trim().to_owned()),
                message => (message.to_owned(), message.to_owned()),
            };
            Rule {
                transition: source.contains("oldSelf"),
                optional: rule["optionalOldSelf"] == true,
                program: OnceLock::new(),
                message,
                name,
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

/// Rules of a definition that are none: what cannot be read, or is certainly wrong for the types of its place.
pub fn mistakes(schema: &SchemaRef, path: At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    find_mistakes(schema, schema.id(), path, &mut Vec::new(), &mut errors);
    errors
}

fn find_mistakes(
    schema: &SchemaRef,
    id: NodeId,
    path: At<'_>,
    seen: &mut Vec<NodeId>,
    errors: &mut Vec<FieldError>,
) {
    if seen.contains(&id) {
        return;
    }
    seen.push(id);
    let at = schema.at(id);
    let node = at.node();
    let rules = node.limits.iter().flat_map(|limits| limits.validations.iter());
    for (place, rule) in rules.enumerate() {
        let path = path.item("x-kubernetes-validations", place);
        let types = Type::of(at.cursor(), true);
        let before = if rule.optional { Type::Optional(Box::new(types.clone())) } else { types.clone() };
        let declared = [("self", types), ("oldSelf", before)];
        let mut wrong = |field: &str, text: &str, why: String| {
            errors.push(FieldError::invalid(path.child(field), text, why));
        };
        match rule.program() {
            Ok(program) => {
                let (found, mistakes) = program.check(&declared);
                if !mistakes.is_empty() {
                    let why = format!("compilation failed: {}\n | {}", mistakes.join("\n"), rule.source);
                    wrong("rule", &rule.source, why);
                } else if !matches!(found, Type::Bool | Type::Dyn) {
                    wrong("rule", &rule.source, "cel expression must evaluate to a bool".to_owned());
                }
            }
            Err(error) => wrong("rule", &rule.source, error.to_string()),
        }
        let Some(text) = &rule.message_source else { continue };
        match Program::compile(text) {
            Ok(program) => {
                let (found, mistakes) = program.check(&declared);
                if !mistakes.is_empty() {
                    let why =
                        format!("messageExpression compilation failed: {}\n | {text}", mistakes.join("\n"));
                    wrong("messageExpression", text, why);
                } else if !matches!(found, Type::String | Type::Dyn) {
                    let why = "messageExpression must evaluate to a string".to_owned();
                    wrong("messageExpression", text, why);
                }
            }
            Err(error) => wrong("messageExpression", text, format!("messageExpression {error}")),
        }
    }
    for field in &node.fields {
        if schema.set().node(field.node).name.is_empty() {
            find_mistakes(schema, field.node, path.child("properties").key(&field.name), seen, errors);
        }
    }
    if let Some(item) = node.item {
        let below = if node.shape == Shape::Array { "items" } else { "additionalProperties" };
        find_mistakes(schema, item, path.child(below), seen, errors);
    }
}

/// Checks the rules of a place and of everything below it.
pub(super) fn check(
    at: Cursor<'_>,
    value: &Value,
    old: Option<&Value>,
    path: At<'_>,
    errors: &mut Vec<FieldError>,
) {
    walk(at, value, old, path, Only::All, &mut Budget::validation(), errors);
}

/// Which rules are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Only {
    All,
    /// Nothing has changed here: what was wrong before may stay (ratcheting, KEP-4008), but not what rules say
    /// about the step from the old to the new value.
    Transitions,
}

/// All rules of an object share one budget; nothing is checked any more once it is spent.
fn walk(
    at: Cursor<'_>,
    value: &Value,
    old: Option<&Value>,
    path: At<'_>,
    only: Only,
    budget: &mut Budget,
    errors: &mut Vec<FieldError>,
) {
    let only = if only == Only::All && old == Some(value) { Only::Transitions } else { only };
    if (only == Only::Transitions && !at.set.has_transitions) || value.is_null() || budget.is_spent() {
        return;
    }
    let own = at.node.limits.iter().flat_map(|limits| limits.validations.iter());
    let own: Vec<&Rule> = own.filter(|rule| only == Only::All || rule.transition).collect();
    if !own.is_empty() {
        rules(&own, at, value, old, path, budget, errors);
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let Some(child) = at.child(name) else { continue };
                let path = if at.node.field(name).is_some() { path.child(name) } else { path.key(name) };
                walk(child, value, old.and_then(|old| old.get(name)), path, only, budget, errors);
            }
        }
        Value::Array(items) => {
            let Some(item) = at.item() else { return };
            for (i, value) in items.iter().enumerate() {
                walk(item, value, same_item(at, old, value), path.index(i), only, budget, errors);
            }
        }
        _ => {}
    }
}

/// The rules of one place, which see the same values.
fn rules(
    rules: &[&Rule],
    at: Cursor<'_>,
    value: &Value,
    old: Option<&Value>,
    path: At<'_>,
    budget: &mut Budget,
    errors: &mut Vec<FieldError>,
) {
    let before = old.map(|old| typed(at, old));
    let mut variables = vec![("self", typed(at, value))];
    variables.extend(before.clone().map(|before| ("oldSelf", before)));
    for rule in rules {
        if budget.is_spent() {
            return;
        }
        if !rule.optional {
            if before.is_some() || !rule.transition {
                one(rule, (at, value), &variables, path, budget, errors);
            }
            continue;
        }
        let before = before.clone().map_or(Cel::Optional(None), Cel::some);
        let variables = [variables[0].clone(), ("oldSelf", before)];
        one(rule, (at, value), &variables, path, budget, errors);
    }
}

fn one(
    rule: &Rule,
    (at, value): (Cursor<'_>, &Value),
    variables: &[(&str, Cel)],
    path: At<'_>,
    budget: &mut Budget,
    errors: &mut Vec<FieldError>,
) {
    let Ok(program) = rule.program() else { return };
    let scope = Scope::new(variables);
    // A rule that says no is told with the value, one that cannot say anything with its type.
    let mut is_answer = false;
    let failed = match program.is_true(scope, budget) {
        Ok(true) | Err(Error::Unsupported(_) | Error::Syntax(_)) => return,
        Ok(false) => match rule.message_program().map(|program| program.evaluate(scope, budget)) {
            Some(Ok(Cel::String(text))) if is_line(text.trim()) => {
                is_answer = true;
                text.trim().to_owned()
            }
            Some(Err(Error::Exceeded)) => {
                budget.stop();
                let source = rule.message_source.as_deref().unwrap_or_default();
                format!("no further validation rules will be run due to call cost exceeds limit for messageExpression: {source:?}")
            }
            Some(Err(Error::Budget)) => {
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_owned()
            }
            _ => {
                is_answer = true;
                rule.message.clone()
            }
        },
        Err(error @ Error::Exceeded) => {
            budget.stop();
            format!("'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {}", rule.name)
        }
        Err(error @ Error::Budget) => error.to_string(),
        Err(Error::Failed(error)) if error == "no such overload" => {
            format!("'{error}': call arguments did not match a supported operator, function or macro signature for rule: {}", rule.name)
        }
        Err(error) => format!("{error} evaluating rule: {}", rule.name),
    };
    // A field's path starts with a dot: `.spec.x`.
    let path = match rule.field_path.strip_prefix('.') {
        Some(below) => path.child(below),
        None => path,
    };
    errors.push(match rule.reason.as_str() {
        "FieldValueForbidden" => FieldError::forbidden(path, failed),
        "FieldValueRequired" => FieldError::required(path, failed),
        reason => {
            let told = if is_answer { value.clone() } else { type_name(at.node.shape).into() };
            let error = match reason {
                "FieldValueDuplicate" => FieldError::duplicate(path, told),
                _ => FieldError::invalid(path, told, failed),
            };
            let is_much = matches!(value, Value::Object(_) | Value::Array(_));
            if is_answer && is_much { error.without_value() } else { error }
        }
    });
}

/// What a message may be: one line, not too long.
fn is_line(text: &str) -> bool {
    const MOST: usize = 5 * 1024;
    !text.is_empty() && !text.contains('\n') && text.len() <= MOST
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
            ["spec: Invalid value: min must not exceed max", "spec.my-name: Forbidden: not bad"]
        );
        assert_eq!(
            texts(&validate_schema(&s, &json!({"spec": {"min": "x", "max": 2}}))),
            [
                "spec.min: Invalid value: \"string\": spec.min in body must be of type integer: \"string\"",
                "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"
            ],
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
            ["spec: Invalid value: min is immutable"]
        );
        assert_eq!(unenforced(&s).len(), 1);
    }

    #[test]
    fn what_does_not_change_is_asked_about_transitions_only() {
        let s = SchemaRef::from_openapi(&json!({"type": "object", "properties": {"map": {"type": "object",
            "additionalProperties": {"type": "object", "properties": {"a": {"type": "string", "x-kubernetes-validations":
                [{"rule": "self != oldSelf", "message": "must change"}, {"rule": "self == 'x'", "message": "must be x"}]}}}}}}))
        .unwrap();
        let at = |label: &str| json!({"metadata": {"labels": {"l": label}}, "map": {"k": {"a": "y"}}});
        assert_eq!(
            texts(&validate_schema_update(&s, &at("new"), Some(&at("old")))),
            ["map[k].a: Invalid value: \"y\": must change"]
        );
    }

    #[test]
    fn the_value_before_may_be_optional() {
        let s =
            schema(json!([{"rule": "oldSelf.hasValue() ? self.min >= oldSelf.value().min : self.min == 0",
            "optionalOldSelf": true, "message": "min begins at 0 and grows"}]));
        let at = |min: i64| json!({"spec": {"min": min}});
        assert_eq!(texts(&validate_schema(&s, &at(0))), [""; 0]);
        assert_eq!(texts(&validate_schema(&s, &at(1))).len(), 1);
        assert_eq!(texts(&validate_schema_update(&s, &at(2), Some(&at(1)))), [""; 0]);
        assert_eq!(texts(&validate_schema_update(&s, &at(0), Some(&at(1)))).len(), 1);
    }

    /// One that runs on ends all; many that are cheap each end when they have spent what they share.
    #[test]
    fn rules_have_a_budget() {
        let list = |rules: Value| {
            SchemaRef::from_openapi(&json!({"type": "object", "properties": {"l": {"type": "array",
                "items": {"type": "integer"}, "x-kubernetes-validations": rules}}}))
            .unwrap()
        };
        let value = json!({"l": (0..500).collect::<Vec<i64>>()});
        let endless = json!({"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"});
        let found = texts(&validate_schema(&list(json!([endless, {"rule": "false"}])), &value));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: self.all(a"), "{found:?}");
        let dear = json!({"rule": "self.all(a, a < 0 || self.slow(a))"});
        assert_eq!(unenforced(&list(json!([dear]))).len(), 1, "no such function");
        let dear = json!({"rule": "self.filter(a, a < 300).all(a, self.all(b, b >= 0))"});
        let found = texts(&validate_schema(&list(Value::Array(vec![dear; 20])), &value));
        assert_eq!(
            found,
            [
                "l: Invalid value: \"array\": validation failed due to running out of cost budget, no further validation rules will be run"
            ]
        );
    }

    #[test]
    fn formats_have_types() {
        let s = SchemaRef::from_openapi(&json!({"type": "object", "properties": {
            "for": {"type": "string", "format": "duration"}, "at": {"type": "string", "format": "date-time"}},
            "x-kubernetes-validations": [{"rule": "self.at + self.__for__ < timestamp('2025-01-01T00:00:00Z')"}]}))
        .unwrap();
        let at = |at: &str| json!({"for": "24h", "at": at});
        assert_eq!(texts(&validate_schema(&s, &at("2024-12-30T00:00:00Z"))), [""; 0]);
        assert_eq!(texts(&validate_schema(&s, &at("2024-12-31T12:00:00Z"))).len(), 1);
    }

    #[test]
    fn mistakes_are_told_where_they_are() {
        let s = SchemaRef::from_openapi(&json!({"type": "object",
            "x-kubernetes-validations": [{"rule": "self.spec.x > 1 && self.metadata.name != ''"}],
            "properties": {"metadata": {"type": "object"}, "spec": {"type": "object", "properties": {"x": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.y > 1"}, {"rule": "self.x"}, {"rule": "self.x =="},
                    {"rule": "self.x > oldSelf.x", "messageExpression": "self.x"}]}}}))
        .unwrap();
        let found = mistakes(&s, At::root("schema"));
        let paths: Vec<&str> = found.iter().map(|error| error.path.as_str()).collect();
        let at = |place: usize, field: &str| {
            format!("schema.properties[spec].x-kubernetes-validations[{place}].{field}")
        };
        assert_eq!(paths, [at(0, "rule"), at(1, "rule"), at(2, "rule"), at(3, "messageExpression")]);
        let texts = texts(&found);
        assert!(texts[0].contains("compilation failed: ERROR: <input>: undefined field 'y'"), "{texts:?}");
        assert!(texts[1].ends_with("cel expression must evaluate to a bool"), "{texts:?}");
        assert!(texts[2].contains("Syntax error"), "{texts:?}");
    }
}
