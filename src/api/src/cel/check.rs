//! Types of expressions, found before they are evaluated: fields that a schema does not have, operators on
//! types that they are not for. What is not known for sure is taken for anything, so a mistake that is told is
//! one; cel-go's checker (`checker/checker.go`), whose words these are, finds more.

use super::compile::{Fold, Node, Select};
use super::library::{Entry, TYPES};
use super::value::Value;
use super::{Program, escaped};
use crate::schema::{Cursor, Shape};

/// What is known of a value before it is there.
#[derive(Clone, Debug)]
pub enum Type<'a> {
    /// Nothing.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    /// One of the libraries' own types.
    Own(&'static str),
    List(Box<Type<'a>>),
    /// Of strings to these.
    Map(Box<Type<'a>>),
    /// An object with declared fields.
    Object(Cursor<'a>),
    Optional(Box<Type<'a>>),
    /// The variables of a policy.
    Variables(Vec<(&'a str, Type<'a>)>),
}

impl<'a> Type<'a> {
    /// What [`super::typed`] makes of a value of this schema; with `formats` the formats of strings have types.
    pub fn of(at: Cursor<'a>, formats: bool) -> Self {
        let format = at.node.limits.as_ref().and_then(|limits| limits.format.as_deref());
        match at.node.shape {
            Shape::String => match format.filter(|_| formats) {
                Some("duration") => Self::Duration,
                Some("date" | "date-time") => Self::Timestamp,
                Some("byte") => Self::Bytes,
                _ => Self::String,
            },
            Shape::Int32 | Shape::Int64 => Self::Int,
            Shape::Number if formats => Self::Double,
            Shape::Bool => Self::Bool,
            Shape::Array => Self::List(Box::new(at.item().map_or(Self::Dyn, |item| Self::of(item, formats)))),
            Shape::Map => Self::Map(Box::new(at.item().map_or(Self::Dyn, |item| Self::of(item, formats)))),
            Shape::Object if !at.node.fields.is_empty() && !at.node.preserve_unknown && !at.node.embedded => {
                Self::Object(at)
            }
            _ => Self::Dyn,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Dyn => "dyn".to_owned(),
            Self::Null => "null".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Int => "int".to_owned(),
            Self::Uint => "uint".to_owned(),
            Self::Double => "double".to_owned(),
            Self::String => "string".to_owned(),
            Self::Bytes => "bytes".to_owned(),
            Self::Duration => "google.protobuf.Duration".to_owned(),
            Self::Timestamp => "google.protobuf.Timestamp".to_owned(),
            Self::Own(name) => (*name).to_owned(),
            Self::List(item) => format!("list({})", item.name()),
            Self::Map(item) => format!("map(string, {})", item.name()),
            Self::Object(_) | Self::Variables(_) => "object".to_owned(),
            Self::Optional(inner) => format!("optional_type({})", inner.name()),
        }
    }

    fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    fn is_scalar(&self) -> bool {
        self.is_number() || matches!(self, Self::Bool | Self::String)
    }

    fn same(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl Program {
    /// The type of the expression, and what is certainly wrong with it where these variables are there.
    pub fn check<'a>(&self, declared: &[(&str, Type<'a>)]) -> (Type<'a>, Vec<String>) {
        let mut check = Check { declared, locals: Vec::new(), formats: false, wrong: Vec::new() };
        check.formats = declared.iter().any(|(name, _)| *name == "self");
        let found = check.node(&self.node);
        (found, check.wrong)
    }
}

struct Check<'c, 'a> {
    declared: &'c [(&'c str, Type<'a>)],
    locals: Vec<Type<'a>>,
    /// As for [`Type::of`].
    formats: bool,
    wrong: Vec<String>,
}

impl<'a> Check<'_, 'a> {
    fn tell(&mut self, what: String) -> Type<'a> {
        let what = format!("ERROR: <input>: {what}");
        if !self.wrong.contains(&what) {
            self.wrong.push(what);
        }
        Type::Dyn
    }

    fn no_overload(&mut self, function: &str, args: &[Type<'a>]) -> Type<'a> {
        let args: Vec<String> = args.iter().map(Type::name).collect();
        self.tell(format!("found no matching overload for '{function}' applied to '({})'", args.join(", ")))
    }

    fn node(&mut self, node: &Node) -> Type<'a> {
        match node {
            Node::Const(value) => constant(value),
            Node::Local(place) => self.locals.get(*place).cloned().unwrap_or(Type::Dyn),
            Node::Global(name) => match self.declared.iter().find(|(known, _)| **known == **name) {
                Some((_, found)) => found.clone(),
                None if TYPES.contains(&&**name) => Type::Own("type"),
                None => self.tell(format!("undeclared reference to '{name}' (in container '')")),
            },
            Node::Select(select) => self.select(select),
            Node::Index(parts, optional) => {
                let (operand, _) = (self.node(&parts[0]), self.node(&parts[1]));
                let found = match operand {
                    Type::List(item) | Type::Map(item) => *item,
                    other if other.is_scalar() => self.no_overload("_[_]", &[other, Type::Dyn]),
                    _ => Type::Dyn,
                };
                if *optional { Type::Optional(Box::new(found)) } else { found }
            }
            Node::And(parts) => self.logic("_&&_", parts),
            Node::Or(parts) => self.logic("_||_", parts),
            Node::If(parts) => {
                let [condition, then, other] = [&parts[0], &parts[1], &parts[2]].map(|part| self.node(part));
                if !condition.is_dyn() && !condition.same(&Type::Bool) {
                    return self.no_overload("_?_:_", &[condition, then, other]);
                }
                if then.same(&other) { then } else { Type::Dyn }
            }
            Node::NotFalse(part) => {
                self.node(part);
                Type::Bool
            }
            Node::Call(entry, args) => {
                let args: Vec<Type<'a>> = args.iter().map(|arg| self.node(arg)).collect();
                self.call(entry, &args)
            }
            Node::List(items) => {
                let items: Vec<Type<'a>> = items.iter().map(|(item, _)| self.node(item)).collect();
                Type::List(Box::new(items.into_iter().next().unwrap_or(Type::Dyn)))
            }
            Node::Map(entries) => {
                for (key, value, _) in entries {
                    self.node(key);
                    self.node(value);
                }
                Type::Map(Box::new(Type::Dyn))
            }
            Node::Message(name, fields) => {
                for (_, value, _) in fields {
                    self.node(value);
                }
                Type::Own(if &**name == "JSONPatch" { "JSONPatch" } else { "Object" })
            }
            Node::Append(_, item) => Type::List(Box::new(self.node(item))),
            Node::Insert(_, entry) => {
                self.node(&entry[0]);
                Type::Map(Box::new(self.node(&entry[1])))
            }
            Node::Merge(_, entries) => self.node(entries),
            Node::Fold(fold) => self.fold(fold),
            Node::OptMap(map) => {
                let inner = match self.node(&map.target) {
                    Type::Optional(inner) => *inner,
                    _ => Type::Dyn,
                };
                self.locals.push(inner);
                let found = self.node(&map.body);
                self.locals.pop();
                if map.flat { found } else { Type::Optional(Box::new(found)) }
            }
        }
    }

    fn select(&mut self, select: &Select) -> Type<'a> {
        let operand = self.node(&select.operand);
        let (operand, optional) = match operand {
            Type::Optional(inner) => (*inner, true),
            other => (other, select.optional),
        };
        let field = &select.field;
        let found = match &operand {
            Type::Object(at) => match field_of(*at, field) {
                Some(found) => Type::of(found, self.formats),
                None => self.tell(format!("undefined field '{field}'")),
            },
            Type::Variables(all) => match all.iter().rfind(|(name, _)| **name == **field) {
                Some((_, found)) => found.clone(),
                None => self.tell(format!("undefined field '{field}'")),
            },
            Type::Map(item) => (**item).clone(),
            other if other.is_scalar() || matches!(other, Type::List(_)) => {
                self.tell(format!("type '{}' does not support field selection", other.name()))
            }
            _ => Type::Dyn,
        };
        match (select.test, optional) {
            (true, _) => Type::Bool,
            (false, true) => Type::Optional(Box::new(found)),
            (false, false) => found,
        }
    }

    fn logic(&mut self, operator: &str, parts: &[Node]) -> Type<'a> {
        for part in parts {
            let found = self.node(part);
            if !found.is_dyn() && !found.same(&Type::Bool) {
                self.no_overload(operator, &[Type::Bool, found]);
            }
        }
        Type::Bool
    }

    fn call(&mut self, entry: &Entry, args: &[Type<'a>]) -> Type<'a> {
        match (entry.name, args) {
            ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [a, b]) => match arithmetic(entry.name, a, b) {
                Some(found) => found,
                None => self.no_overload(entry.name, args),
            },
            ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => {
                let ordered = a.is_dyn()
                    || b.is_dyn()
                    || (a.is_number() && b.is_number())
                    || (a.same(b)
                        && !matches!(a, Type::List(_) | Type::Map(_) | Type::Object(_) | Type::Null));
                if !ordered {
                    self.no_overload(entry.name, args);
                }
                Type::Bool
            }
            ("_==_" | "_!=_", [a, b]) => {
                if a.is_scalar() && b.is_scalar() && !a.same(b) {
                    self.no_overload(entry.name, args);
                }
                Type::Bool
            }
            ("!_", [a]) if !a.is_dyn() && !a.same(&Type::Bool) => self.no_overload("!_", args),
            ("@in", [_, b]) if b.is_scalar() => self.no_overload("@in", args),
            ("size", [a]) if a.is_number() || a.same(&Type::Bool) => self.no_overload("size", args),
            (name, [first, ..])
                if OF_STRINGS.contains(&name) && first.is_scalar() && !first.same(&Type::String) =>
            {
                self.no_overload(name, args)
            }
            ("value" | "orValue", [Type::Optional(inner), ..]) => (**inner).clone(),
            ("optional.of" | "optional.ofNonZeroValue", [inner]) => Type::Optional(Box::new(inner.clone())),
            ("dyn", _) => Type::Dyn,
            (name, _) => result(name),
        }
    }

    fn fold(&mut self, fold: &Fold) -> Type<'a> {
        let range = self.node(&fold.range);
        let accumulator = self.node(&fold.init);
        let (key, value) = match range {
            Type::List(item) => (Type::Int, *item),
            Type::Map(item) => (Type::String, *item),
            other if other.is_scalar() => {
                let kind = other.name();
                self.tell(format!(
                    "expression of type '{kind}' cannot be range of a comprehension (must be list, map, or dynamic)"
                ));
                (Type::Dyn, Type::Dyn)
            }
            _ => (Type::Dyn, Type::Dyn),
        };
        let is_map = key.same(&Type::String);
        let depth = self.locals.len();
        self.locals.push(accumulator);
        match fold.pairs {
            true => self.locals.extend([key, value]),
            false => self.locals.push(if is_map { key } else { value }),
        }
        self.node(&fold.condition);
        let step = self.node(&fold.step);
        if !step.is_dyn() {
            self.locals[depth] = step;
        }
        let result = self.node(&fold.result);
        self.locals.truncate(depth);
        result
    }
}

/// A declared field by its name as rules say it.
fn field_of<'a>(at: Cursor<'a>, name: &str) -> Option<Cursor<'a>> {
    if let Some((_, found)) = at.field(name) {
        return Some(found);
    }
    let own = at.node.fields.iter().find(|field| escaped(&field.name) == name)?;
    at.field(&own.name).map(|(_, found)| found)
}

fn constant<'a>(value: &Value) -> Type<'a> {
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Uint(_) => Type::Uint,
        Value::Double(_) => Type::Double,
        Value::String(_) => Type::String,
        Value::Bytes(_) => Type::Bytes,
        Value::List(items) => Type::List(Box::new(items.first().map_or(Type::Dyn, constant))),
        Value::Map(_) => Type::Map(Box::new(Type::Dyn)),
        Value::Type(_) => Type::Own("type"),
        Value::Format(_) => Type::Own("kubernetes.NamedFormat"),
        _ => Type::Dyn,
    }
}

/// What comes out; `None`: the operator is not for these types.
fn arithmetic<'a>(operator: &str, a: &Type<'a>, b: &Type<'a>) -> Option<Type<'a>> {
    Some(match (operator, a, b) {
        (_, Type::Dyn, _) | (_, _, Type::Dyn) => Type::Dyn,
        ("_%_", Type::Double, _) => return None,
        (_, a, b) if a.is_number() && a.same(b) => a.clone(),
        ("_+_", Type::String, Type::String) => Type::String,
        ("_+_", Type::Bytes, Type::Bytes) => Type::Bytes,
        ("_+_", Type::List(a), Type::List(_)) => Type::List(a.clone()),
        ("_+_" | "_-_", Type::Duration, Type::Duration) | ("_-_", Type::Timestamp, Type::Timestamp) => {
            Type::Duration
        }
        ("_+_", Type::Duration, Type::Timestamp) | ("_+_" | "_-_", Type::Timestamp, Type::Duration) => {
            Type::Timestamp
        }
        _ => return None,
    })
}

/// Functions whose receiver can only be a string.
const OF_STRINGS: [&str; 13] = [
    "matches",
    "find",
    "findAll",
    "contains",
    "startsWith",
    "endsWith",
    "charAt",
    "substring",
    "lowerAscii",
    "upperAscii",
    "trim",
    "replace",
    "split",
];

/// The type of what a function gives, where that is always the same.
fn result<'a>(function: &str) -> Type<'a> {
    match function {
        "!_"
        | "@in"
        | "bool"
        | "matches"
        | "contains"
        | "startsWith"
        | "endsWith"
        | "isSorted"
        | "hasValue"
        | "isURL"
        | "isIP"
        | "ip.isCanonical"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast"
        | "isCIDR"
        | "containsIP"
        | "containsCIDR"
        | "isQuantity"
        | "isInteger"
        | "isLessThan"
        | "isGreaterThan"
        | "isSemver"
        | "isImage"
        | "containsDigest"
        | "sets.contains"
        | "sets.equivalent"
        | "sets.intersects"
        | "allowed"
        | "errored" => Type::Bool,
        "size" | "int" | "indexOf" | "lastIndexOf" | "family" | "prefixLength" | "sign" | "asInteger"
        | "compareTo" | "major" | "minor" | "patch" | "getFullYear" | "getMonth" | "getDayOfYear"
        | "getDayOfMonth" | "getDate" | "getDayOfWeek" | "getHours" | "getMinutes" | "getSeconds"
        | "getMilliseconds" => Type::Int,
        "uint" => Type::Uint,
        "double" | "asApproximateFloat" => Type::Double,
        "string"
        | "find"
        | "charAt"
        | "substring"
        | "lowerAscii"
        | "upperAscii"
        | "trim"
        | "replace"
        | "join"
        | "format"
        | "strings.quote"
        | "jsonpatch.escapeKey"
        | "getScheme"
        | "getHost"
        | "getHostname"
        | "getPort"
        | "getEscapedPath"
        | "reason"
        | "registry"
        | "repository"
        | "tag"
        | "digest"
        | "identifier"
        | "error" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "findAll" | "split" => Type::List(Box::new(Type::String)),
        "quantity" => Type::Own("kubernetes.Quantity"),
        "url" => Type::Own("kubernetes.URL"),
        "semver" => Type::Own("kubernetes.Semver"),
        "cidr" | "masked" => Type::Own("net.CIDR"),
        _ => Type::Dyn,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::SchemaRef;

    #[test]
    fn what_is_certainly_wrong_is_told() {
        let schema = SchemaRef::from_openapi(&json!({"type": "object", "properties": {
            "n": {"type": "integer"}, "s": {"type": "string"}, "b": {"type": "boolean"}, "f": {"type": "number"},
            "my-name": {"type": "string"}, "any": {"x-kubernetes-preserve-unknown-fields": true},
            "for": {"type": "string", "format": "duration"}, "q": {"x-kubernetes-int-or-string": true},
            "l": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
            "m": {"type": "object", "additionalProperties": {"type": "integer"}}}}))
        .unwrap();
        let declared =
            [("self", Type::of(schema.cursor(), true)), ("oldSelf", Type::of(schema.cursor(), true))];
        for (source, wrong) in [
            ("self.n > 1 && self.s == 'x' && !self.b && self.f < 1 && self.my__dash__name != ''", ""),
            ("self.l.all(x, x.k.startsWith('a')) && self.m.all(k, self.m[k] > 0)", ""),
            ("self.any.what.ever == 1 && self.q == 1 || self.q == 'x'", ""),
            ("self.__for__ < duration('1h') && self.l.map(x, x.k).join(',') != ''", ""),
            ("self.l.filter(x, x.k == 'a').size() > self.n && self.l.exists_one(x, x.k == 'a')", ""),
            ("(has(self.n) ? self.n : 0) + 1 > 1 && self.?n.orValue(1) == 1", ""),
            ("self.l.transformList(i, v, v.k)[0] == 'a' && type(self.n) == int", ""),
            ("quantity(self.s).isLessThan(quantity('1')) && self.s in ['a', 'b'] && self == oldSelf", ""),
            ("self.m.size() + self.n * 2 - 1 > 0 && string(self.n) + self.s != ''", ""),
            ("self.nothing == 1", "undefined field 'nothing'"),
            ("has(self.nothing)", "undefined field 'nothing'"),
            ("self.l.all(x, x.wrong == '')", "undefined field 'wrong'"),
            ("self.n > 'a'", "found no matching overload for '_>_' applied to '(int, string)'"),
            ("self.n + self.s == ''", "found no matching overload for '_+_' applied to '(int, string)'"),
            ("self.n == self.s", "found no matching overload for '_==_' applied to '(int, string)'"),
            (
                "self.n.startsWith('a')",
                "found no matching overload for 'startsWith' applied to '(int, string)'",
            ),
            ("self.s && self.b", "found no matching overload for '_&&_' applied to '(bool, string)'"),
            ("self.n.all(x, x > 0)", "expression of type 'int' cannot be range of a comprehension"),
            ("self.s.length == 1", "type 'string' does not support field selection"),
            ("this.n == 1", "undeclared reference to 'this' (in container '')"),
            ("self.__for__ > 5", "applied to '(google.protobuf.Duration, int)'"),
        ] {
            let program = Program::compile(source).expect(source);
            let (found, mistakes) = program.check(&declared);
            if wrong.is_empty() {
                assert!(mistakes.is_empty(), "{source}: {mistakes:?}");
                assert!(matches!(found, Type::Bool), "{source}: {found:?}");
            } else {
                assert!(mistakes.len() == 1 && mistakes[0].contains(wrong), "{source}: {mistakes:?}");
            }
        }
    }
}
