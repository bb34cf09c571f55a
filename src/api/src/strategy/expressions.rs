//! Expressions in webhook configurations and admission policies are compiled when they are written, so
//! that a mistake is told to who made it (upstream `pkg/apis/admissionregistration/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::checks::Checks;
use super::util::{list, text};
use crate::cel::{Program, Type};
use crate::field::At;
use crate::names;

/// Upstream's limit of match conditions, policies and webhooks alike.
const MOST_CONDITIONS: usize = 64;

/// What every expression sees.
pub(super) const SEEN: [(&str, Type<'static>); 4] =
    [("object", Type::Dyn), ("oldObject", Type::Dyn), ("request", Type::Dyn), ("authorizer", Type::Dyn)];

/// What an expression may come to: words for it, and whether a type is it.
pub(super) type Wanted = (&'static str, fn(&Type<'_>) -> bool);

pub(super) const ANY: Wanted = ("anything", |_| true);
pub(super) const BOOL: Wanted = ("bool", |found| matches!(found, Type::Bool));
pub(super) const STRING: Wanted = ("string", |found| matches!(found, Type::String));
pub(super) const OBJECT: Wanted = ("Object", |found| matches!(found, Type::Own("Object")));
pub(super) const PATCH: Wanted = ("list(JSONPatch)", |found| match found {
    Type::List(item) => matches!(**item, Type::Own("JSONPatch") | Type::Dyn),
    _ => false,
});

/// What match conditions name is there, and each of them says yes or no.
pub(super) fn new_conditions(c: &mut Checks, holder: &Value, at: At<'_>) {
    for (place, condition) in list(holder, "matchConditions").iter().enumerate() {
        fits(c, condition, "expression", at.item("matchConditions", place), &SEEN, BOOL);
    }
}

/// The type of an expression that can be read; what is wrong with it is told.
pub(super) fn fits<'a>(
    c: &mut Checks,
    holder: &Value,
    field: &str,
    path: At<'_>,
    seen: &[(&str, Type<'a>)],
    (words, is_wanted): Wanted,
) -> Type<'a> {
    let Some(text) = holder[field].as_str() else { return Type::Dyn };
    let Ok(program) = Program::compile(text) else { return Type::Dyn };
    let (found, wrong) = program.check(seen);
    if !wrong.is_empty() {
        let why = format!("compilation failed: {}\n | {text}", wrong.join("\n"));
        c.invalid(path.child(field), text, why);
    } else if !matches!(found, Type::Dyn) && !is_wanted(&found) {
        c.invalid(path.child(field), text, format!("must evaluate to {words}"));
    }
    found
}

/// `matchConditions` of whatever has them.
pub(super) fn conditions(c: &mut Checks, holder: &Value, at: At<'_>) {
    let all = list(holder, "matchConditions");
    if all.len() > MOST_CONDITIONS {
        c.too_many(at.child("matchConditions"), all.len(), MOST_CONDITIONS);
    }
    let mut seen = HashSet::new();
    for (index, condition) in all.iter().enumerate() {
        let path = at.item("matchConditions", index);
        expression(c, condition, "expression", path, "");
        c.required_name(condition, "name", path, names::qualified_name);
        let name = text(condition, "name");
        if !name.is_empty() && !seen.insert(name) {
            c.duplicate(path.child("name"), name);
        }
    }
}

/// An expression that must be there and can be read; `missing` says why where it is not there.
pub(super) fn expression(c: &mut Checks, holder: &Value, field: &str, path: At<'_>, missing: &str) {
    let path = path.child(field);
    let code = text(holder, field);
    if code.trim().is_empty() {
        c.required(path, missing);
    } else if let Err(error) = Program::compile(code) {
        c.invalid(path, code, error.to_string());
    }
}
