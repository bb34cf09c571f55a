//! Label and field selectors with the grammar of apimachinery's `labels` and
//! `fields` packages.

use std::fmt;

use serde_json::Value;

use crate::names;

/// A selector that cannot be parsed; the message is what upstream answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// What a label requirement asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
    /// Written `=` or `==`; same as `In` with one value.
    Equals,
    /// Written `!=`; same as `NotIn` with one value.
    NotEquals,
}

/// One requirement; all of a selector's must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub op: Operator,
    pub values: Vec<String>,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        match self.op {
            Operator::In | Operator::Equals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = |s: Option<&str>| s.and_then(|s| s.parse::<i64>().ok());
                match (number(value), number(self.values.first().map(String::as_str))) {
                    (Some(a), Some(b)) if self.op == Operator::GreaterThan => a > b,
                    (Some(a), Some(b)) => a < b,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values = self.values.clone();
        values.sort();
        let list = values.join(",");
        match self.op {
            Operator::Exists => write!(f, "{}", self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
            Operator::Equals => write!(f, "{}={list}", self.key),
            Operator::NotEquals => write!(f, "{}!={list}", self.key),
            Operator::GreaterThan => write!(f, "{}>{list}", self.key),
            Operator::LessThan => write!(f, "{}<{list}", self.key),
            Operator::In => write!(f, "{} in ({list})", self.key),
            Operator::NotIn => write!(f, "{} notin ({list})", self.key),
        }
    }
}

/// A parsed label selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    /// Made from a missing `metav1.LabelSelector`: matches nothing.
    nothing: bool,
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            write!(f, "{}{r}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> &'a str {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let len = match self.rest.as_bytes() {
            [] => 0,
            [b'=', b'=', ..] | [b'!', b'=', ..] => 2,
            [b'=' | b'!' | b'(' | b')' | b',' | b'<' | b'>', ..] => 1,
            _ => self.rest.find(|c: char| " \t\r\n=!(),<>".contains(c)).unwrap_or(self.rest.len()),
        };
        let (token, rest) = self.rest.split_at(len);
        self.rest = rest;
        token
    }

    fn peek(&self) -> &'a str {
        Lexer { rest: self.rest }.next()
    }
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !token.starts_with(['=', '!', '(', ')', ',', '<', '>'])
}

fn check(r: Requirement) -> Result<Requirement, SelectorError> {
    if let Some(e) = names::qualified_name(&r.key).first() {
        return Err(SelectorError(format!("key: Invalid value: {:?}: {e}", r.key)));
    }
    for v in &r.values {
        if let Some(e) = names::label_value(v).first() {
            return Err(SelectorError(format!("values[0][{}]: Invalid value: {v:?}: {e}", r.key)));
        }
    }
    if matches!(r.op, Operator::GreaterThan | Operator::LessThan)
        && r.values.first().is_none_or(|v| v.parse::<i64>().is_err())
    {
        return Err(SelectorError(format!(
            "values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
            r.values.first().map_or("", String::as_str)
        )));
    }
    Ok(r)
}

fn unparsable(what: String) -> SelectorError {
    SelectorError(format!("unable to parse requirement: {what}"))
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses `a=b,c!=d,e in (f,g),h,!i,j>3`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut lex = Lexer { rest: text };
        let mut requirements = Vec::new();
        if lex.peek().is_empty() {
            return Ok(Self::default());
        }
        loop {
            requirements.push(check(Self::requirement(&mut lex).map_err(unparsable)?)?);
            match lex.next() {
                "" => break,
                "," => {
                    if !is_word(lex.peek()) && lex.peek() != "!" {
                        return Err(SelectorError(format!(
                            "found '{}', expected: identifier after ','",
                            lex.peek()
                        )));
                    }
                }
                other => {
                    return Err(SelectorError(format!("found '{other}', expected: ',' or 'end of string'")));
                }
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    fn requirement(lex: &mut Lexer<'_>) -> Result<Requirement, String> {
        let make = |key: &str, op, values| Requirement { key: key.to_string(), op, values };
        let first = lex.next();
        if first == "!" {
            let key = lex.next();
            if !is_word(key) {
                return Err(format!("found '{key}', expected: identifier"));
            }
            return Ok(make(key, Operator::DoesNotExist, Vec::new()));
        }
        if !is_word(first) {
            return Err(format!("found '{first}', expected: !, identifier, or 'end of string'"));
        }
        if matches!(lex.peek(), "" | ",") {
            return Ok(make(first, Operator::Exists, Vec::new()));
        }
        let op = match lex.next() {
            "=" | "==" => Operator::Equals,
            "!=" => Operator::NotEquals,
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = if matches!(op, Operator::In | Operator::NotIn) {
            Self::values(lex)?
        } else if matches!(lex.peek(), "" | ",") {
            vec![String::new()]
        } else {
            let v = lex.next();
            if !is_word(v) {
                return Err(format!("found '{v}', expected: identifier"));
            }
            vec![v.to_string()]
        };
        Ok(make(first, op, values))
    }

    fn values(lex: &mut Lexer<'_>) -> Result<Vec<String>, String> {
        let open = lex.next();
        if open != "(" {
            return Err(format!("found '{open}' expected: '('"));
        }
        let mut values = Vec::new();
        let mut pending = String::new();
        loop {
            match lex.next() {
                ")" => {
                    values.push(pending);
                    values.sort();
                    return Ok(values);
                }
                "," => values.push(std::mem::take(&mut pending)),
                word if is_word(word) && pending.is_empty() => pending = word.to_string(),
                other => return Err(format!("found '{other}', expected: ',', ')' or identifier")),
            }
        }
    }

    /// From a `metav1.LabelSelector`: null matches nothing, `{}` everything.
    pub fn from_object(selector: &Value) -> Result<Self, SelectorError> {
        let Some(map) = selector.as_object() else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        if let Some(labels) = map.get("matchLabels").and_then(Value::as_object) {
            for (k, v) in labels {
                let values = vec![v.as_str().unwrap_or_default().to_string()];
                requirements.push(check(Requirement { key: k.clone(), op: Operator::Equals, values })?);
            }
        }
        let expressions = map.get("matchExpressions").and_then(Value::as_array).map(Vec::as_slice);
        for e in expressions.unwrap_or_default() {
            let text = |f: &str| e.get(f).and_then(Value::as_str).unwrap_or_default().to_string();
            let op = match text("operator").as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("{other:?} is not a valid label selector operator")));
                }
            };
            let values = e.get("values").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let values = values.iter().filter_map(Value::as_str).map(str::to_string).collect();
            requirements.push(check(Requirement { key: text("key"), op, values })?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From a plain map of labels (`spec.selector` of a Service).
    pub fn from_map(labels: &Value) -> Result<Self, SelectorError> {
        Self::from_object(&serde_json::json!({"matchLabels": labels}))
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// `lookup` gives the value of a label.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(lookup(&r.key)))
    }

    /// Matches the labels of an object.
    pub fn matches_object(&self, obj: &Value) -> bool {
        self.matches(|k| crate::object::label(obj, k))
    }

    /// Matches a JSON map of labels; null is empty.
    pub fn matches_labels(&self, labels: &Value) -> bool {
        self.matches(|k| labels.get(k).and_then(Value::as_str))
    }
}

/// What a field requirement asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldOperator {
    Equals,
    NotEquals,
}

/// `spec.nodeName=a`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// Dotted, without a leading dot.
    pub path: String,
    pub op: FieldOperator,
    pub value: String,
}

/// A parsed field selector; which paths a kind supports is the registry's matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_terms(text).into_iter().filter(|p| !p.is_empty()) {
            let (path, op, raw) = split_operator(part).ok_or_else(|| {
                SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'"))
            })?;
            let value = unescape(raw).ok_or_else(|| {
                SelectorError(format!("invalid field selector: invalid escape sequence: {raw}"))
            })?;
            requirements.push(FieldRequirement { path: path.to_string(), op, value });
        }
        Ok(Self { requirements })
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// `lookup` gives a field's value as text; empty when unset.
    pub fn matches(&self, lookup: impl Fn(&str) -> Option<String>) -> bool {
        self.requirements.iter().all(|r| {
            let equal = lookup(&r.path).unwrap_or_default() == r.value;
            equal == (r.op == FieldOperator::Equals)
        })
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let op = if r.op == FieldOperator::Equals { "=" } else { "!=" };
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{}{}{op}{value}", if i == 0 { "" } else { "," }, r.path)?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn split_operator(term: &str) -> Option<(&str, FieldOperator, &str)> {
    for (i, _) in term.char_indices() {
        let rest = &term[i..];
        for (text, op) in
            [("!=", FieldOperator::NotEquals), ("==", FieldOperator::Equals), ("=", FieldOperator::Equals)]
        {
            if let Some(value) = rest.strip_prefix(text) {
                return Some((&term[..i], op, value));
            }
        }
    }
    None
}

fn unescape(s: &str) -> Option<String> {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                _ => return None,
            },
            '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web,db)", true),
            ("app notin (web)", false),
            ("missing notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!nope", true),
            ("n>4", true),
            ("n<4", false),
            ("app = web , tier in ( front )", true),
            ("nope!=x", true),
            ("app=", false),
        ];
        for (text, want) in cases {
            let s = LabelSelector::parse(text).unwrap();
            assert_eq!(s.matches_labels(&labels), want, "{text}");
            assert_eq!(LabelSelector::parse(&s.to_string()).unwrap(), s, "{text}");
        }
        for bad in ["a b", "a in b", ",", "a,", "=x", "a in (b", "a>x", "a=b=c", "a!!b", "@"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn from_object() {
        let labels = json!({"app": "web"});
        let m = |s: Value| LabelSelector::from_object(&s).unwrap().matches_labels(&labels);
        assert!(!m(Value::Null));
        assert!(m(json!({})));
        assert!(m(json!({"matchLabels": {"app": "web"}})));
        assert!(!m(json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]})));
        assert!(
            LabelSelector::from_object(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]}))
                .is_err()
        );
    }

    #[test]
    fn fields() {
        let s = FieldSelector::parse("metadata.name=a,spec.nodeName!=b,x==c\\,d").unwrap();
        assert_eq!(s.requirements.len(), 3);
        assert_eq!(s.requirements[2].value, "c,d");
        assert!(s.matches(|p| {
            Some(
                match p {
                    "metadata.name" => "a",
                    "x" => "c,d",
                    _ => "",
                }
                .to_string(),
            )
        }));
        assert!(FieldSelector::parse("nothing").is_err());
    }
}
