//! The Common Expression Language, as validation rules and match conditions use it. Wraps the
//! interpreter: what it cannot do is told apart from what an expression gets wrong, so that a rule
//! beyond its abilities is skipped and never refuses a valid object.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::extractors::This;
use cel::objects::{Key, Map};
use cel::{Context, Env, ExecutionError};
use regex::Regex;

use crate::schema::{Cursor, Shape};

pub use cel::Value;

/// Why an expression gave no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not an expression that can be read here.
    #[error("compilation failed: {0}")]
    Syntax(String),
    /// It uses a function or type that is not available here.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// It went wrong on these values.
    #[error("{0}")]
    Failed(String),
}

/// Functions and macros of the standard and of Kubernetes' string, list and math libraries.
fn env() -> &'static Arc<Env> {
    // An immutable table, made when the first expression is compiled.
    static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
        let mut env = Env::stdlib();
        // Each can only clash with itself.
        let _ = env.add_extension(cel::extensions::strings);
        let _ = env.add_extension(cel::extensions::lists);
        let _ = env.add_extension(cel::extensions::math);
        Arc::new(env)
    });
    &ENV
}

/// How deep an expression may be at most. The interpreter goes down step by step; nothing that people write comes
/// near (upstream's parser stops at 250 levels of nesting).
const MOST_STEPS: usize = 1000;

/// How deep it may be: every operator, selection and bracket outside of strings could be one level.
fn steps(source: &str) -> usize {
    let (mut steps, mut quote, mut escaped) = (0, None, false);
    for c in source.chars() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None => steps += usize::from(".([{!?:-+*/%<>=&|".contains(c)),
        }
    }
    steps
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program(cel::Program);

impl Program {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`Error::Syntax`].
    pub fn compile(source: &str) -> Result<Self, Error> {
        if steps(source) > MOST_STEPS {
            return Err(Error::Syntax(format!("the expression has more than {MOST_STEPS} steps")));
        }
        env().compile(source).map(Self).map_err(|error| Error::Syntax(error.to_string()))
    }

    /// The value of the expression.
    ///
    /// # Errors
    /// [`Error::Unsupported`] and [`Error::Failed`].
    pub fn evaluate(&self, variables: &[(&str, Value)]) -> Result<Value, Error> {
        let mut context = Context::with_env(env().clone());
        for (name, value) in variables {
            context.add_variable_from_value(*name, value.clone());
        }
        add_functions(&mut context);
        self.0.execute(&context).map_err(|error| match &error {
            ExecutionError::UndeclaredReference(_)
            | ExecutionError::NoSuchOverload(_)
            | ExecutionError::NotSupportedAsMethod { .. }
            | ExecutionError::UnsupportedTargetType { .. }
            | ExecutionError::UnexpectedType { .. } => Error::Unsupported(error.to_string()),
            _ => Error::Failed(error.to_string()),
        })
    }

    /// The truth of the expression.
    ///
    /// # Errors
    /// As [`Program::evaluate`]; also when the value is no bool.
    pub fn is_true(&self, variables: &[(&str, Value)]) -> Result<bool, Error> {
        match self.evaluate(variables)? {
            Value::Bool(truth) => Ok(truth),
            _ => Err(Error::Failed("cel expression must evaluate to a bool".to_owned())),
        }
    }
}

fn pattern(function: &str, text: &str) -> Result<Regex, ExecutionError> {
    let ascii = regex::RegexBuilder::new(text).unicode(false).build();
    ascii.or_else(|_| Regex::new(text)).map_err(|error| ExecutionError::function_error(function, error))
}

fn add_functions(context: &mut Context<'_, '_>) {
    // The names are free: the interpreter is built without its own regular expressions.
    let _ = context.add_function("matches", |This(text): This<Arc<String>>, regex: Arc<String>| {
        pattern("matches", &regex).map(|regex| regex.is_match(&text))
    });
    let _ = context.add_function("find", |This(text): This<Arc<String>>, regex: Arc<String>| {
        pattern("find", &regex).map(|regex| {
            let found = regex.find(&text).map_or("", |found| found.as_str());
            Value::String(Arc::new(found.to_owned()))
        })
    });
}

/// A value without a schema: everything as it is written.
pub fn dynamic(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(*truth),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::String(Arc::new(text.clone())),
        serde_json::Value::Array(items) => Value::List(Arc::new(items.iter().map(dynamic).collect())),
        serde_json::Value::Object(fields) => map(fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), dynamic(value)))),
    }
}

fn map(entries: impl Iterator<Item = (String, Value)>) -> Value {
    let map: HashMap<Key, Value> = entries.map(|(name, value)| (Key::from(name), value)).collect();
    Value::Map(Map { map: Arc::new(map) })
}

/// A value as a rule of its schema sees it: declared fields only, by their escaped names.
pub fn typed(at: Cursor<'_>, json: &serde_json::Value) -> Value {
    match (at.node.shape, json) {
        (Shape::Object, serde_json::Value::Object(fields)) => {
            map(fields.iter().filter(|(_, value)| !value.is_null()).filter_map(|(name, value)| {
                let (_, child) = at.field(name)?;
                Some((escaped(name), typed(child, value)))
            }))
        }
        (Shape::Map, serde_json::Value::Object(fields)) => match at.item() {
            Some(item) => map(fields.iter().map(|(name, value)| (name.clone(), typed(item, value)))),
            None => dynamic(json),
        },
        (Shape::Array, serde_json::Value::Array(items)) => match at.item() {
            Some(item) => Value::List(Arc::new(items.iter().map(|value| typed(item, value)).collect())),
            None => dynamic(json),
        },
        (Shape::Number, serde_json::Value::Number(number)) => {
            Value::Float(number.as_f64().unwrap_or(f64::NAN))
        }
        _ => dynamic(json),
    }
}

const RESERVED: [&str; 20] = [
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
];

/// A property's name as an identifier (`apiserver/schema/cel/model`, `Escape`).
fn escaped(name: &str) -> String {
    if RESERVED.contains(&name) || name == "while" {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn eval(source: &str, this: serde_json::Value) -> Result<bool, Error> {
        Program::compile(source)?.is_true(&[("self", dynamic(&this))])
    }

    #[test]
    fn what_goes_too_deep_is_refused() {
        for deep in
            [format!("self{}", ".a".repeat(20_000)), "[".repeat(2000), format!("{}true", "!".repeat(2000))]
        {
            assert!(matches!(Program::compile(&deep), Err(Error::Syntax(_))));
        }
        let long = format!("self.a == '{}'", "(".repeat(5000));
        assert_eq!(eval(&long, json!({ "a": "(".repeat(5000) })), Ok(true));
    }

    #[test]
    fn expressions() {
        for (source, this, expected) in [
            ("self.a > 1 && self.b == 'x'", json!({"a": 2, "b": "x"}), true),
            ("!has(self.a) || self.a.size() < 3", json!({}), true),
            ("self.all(x, x.n > 0)", json!([{"n": 1}, {"n": 0}]), false),
            ("self.exists_one(x, x == 1)", json!([1, 2]), true),
            ("self.matches('^[a-z]+$')", json!("abc"), true),
            ("self.find('[0-9]+') == '12'", json!("ab12"), true),
            ("self.startsWith('a') && self.lowerAscii() == 'abc'", json!("aBC"), true),
            ("size(self) == 2 && 'b' in self", json!({"a": 1, "b": 2}), true),
            ("self.split('.').size() == 2", json!("a.b"), true),
            ("int(self) >= 10", json!("12"), true),
        ] {
            assert_eq!(eval(source, this), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_is_beyond_us_is_told_apart() {
        assert!(matches!(
            eval("quantity(self).isGreaterThan(quantity('1'))", json!("2")),
            Err(Error::Unsupported(_))
        ));
        assert!(matches!(eval("self.missing == 1", json!({})), Err(Error::Failed(_))));
        assert!(matches!(eval("self ==", json!({})), Err(Error::Syntax(_))));
        assert!(matches!(eval("self", json!(1)), Err(Error::Failed(_))));
    }

    #[test]
    fn names_are_escaped() {
        for (name, expected) in
            [("a", "a"), ("a-b", "a__dash__b"), ("namespace", "__namespace__"), ("a__b", "a__underscores__b")]
        {
            assert_eq!(escaped(name), expected);
        }
    }
}
