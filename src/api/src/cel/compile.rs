//! From the parser's tree to the one that is evaluated: names are resolved to places and functions, macros of
//! two variables expanded, steps that only append to a list recognised.

use std::sync::Arc;

use cel::common::ast::{
    ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr, StructExpr, operators,
};

use super::formats::Format;
use super::library::{self, Entry, TYPES};
use super::value::{Key, Map, Value};
use super::{Error, text, time};

/// One step of an evaluation.
#[derive(Debug)]
pub(super) enum Node {
    Const(Value),
    /// A variable of a comprehension, by its place.
    Local(usize),
    /// What the evaluation brings, or a type.
    Global(Arc<str>),
    Select(Box<Select>),
    Index(Box<[Node; 2]>, bool),
    And(Vec<Node>),
    Or(Vec<Node>),
    If(Box<[Node; 3]>),
    /// Whether a comprehension goes on: an error is none to stop at.
    NotFalse(Box<Node>),
    Call(&'static Entry, Vec<Node>),
    /// Items, and whether they may be missing.
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Message(Arc<str>, Vec<(Arc<str>, Node, bool)>),
    /// The list at this place and one more item.
    Append(usize, Box<Node>),
    /// The map at this place and one more entry.
    Insert(usize, Box<[Node; 2]>),
    /// The map at this place and the entries of another.
    Merge(usize, Box<Node>),
    Fold(Box<Fold>),
    OptMap(Box<OptMap>),
}

/// `operand.field`, `has(operand.field)` or `operand.?field`.
#[derive(Debug)]
pub(super) struct Select {
    pub(super) operand: Node,
    pub(super) field: Arc<str>,
    pub(super) key: Key,
    pub(super) test: bool,
    pub(super) optional: bool,
}

/// `target.optMap(x, body)` and, where the body is optional itself, `optFlatMap`.
#[derive(Debug)]
pub(super) struct OptMap {
    pub(super) target: Node,
    /// Of the variable.
    pub(super) place: usize,
    pub(super) body: Node,
    pub(super) flat: bool,
}

/// A comprehension. Its accumulator, its variable and its second variable follow those around it.
#[derive(Debug)]
pub(super) struct Fold {
    pub(super) range: Node,
    pub(super) init: Node,
    /// The places of its variables begin here.
    pub(super) place: usize,
    /// Keys and values.
    pub(super) pairs: bool,
    pub(super) condition: Node,
    pub(super) step: Node,
    pub(super) result: Node,
}

/// How deep an expression may be, as upstream's parser has it: every level takes a piece of the stack.
const DEEPEST: usize = 250;

/// Where in an expression it is: the names of the variables that are there, in the order of their places.
#[derive(Default)]
struct Names {
    all: Vec<String>,
    depth: usize,
}

/// Compiles an expression.
pub(super) fn compile(expr: &IdedExpr) -> Result<Node, Error> {
    node(expr, &mut Names::default())
}

fn unknown(name: &str) -> Error {
    Error::Unsupported(format!("undeclared reference to '{name}' (in container '')"))
}

fn node(expr: &IdedExpr, names: &mut Names) -> Result<Node, Error> {
    if names.depth == DEEPEST {
        return Err(Error::Syntax(format!("expression recursion limit exceeded: {DEEPEST}")));
    }
    names.depth += 1;
    let node = inner(expr, names);
    names.depth -= 1;
    node
}

fn inner(expr: &IdedExpr, names: &mut Names) -> Result<Node, Error> {
    Ok(match &expr.expr {
        Expr::Literal(literal) => Node::Const(constant(literal)),
        Expr::Ident(name) => ident(name, names),
        Expr::Select(select) => {
            if let Some(name) = qualified(expr, names).filter(|name| TYPES.contains(&name.as_str())) {
                return Ok(Node::Const(Value::Type(name.into())));
            }
            let operand = node(&select.operand, names)?;
            selection(operand, &select.field, select.test, false)
        }
        Expr::Call(call) => return self::call(&call.func_name, call.target.as_deref(), &call.args, names),
        Expr::List(list) => return self::list(list, names),
        Expr::Map(map) => return self::map(map, names),
        Expr::Struct(message) => return self::message(message, names),
        Expr::Comprehension(fold) => return self::fold(fold, names),
        Expr::Unspecified => return Err(Error::Syntax("the expression is incomplete".to_owned())),
    })
}

fn list(list: &ListExpr, names: &mut Names) -> Result<Node, Error> {
    let mut items = Vec::with_capacity(list.elements.len());
    for (index, item) in list.elements.iter().enumerate() {
        items.push((node(item, names)?, list.optional_indices.contains(&index)));
    }
    Ok(folded_list(items))
}

fn map(map: &MapExpr, names: &mut Names) -> Result<Node, Error> {
    let mut entries = Vec::new();
    for entry in &map.entries {
        if let EntryExpr::MapEntry(entry) = &entry.expr {
            entries.push((node(&entry.key, names)?, node(&entry.value, names)?, entry.optional));
        }
    }
    Ok(folded_map(entries))
}

fn message(message: &StructExpr, names: &mut Names) -> Result<Node, Error> {
    let name = message.type_name.as_str();
    if name != "JSONPatch" && name != "Object" && !name.starts_with("Object.") {
        return Err(unknown(name));
    }
    let mut fields = Vec::new();
    for entry in &message.entries {
        if let EntryExpr::StructField(field) = &entry.expr {
            if name == "JSONPatch" && !["op", "path", "from", "value"].contains(&field.field.as_str()) {
                return Err(Error::Syntax(format!("undefined field '{}'", field.field)));
            }
            fields.push((field.field.as_str().into(), node(&field.value, names)?, field.optional));
        }
    }
    Ok(Node::Message(name.into(), fields))
}

fn fold(fold: &ComprehensionExpr, names: &mut Names) -> Result<Node, Error> {
    let (range, init) = (node(&fold.iter_range, names)?, node(&fold.accu_init, names)?);
    let place = names.all.len();
    names.all.push(fold.accu_var.clone());
    names.all.push(fold.iter_var.clone());
    names.all.extend(fold.iter_var2.clone());
    let pairs = fold.iter_var2.is_some();
    let condition = node(&fold.loop_cond, names);
    let step = node(&fold.loop_step, names);
    let result = node(&fold.result, names);
    names.all.truncate(place);
    let (condition, step, result) = (condition?, appending(step?, place), result?);
    Ok(Node::Fold(Box::new(Fold { range, init, place, pairs, condition, step, result })))
}

/// A list of constants is one, and costs nothing.
fn folded_list(items: Vec<(Node, bool)>) -> Node {
    let constants = items.iter().map(|item| match item {
        (Node::Const(value), false) => Some(value.clone()),
        _ => None,
    });
    match constants.collect::<Option<Vec<Value>>>() {
        Some(list) => Node::Const(list.into()),
        None => Node::List(items),
    }
}

fn folded_map(entries: Vec<(Node, Node, bool)>) -> Node {
    let constants = entries.iter().map(|entry| match entry {
        (Node::Const(key), Node::Const(value), false) => Some((Key::of(key)?, value.clone())),
        _ => None,
    });
    match constants.collect::<Option<Map>>() {
        // A key that is there twice is told when it is evaluated.
        Some(map) if map.len() == entries.len() => Node::Const(Value::Map(Arc::new(map))),
        _ => Node::Map(entries),
    }
}

fn constant(literal: &LiteralValue) -> Value {
    match literal {
        LiteralValue::Boolean(truth) => Value::Bool(*truth.inner()),
        LiteralValue::Bytes(bytes) => Value::Bytes(bytes.inner().into()),
        LiteralValue::Double(number) => Value::Double(*number.inner()),
        LiteralValue::Int(number) => Value::Int(*number.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(text) => Value::String(text.inner().into()),
        LiteralValue::UInt(number) => Value::Uint(*number.inner()),
    }
}

fn ident(name: &str, names: &Names) -> Node {
    match names.all.iter().rposition(|known| known == name) {
        Some(place) => Node::Local(place),
        None => Node::Global(name.strip_prefix('.').unwrap_or(name).into()),
    }
}

fn selection(operand: Node, field: &str, test: bool, optional: bool) -> Node {
    let field: Arc<str> = field.into();
    let key = Key::String(field.clone());
    Node::Select(Box::new(Select { operand, field, key, test, optional }))
}

/// `a.b.c` as one name, where `a` is no variable of a comprehension.
fn qualified(expr: &IdedExpr, names: &Names) -> Option<String> {
    match &expr.expr {
        Expr::Ident(name) if !names.all.contains(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => {
            Some(format!("{}.{}", qualified(&select.operand, names)?, select.field))
        }
        _ => None,
    }
}

fn call(name: &str, target: Option<&IdedExpr>, args: &[IdedExpr], names: &mut Names) -> Result<Node, Error> {
    match (name, target, args) {
        (operators::CONDITIONAL, None, [_, _, _]) => {
            let parts = <[Node; 3]>::try_from(all(args, names)?);
            return parts.map(|parts| Node::If(Box::new(parts))).map_err(|_| unknown(name));
        }
        (operators::LOGICAL_AND | operators::LOGICAL_OR, None, [_, _]) => return logic(name, args, names),
        (operators::NOT_STRICTLY_FALSE, None, [a]) => return Ok(Node::NotFalse(Box::new(node(a, names)?))),
        (operators::INDEX | operators::OPT_INDEX, None, [_, _]) => {
            let parts = <[Node; 2]>::try_from(all(args, names)?);
            let optional = name == operators::OPT_INDEX;
            return parts.map(|parts| Node::Index(Box::new(parts), optional)).map_err(|_| unknown(name));
        }
        (operators::OPT_SELECT, None, [operand, field]) => {
            let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
                return Err(Error::Syntax("a field is selected by its name".to_owned()));
            };
            return Ok(selection(node(operand, names)?, field.inner(), false, true));
        }
        ("optMap" | "optFlatMap", Some(target), [variable, body]) => {
            return opt_map(target, variable, body, name == "optFlatMap", names);
        }
        (_, Some(target), [key, value, rest @ ..]) if !rest.is_empty() => {
            if let Some(fold) = of_pairs(name, target, [key, value], rest, names)? {
                return Ok(fold);
            }
        }
        _ => {}
    }
    function(name, target, args, names)
}

/// `&&` and `||` of any number of parts, which are no deeper than one of them.
fn logic(name: &str, args: &[IdedExpr], names: &mut Names) -> Result<Node, Error> {
    let (mut parts, mut rest) = (Vec::new(), args.iter().rev().collect::<Vec<_>>());
    while let Some(part) = rest.pop() {
        match &part.expr {
            Expr::Call(call) if call.func_name == name && call.target.is_none() => {
                rest.extend(call.args.iter().rev());
            }
            _ => parts.push(node(part, names)?),
        }
    }
    Ok(if name == operators::LOGICAL_AND { Node::And(parts) } else { Node::Or(parts) })
}

fn function(
    name: &str,
    target: Option<&IdedExpr>,
    args: &[IdedExpr],
    names: &mut Names,
) -> Result<Node, Error> {
    let Some(target) = target else {
        let entry =
            library::find(name.strip_prefix('.').unwrap_or(name), false).ok_or_else(|| unknown(name))?;
        return checked(entry, all(args, names)?);
    };
    if let Some(space) = qualified(target, names) {
        let full = format!("{space}.{name}");
        if let Some(format) = full.strip_prefix("format.").and_then(Format::named).filter(|_| args.is_empty())
        {
            return Ok(Node::Const(Value::Format(format)));
        }
        if let Some(entry) = library::find(&full, false) {
            return checked(entry, all(args, names)?);
        }
    }
    let entry = library::find(name, true).ok_or_else(|| unknown(name))?;
    let mut parts = vec![node(target, names)?];
    parts.extend(all(args, names)?);
    checked(entry, parts)
}

fn all(args: &[IdedExpr], names: &mut Names) -> Result<Vec<Node>, Error> {
    let mut nodes = Vec::with_capacity(args.len());
    for arg in args {
        nodes.push(node(arg, names)?);
    }
    Ok(nodes)
}

/// What is written out can be checked at once: regular expressions, durations, timestamps.
fn checked(entry: &'static Entry, args: Vec<Node>) -> Result<Node, Error> {
    let literal = |index: usize| match args.get(index) {
        Some(Node::Const(Value::String(text))) => Some(text.clone()),
        _ => None,
    };
    let invalid = |what: &str| Error::Syntax(format!("invalid {} argument: {what}", entry.name));
    match entry.name {
        "matches" | "find" | "findAll" => {
            if let Some(pattern) = literal(1) {
                text::compiled(&pattern).map_err(|error| invalid(&error.to_string()))?;
            }
        }
        "duration" if literal(0).is_some_and(|text| time::parse_duration(&text).is_none()) => {
            return Err(invalid("not a duration"));
        }
        "timestamp" if literal(0).is_some_and(|text| time::parse_timestamp(&text).is_none()) => {
            return Err(invalid("not a timestamp"));
        }
        _ => {}
    }
    Ok(Node::Call(entry, args))
}

/// `accumulator + [item]` appends in place; also where a condition guards it.
fn appending(step: Node, place: usize) -> Node {
    match step {
        Node::If(parts) => {
            let [condition, then, other] = *parts;
            Node::If(Box::new([condition, appending(then, place), other]))
        }
        Node::Call(entry, args) if entry.name == "_+_" => match <[Node; 2]>::try_from(args) {
            Ok([Node::Local(own), Node::List(mut items)])
                if own == place && items.len() == 1 && !items[0].1 =>
            {
                Node::Append(place, Box::new(items.remove(0).0))
            }
            Ok([Node::Local(own), Node::Const(Value::List(items))]) if own == place && items.len() == 1 => {
                Node::Append(place, Box::new(Node::Const(items[0].clone())))
            }
            Ok(args) => Node::Call(entry, args.into()),
            Err(args) => Node::Call(entry, args),
        },
        other => other,
    }
}

fn opt_map(
    target: &IdedExpr,
    variable: &IdedExpr,
    body: &IdedExpr,
    flat: bool,
    names: &mut Names,
) -> Result<Node, Error> {
    let Expr::Ident(variable) = &variable.expr else {
        return Err(Error::Syntax("argument must be a simple name".to_owned()));
    };
    let target = node(target, names)?;
    let place = names.all.len();
    names.all.push(variable.clone());
    let body = node(body, names);
    names.all.truncate(place);
    Ok(Node::OptMap(Box::new(OptMap { target, place, body: body?, flat })))
}

/// The macros with a key and a value (cel-go `ext/comprehensions.go`).
fn of_pairs(
    name: &str,
    target: &IdedExpr,
    variables: [&IdedExpr; 2],
    rest: &[IdedExpr],
    names: &mut Names,
) -> Result<Option<Node>, Error> {
    let (filter, body) = match (name, rest) {
        ("all" | "exists" | "existsOne" | "exists_one", [body]) => (None, body),
        ("transformList" | "transformMap" | "transformMapEntry", [body]) => (None, body),
        ("transformList" | "transformMap" | "transformMapEntry", [filter, body]) => (Some(filter), body),
        _ => return Ok(None),
    };
    let mut own = Vec::new();
    for variable in variables {
        match &variable.expr {
            Expr::Ident(name) => own.push(name.clone()),
            _ => return Err(Error::Syntax("argument is not an identifier".to_owned())),
        }
    }
    let range = node(target, names)?;
    let place = names.all.len();
    names.all.push("@result".to_owned());
    names.all.extend(own);
    let filter = filter.map(|filter| node(filter, names)).transpose();
    let body = node(body, names);
    names.all.truncate(place);
    let (filter, body) = (filter?, body?);
    let accumulator = || Node::Local(place);
    let always = || Node::Const(Value::Bool(true));
    let not = |node: Node| library::find("!_", false).map(|entry| Node::Call(entry, vec![node]));
    let missing = || unknown(name);
    let (init, condition, step, result) = match name {
        "all" => (
            Value::Bool(true),
            Node::NotFalse(Box::new(accumulator())),
            Node::And(vec![accumulator(), body]),
            accumulator(),
        ),
        "exists" => (
            Value::Bool(false),
            Node::NotFalse(Box::new(not(accumulator()).ok_or_else(missing)?)),
            Node::Or(vec![accumulator(), body]),
            accumulator(),
        ),
        "existsOne" | "exists_one" => {
            let entry = |name| library::find(name, false).ok_or_else(missing);
            let one = || Node::Const(Value::Int(1));
            let more = Node::Call(entry("_+_")?, vec![accumulator(), one()]);
            let step = Node::If(Box::new([body, more, accumulator()]));
            (Value::Int(0), always(), step, Node::Call(entry("_==_")?, vec![accumulator(), one()]))
        }
        _ => {
            let (init, step) = match name {
                "transformList" => (Vec::new().into(), Node::Append(place, Box::new(body))),
                "transformMap" => {
                    let entry = Box::new([Node::Local(place + 1), body]);
                    (Value::Map(Arc::default()), Node::Insert(place, entry))
                }
                _ => (Value::Map(Arc::default()), Node::Merge(place, Box::new(body))),
            };
            let step = match filter {
                Some(filter) => Node::If(Box::new([filter, step, accumulator()])),
                None => step,
            };
            (init, always(), step, accumulator())
        }
    };
    let fold = Fold { range, init: Node::Const(init), place, pairs: true, condition, step, result };
    Ok(Some(Node::Fold(Box::new(fold))))
}
