//! The Common Expression Language, as validation rules, match conditions and admission policies use it. The
//! parser is the crate `cel`'s; the evaluation is here, because every step of it has to be paid for as upstream
//! counts (no expression can burn a core) and because of Kubernetes' own types. What is not available here is
//! told apart from what an expression gets wrong. Nothing here does I/O.

mod authz;
mod check;
mod compile;
mod eval;
mod formats;
mod images;
mod library;
mod lists;
mod meter;
mod network;
mod operators;
mod scan;
#[cfg(test)]
mod tests;
mod text;
mod time;
mod value;
mod versions;

use std::sync::Arc;

use cel::parser::Parser;

use crate::schema::{Cursor, Shape};

pub use authz::{Authorizer, Check, Decision, Question};
pub use check::Type;
pub use eval::{Scope, Variables};
pub use meter::{Budget, PER_CALL};
pub use value::{Key, Map, Message, Value};

/// The nanoseconds of a duration as Go's `time.ParseDuration` takes it (`1h30m`, `-1.5s`).
pub fn duration(text: &str) -> Option<i64> {
    time::parse_duration(text)
}

/// Why an expression gave no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not an expression that can be read here.
    #[error("compilation failed: {0}")]
    Syntax(String),
    /// It uses a function, type or variable that is not available here.
    #[error("compilation failed: {0}")]
    Unsupported(String),
    /// It went wrong on these values.
    #[error("{0}")]
    Failed(String),
    /// It alone costs more than one evaluation may.
    #[error("operation cancelled: actual cost limit exceeded")]
    Exceeded,
    /// What may be spent together is spent.
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    Budget,
}

impl Error {
    /// Nothing more is to be evaluated after this.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Exceeded | Self::Budget)
    }
}

/// What ends an evaluation early.
#[derive(Clone, Debug)]
enum Stop {
    Failed(Arc<str>),
    /// A name that nothing has.
    Unknown(Arc<str>),
    /// The limit of costs: nothing forgives it.
    Exceeded,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(why) | Self::Unknown(why) => f.write_str(why),
            Self::Exceeded => write!(f, "{}", Error::Exceeded),
        }
    }
}

impl Stop {
    fn failed(why: impl ToString) -> Self {
        Self::Failed(why.to_string().into())
    }

    fn no_overload() -> Self {
        Self::failed("no such overload")
    }
}

/// What a step comes to.
type Outcome = Result<Value, Stop>;

fn no_overload() -> Outcome {
    Err(Stop::no_overload())
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    node: compile::Node,
}

impl Program {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`Error::Syntax`] and [`Error::Unsupported`].
    pub fn compile(source: &str) -> Result<Self, Error> {
        scan::check(source).map_err(Error::Syntax)?;
        let parser = Parser::new().enable_optional_syntax(true);
        let tree = parser.parse(source).map_err(syntax)?;
        compile::compile(&tree).map(|node| Self { node })
    }

    /// The value of the expression. What that costs is taken from the budget, whatever comes out.
    ///
    /// # Errors
    /// All but [`Error::Syntax`].
    pub fn evaluate(&self, scope: Scope<'_>, budget: &mut Budget) -> Result<Value, Error> {
        let mut meter = budget.meter();
        let outcome = eval::evaluate(&self.node, scope, &mut meter);
        budget.take(&meter)?;
        outcome.map_err(|stop| match stop {
            Stop::Failed(why) => Error::Failed(why.to_string()),
            Stop::Unknown(why) => Error::Unsupported(why.to_string()),
            Stop::Exceeded => Error::Exceeded,
        })
    }

    /// The truth of the expression.
    ///
    /// # Errors
    /// As [`Program::evaluate`]; also when the value is no bool.
    pub fn is_true(&self, scope: Scope<'_>, budget: &mut Budget) -> Result<bool, Error> {
        match self.evaluate(scope, budget)? {
            Value::Bool(truth) => Ok(truth),
            _ => Err(Error::Failed("cel expression must evaluate to a bool".to_owned())),
        }
    }
}

/// The first mistakes that the parser found; there may be one in every character, and each repeats its line.
fn syntax(errors: cel::ParseErrors) -> Error {
    const SHOWN: usize = 4;
    const LENGTH: usize = 2000;
    let mut text = String::new();
    for mut error in errors.errors.into_iter().take(SHOWN) {
        error.source_info = error.source_info.filter(|info| info.source.len() < LENGTH / SHOWN);
        let separator = if text.is_empty() { "" } else { "\n" };
        text.push_str(&format!("{separator}{error}"));
    }
    if let Some((end, _)) = text.char_indices().nth(LENGTH) {
        text.truncate(end);
    }
    Error::Syntax(text)
}

/// A value without a schema: everything as it is written.
pub fn dynamic(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(*truth),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(dynamic).collect::<Vec<Value>>().into(),
        serde_json::Value::Object(fields) => Value::map(
            fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name.clone(), dynamic(value))),
        ),
    }
}

/// A value as a rule of its schema sees it: declared fields only, by their escaped names; strings of a format
/// that has a type of its own are of that type.
pub fn typed(at: Cursor<'_>, json: &serde_json::Value) -> Value {
    match (at.node.shape, json) {
        (Shape::Object, serde_json::Value::Object(fields)) => {
            Value::map(fields.iter().filter(|(_, value)| !value.is_null()).filter_map(|(name, value)| {
                let (_, child) = at.field(name)?;
                Some((escaped(name), typed(child, value)))
            }))
        }
        (Shape::Map, serde_json::Value::Object(fields)) => match at.item() {
            Some(item) => Value::map(fields.iter().map(|(name, value)| (name.clone(), typed(item, value)))),
            None => dynamic(json),
        },
        (Shape::Array, serde_json::Value::Array(items)) => match at.item() {
            Some(item) => items.iter().map(|value| typed(item, value)).collect::<Vec<Value>>().into(),
            None => dynamic(json),
        },
        (Shape::Number, serde_json::Value::Number(number)) => {
            Value::Double(number.as_f64().unwrap_or(f64::NAN))
        }
        (_, serde_json::Value::String(text)) => {
            let format = at.node.limits.as_ref().and_then(|limits| limits.format.as_deref());
            format.and_then(|format| of_format(format, text)).unwrap_or_else(|| text.as_str().into())
        }
        _ => dynamic(json),
    }
}

fn of_format(format: &str, text: &str) -> Option<Value> {
    use base64::Engine as _;
    match format {
        "duration" => time::parse_duration(text).map(Value::Duration),
        "date-time" => time::parse_timestamp(text).map(Value::Timestamp),
        "date" => time::parse_timestamp(&format!("{text}T00:00:00Z")).map(Value::Timestamp),
        "byte" => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
            Some(Value::Bytes(bytes.into()))
        }
        _ => None,
    }
}

/// Words that are no names in CEL.
pub(crate) const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as an identifier (`apiserver/schema/cel/model`, `Escape`).
fn escaped(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/', '$']) && !name.contains("__") {
        return name.to_owned();
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}
