//! Evaluation, step by step, each paid for. `&&`, `||` and the comprehensions made of them forgive an error
//! when the other side decides; running out of budget is never forgiven.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::compile::{Fold, Node, OptMap, Select};
use super::library::{Entry, TYPES};
use super::meter::Meter;
use super::value::{Key, Message, Value};
use super::{Error, Outcome, Program, Stop, no_overload};

/// How deep steps may be nested: every level takes a piece of the stack. One expression is never that deep, one
/// that uses variables that use variables may be.
const DEEPEST: usize = 400;

/// What an expression can see.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    values: &'a [(&'a str, Value)],
    variables: Option<&'a Variables<'a>>,
}

impl<'a> Scope<'a> {
    /// Values by their names; a later one of a name hides an earlier one.
    pub fn new(values: &'a [(&'a str, Value)]) -> Self {
        Self { values, variables: None }
    }

    /// And `variables`, computed when they are first used.
    pub fn with(values: &'a [(&'a str, Value)], variables: &'a Variables<'a>) -> Self {
        Self { values, variables: Some(variables) }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.values.iter().rfind(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

/// The variables of a policy: each is evaluated at most once, and sees those before it.
pub struct Variables<'a> {
    named: &'a [(String, Result<Program, Error>)],
    known: RefCell<Vec<Option<Outcome>>>,
}

impl<'a> Variables<'a> {
    /// None is evaluated yet.
    pub fn new(named: &'a [(String, Result<Program, Error>)]) -> Self {
        Self { named, known: RefCell::new(vec![None; named.len()]) }
    }
}

/// One evaluation.
pub(super) struct Run<'a> {
    scope: Scope<'a>,
    /// How many variables can be seen.
    visible: usize,
    /// How many steps are around this one, those around a variable of a policy included.
    depth: usize,
    /// Variables of comprehensions; an accumulator may be an error.
    locals: Vec<Outcome>,
    meter: &'a mut Meter,
}

/// The value of an expression.
pub(super) fn evaluate(node: &Node, scope: Scope<'_>, meter: &mut Meter) -> Outcome {
    let visible = scope.variables.map_or(0, |variables| variables.named.len());
    Run { scope, visible, depth: 0, locals: Vec::new(), meter }.eval(node)
}

impl Run<'_> {
    fn eval(&mut self, node: &Node) -> Outcome {
        if self.depth == DEEPEST {
            return Err(Stop::failed("the expression and its variables are nested too deep"));
        }
        self.depth += 1;
        let outcome = self.inner(node);
        self.depth -= 1;
        outcome
    }

    fn inner(&mut self, node: &Node) -> Outcome {
        match node {
            Node::Const(value) => Ok(value.clone()),
            Node::Local(place) => {
                self.meter.spend(1)?;
                self.locals[*place].clone()
            }
            Node::Global(name) => self.global(name),
            Node::Select(select) => self.select(select),
            Node::Index(parts, optional) => self.index(parts, *optional),
            Node::And(parts) => self.logic(parts, false),
            Node::Or(parts) => self.logic(parts, true),
            Node::If(parts) => self.choose(parts),
            Node::NotFalse(part) => self.not_false(part),
            Node::Call(entry, args) => self.call(entry, args),
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Message(name, fields) => self.message(name, fields),
            Node::Append(place, item) => self.append(*place, item),
            Node::Insert(place, entry) => self.insert_one(*place, entry),
            Node::Merge(place, entries) => self.merge(*place, entries),
            Node::Fold(fold) => self.fold(fold),
            Node::OptMap(map) => self.opt_map(map),
        }
    }

    fn choose(&mut self, parts: &[Node; 3]) -> Outcome {
        match self.eval(&parts[0])? {
            Value::Bool(true) => self.eval(&parts[1]),
            Value::Bool(false) => self.eval(&parts[2]),
            _ => no_overload(),
        }
    }

    fn not_false(&mut self, part: &Node) -> Outcome {
        let outcome = self.eval(part);
        self.meter.spend(1)?;
        match outcome {
            Err(Stop::Exceeded) => Err(Stop::Exceeded),
            outcome => Ok((!matches!(outcome, Ok(Value::Bool(false)))).into()),
        }
    }

    fn call(&mut self, entry: &Entry, nodes: &[Node]) -> Outcome {
        let mut args = Vec::with_capacity(nodes.len());
        for node in nodes {
            args.push(self.eval(node)?);
        }
        if entry.flat {
            self.meter.spend(1)?;
        }
        (entry.function)(self.meter, &args)
    }

    fn global(&mut self, name: &Arc<str>) -> Outcome {
        self.meter.spend(1)?;
        if let Some(value) = self.scope.get(name) {
            return Ok(value.clone());
        }
        if TYPES.contains(&&**name) {
            return Ok(Value::Type(name.clone()));
        }
        Err(Stop::Unknown(format!("undeclared reference to '{name}' (in container '')").into()))
    }

    /// `variables.name`
    fn variable(&mut self, variables: &Variables<'_>, name: &str) -> Outcome {
        let at = variables.named[..self.visible].iter().rposition(|(known, _)| known == name);
        let at = at.ok_or_else(|| Stop::failed(format!("no such key: {name}")))?;
        if let Some(known) = &variables.known.borrow()[at] {
            return known.clone();
        }
        let outcome = match &variables.named[at].1 {
            Ok(program) => {
                let (scope, depth) = (self.scope, self.depth);
                let mut run = Run { scope, visible: at, depth, locals: Vec::new(), meter: self.meter };
                run.eval(&program.node)
            }
            Err(error) => Err(Stop::failed(error)),
        };
        let outcome = outcome.map_err(|stop| match stop {
            Stop::Failed(why) => {
                Stop::failed(format!("composited variable {name:?} fails to evaluate: {why}"))
            }
            other => other,
        });
        variables.known.borrow_mut()[at] = Some(outcome.clone());
        outcome
    }

    fn select(&mut self, select: &Select) -> Outcome {
        if let (Node::Global(name), Some(variables)) = (&select.operand, self.scope.variables)
            && &**name == "variables"
        {
            self.meter.spend(2)?;
            return match (select.test, select.optional) {
                (true, _) => {
                    Ok(variables.named[..self.visible].iter().any(|(name, _)| **name == *select.field).into())
                }
                (false, true) => self.variable(variables, &select.field).map(Value::some),
                (false, false) => self.variable(variables, &select.field),
            };
        }
        let operand = self.eval(&select.operand)?;
        if !select.test {
            self.meter.spend(1)?;
        }
        // A selection on an optional value is one itself.
        let (operand, optional) = match &operand {
            Value::Optional(None) if select.test => return Ok(false.into()),
            Value::Optional(None) => return Ok(operand),
            Value::Optional(Some(value)) => (&**value, !select.test),
            value => (value, select.optional),
        };
        let found = match operand {
            Value::Map(map) => map.get(&select.key).cloned(),
            Value::Message(message) => message.fields.get(&select.field).cloned(),
            Value::Authorizer(check) => check.field(&select.field),
            _ => return no_overload(),
        };
        match (found, select.test, optional) {
            (found, true, _) => Ok(found.is_some().into()),
            (found, false, true) => Ok(Value::Optional(found.map(Arc::new))),
            (Some(found), false, false) => Ok(found),
            (None, false, false) => Err(Stop::failed(format!("no such key: {}", select.field))),
        }
    }

    fn index(&mut self, parts: &[Node; 2], optional: bool) -> Outcome {
        let (operand, index) = (self.eval(&parts[0])?, self.eval(&parts[1])?);
        self.meter.spend(1)?;
        let (operand, optional) = match &operand {
            Value::Optional(None) => return Ok(operand),
            Value::Optional(Some(value)) => (&**value, true),
            value => (value, optional),
        };
        let key = Key::of(&index).ok_or_else(Stop::no_overload)?;
        let found = match (operand, &key) {
            (Value::Map(map), key) => map.get(key).cloned(),
            (Value::List(items), Key::Int(place)) => {
                usize::try_from(*place).ok().and_then(|place| items.get(place)).cloned()
            }
            _ => return no_overload(),
        };
        match (found, optional, key) {
            (found, true, _) => Ok(Value::Optional(found.map(Arc::new))),
            (Some(found), false, _) => Ok(found),
            (None, false, Key::Int(place)) if matches!(operand, Value::List(_)) => {
                Err(Stop::failed(format!("index out of bounds: {place}")))
            }
            (None, false, key) => {
                let key = super::text::shown(&key.into()).unwrap_or_default();
                Err(Stop::failed(format!("no such key: {key}")))
            }
        }
    }

    /// The first part that is `decisive` decides; else the first error is the outcome.
    fn logic(&mut self, parts: &[Node], decisive: bool) -> Outcome {
        let mut failed = None;
        for part in parts {
            match self.eval(part) {
                Ok(Value::Bool(truth)) if truth == decisive => return Ok(truth.into()),
                Ok(Value::Bool(_)) => {}
                Ok(_) => drop(failed.get_or_insert_with(Stop::no_overload)),
                Err(Stop::Exceeded) => return Err(Stop::Exceeded),
                Err(stop) => drop(failed.get_or_insert(stop)),
            }
        }
        failed.map_or(Ok((!decisive).into()), Err)
    }

    /// The value of something that may be missing; `None`: it is.
    fn maybe(&mut self, node: &Node, optional: bool) -> Result<Option<Value>, Stop> {
        match (self.eval(node)?, optional) {
            (Value::Optional(value), true) => Ok(value.map(|value| (*value).clone())),
            (_, true) => Err(Stop::no_overload()),
            (value, false) => Ok(Some(value)),
        }
    }

    fn list(&mut self, items: &[(Node, bool)]) -> Outcome {
        let mut list = Vec::with_capacity(items.len());
        for (item, optional) in items {
            list.extend(self.maybe(item, *optional)?);
        }
        self.meter.spend(10)?;
        Ok(list.into())
    }

    fn map(&mut self, entries: &[(Node, Node, bool)]) -> Outcome {
        let mut map = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            let key = Key::of(&key)
                .ok_or_else(|| Stop::failed(format!("unsupported key type: {}", key.type_name())))?;
            if let Some(value) = self.maybe(value, *optional)?
                && map.insert(key, value).is_some()
            {
                return Err(Stop::failed("Failed with repeated key"));
            }
        }
        self.meter.spend(30)?;
        Ok(Value::Map(Arc::new(map)))
    }

    fn message(&mut self, name: &Arc<str>, fields: &[(Arc<str>, Node, bool)]) -> Outcome {
        let mut found = BTreeMap::new();
        for (field, value, optional) in fields {
            let Some(value) = self.maybe(value, *optional)? else { continue };
            if &**name != "JSONPatch" {
                belongs(&value, &format!("{name}.{field}"))?;
            }
            found.insert(field.clone(), value);
        }
        self.meter.spend(40)?;
        Ok(Value::Message(Arc::new(Message { name: name.clone(), fields: found })))
    }

    fn append(&mut self, place: usize, item: &Node) -> Outcome {
        let item = self.eval(item)?;
        // As if the list were read, made and added.
        self.meter.spend(12)?;
        match std::mem::replace(&mut self.locals[place], Ok(Value::Null))? {
            Value::List(mut items) => {
                Arc::make_mut(&mut items).push(item);
                Ok(Value::List(items))
            }
            _ => no_overload(),
        }
    }

    fn insert_one(&mut self, place: usize, entry: &[Node; 2]) -> Outcome {
        let (key, value) = (self.eval(&entry[0])?, self.eval(&entry[1])?);
        let key = Key::of(&key).ok_or_else(Stop::no_overload)?;
        self.insert(place, [(key, value)])
    }

    fn merge(&mut self, place: usize, entries: &Node) -> Outcome {
        match self.eval(entries)? {
            Value::Map(map) => {
                self.insert(place, map.iter().map(|(key, value)| (key.clone(), value.clone())))
            }
            _ => no_overload(),
        }
    }

    fn insert(&mut self, place: usize, entries: impl IntoIterator<Item = (Key, Value)>) -> Outcome {
        self.meter.spend(2)?;
        let Value::Map(mut map) = std::mem::replace(&mut self.locals[place], Ok(Value::Null))? else {
            return no_overload();
        };
        let into = Arc::make_mut(&mut map);
        for (key, value) in entries {
            self.meter.spend(1)?;
            if into.insert(key, value).is_some() {
                return Err(Stop::failed("insert failed: key already exists"));
            }
        }
        Ok(Value::Map(map))
    }

    fn fold(&mut self, fold: &Fold) -> Outcome {
        let range = self.eval(&fold.range)?;
        let accumulator = self.eval(&fold.init)?;
        let depth = self.locals.len();
        debug_assert_eq!(depth, fold.place);
        self.locals.push(Ok(accumulator));
        self.locals.extend(vec![Ok(Value::Null); if fold.pairs { 2 } else { 1 }]);
        let outcome = self.iterate(fold, &range);
        let outcome = outcome.and_then(|()| self.eval(&fold.result));
        self.locals.truncate(depth);
        outcome
    }

    fn opt_map(&mut self, map: &OptMap) -> Outcome {
        let Value::Optional(target) = self.eval(&map.target)? else { return no_overload() };
        self.meter.spend(1)?;
        let Some(value) = target else { return Ok(Value::Optional(None)) };
        let depth = self.locals.len();
        debug_assert_eq!(depth, map.place);
        self.locals.push(Ok((*value).clone()));
        let outcome = self.eval(&map.body);
        self.locals.truncate(depth);
        match (outcome?, map.flat) {
            (value, false) => Ok(Value::some(value)),
            (value @ Value::Optional(_), true) => Ok(value),
            _ => no_overload(),
        }
    }

    fn iterate(&mut self, fold: &Fold, range: &Value) -> Result<(), Stop> {
        match range {
            Value::List(items) => {
                for (place, item) in items.iter().enumerate() {
                    let place = Value::Int(i64::try_from(place).unwrap_or(i64::MAX));
                    if !self.step(fold, place, item.clone(), false)? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for (key, value) in map.iter() {
                    if !self.step(fold, key.clone().into(), value.clone(), true)? {
                        break;
                    }
                }
            }
            _ => return Err(Stop::no_overload()),
        }
        Ok(())
    }

    /// One round: whether there are to be more of them. One variable is a map's key or a list's item.
    fn step(&mut self, fold: &Fold, key: Value, value: Value, is_map: bool) -> Result<bool, Stop> {
        if fold.pairs {
            self.locals[fold.place + 1] = Ok(key);
            self.locals[fold.place + 2] = Ok(value);
        } else {
            self.locals[fold.place + 1] = Ok(if is_map { key } else { value });
        }
        match self.eval(&fold.condition)? {
            Value::Bool(true) => {}
            Value::Bool(false) => return Ok(false),
            _ => return Err(Stop::no_overload()),
        }
        let outcome = self.eval(&fold.step);
        match (&outcome, &fold.step) {
            (Err(Stop::Exceeded), _) => return Err(Stop::Exceeded),
            // A later item may decide.
            (Err(_), Node::And(_) | Node::Or(_)) | (Ok(_), _) => {}
            (Err(stop), _) => return Err(stop.clone()),
        }
        self.locals[fold.place] = outcome;
        Ok(true)
    }
}

/// Messages in a field are of the field's type.
fn belongs(value: &Value, wanted: &str) -> Result<(), Stop> {
    match value {
        Value::Message(message) if *message.name != *wanted => Err(Stop::failed(format!(
            "unexpected type name {:?}, expected {wanted:?}, which matches field name path from root Object type",
            message.name
        ))),
        Value::List(items) => items.iter().try_for_each(|item| belongs(item, wanted)),
        _ => Ok(()),
    }
}
