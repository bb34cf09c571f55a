//! The JSONPath subset that CRDs' columns, scale paths and selectable fields use:
//! `.a.b`, `['a']`, `[0]`, `[-1]`, `[*]` and `[?(@.a=="b")]`.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Index(i64),
    All,
    Filter { path: Vec<Step>, equal: bool, value: Option<Value> },
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

/// The path is not of the supported form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unsupported JSONPath {0:?}")]
pub struct BadPath(pub String);

impl JsonPath {
    pub fn parse(text: &str) -> Result<Self, BadPath> {
        let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        steps(inner).map(JsonPath).ok_or_else(|| BadPath(text.to_string()))
    }

    /// All values at the path.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        walk(&self.0, root)
    }
}

fn steps(text: &str) -> Option<Vec<Step>> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(r) = rest.strip_prefix('.') {
            let mut key = String::new();
            let mut chars = r.char_indices();
            let mut end = r.len();
            while let Some((i, c)) = chars.next() {
                match c {
                    '\\' => key.extend(chars.next().map(|(_, c)| c)),
                    '.' | '[' => {
                        end = i;
                        break;
                    }
                    c => key.push(c),
                }
            }
            rest = &r[end..];
            match key.as_str() {
                "" if rest.starts_with('[') => {}
                "" => return None,
                "*" => out.push(Step::All),
                _ => out.push(Step::Key(key)),
            }
            continue;
        }
        let r = rest.strip_prefix('[')?;
        let end = if r.starts_with("?(") { r.find(")]")? + 1 } else { r.find(']')? };
        let body = r[..end].trim();
        rest = &r[end + 1..];
        out.push(if body == "*" {
            Step::All
        } else if let Some(f) = body.strip_prefix("?(").and_then(|b| b.strip_suffix(')')) {
            filter(f)?
        } else if let Some(k) = quoted(body) {
            Step::Key(k)
        } else {
            Step::Index(body.parse().ok()?)
        });
    }
    Some(out)
}

fn quoted(s: &str) -> Option<String> {
    for q in ['"', '\''] {
        if let Some(inner) = s.strip_prefix(q).and_then(|t| t.strip_suffix(q)) {
            return Some(inner.to_string());
        }
    }
    None
}

fn filter(text: &str) -> Option<Step> {
    let (left, equal, right) = if let Some((l, r)) = text.split_once("==") {
        (l, true, Some(r))
    } else if let Some((l, r)) = text.split_once("!=") {
        (l, false, Some(r))
    } else {
        (text, true, None)
    };
    let path = steps(left.trim().strip_prefix('@')?)?;
    let value = match right.map(str::trim) {
        None => None,
        Some(r) => Some(match quoted(r) {
            Some(s) => Value::String(s),
            None => serde_json::from_str(r).ok()?,
        }),
    };
    Some(Step::Filter { path, equal, value })
}

fn walk<'a>(path: &[Step], at: &'a Value) -> Vec<&'a Value> {
    let Some((step, rest)) = path.split_first() else { return vec![at] };
    let children: Vec<&Value> = match (step, at) {
        (Step::Key(k), Value::Object(m)) => m.get(k).into_iter().collect(),
        (Step::Index(i), Value::Array(a)) => {
            let i = if *i < 0 { *i + a.len() as i64 } else { *i };
            usize::try_from(i).ok().and_then(|i| a.get(i)).into_iter().collect()
        }
        (Step::All, Value::Array(a)) => a.iter().collect(),
        (Step::All, Value::Object(m)) => m.values().collect(),
        (Step::Filter { path, equal, value }, Value::Array(a)) => a
            .iter()
            .filter(|item| match (walk(path, item).first(), value) {
                (Some(found), Some(v)) => (*found == v) == *equal,
                (Some(_), None) => true,
                (None, _) => false,
            })
            .collect(),
        _ => Vec::new(),
    };
    children.into_iter().flat_map(|c| walk(rest, c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let v =
            json!({"a": {"b.c": [1, 2, {"x": "y", "n": 3}]}, "l": [{"t": "A", "s": 1}, {"t": "B", "s": 2}]});
        for (path, want) in [
            (".a['b.c'][0]", json!([1])),
            (".a.b\\.c[-1].n", json!([3])),
            (".l[*].s", json!([1, 2])),
            (".l[?(@.t==\"B\")].s", json!([2])),
            ("{.l[?(@.t!='B')].s}", json!([1])),
            (".nope.x", json!([])),
            ("$.l[1].t", json!(["B"])),
        ] {
            let found: Vec<Value> = JsonPath::parse(path).unwrap().find(&v).into_iter().cloned().collect();
            assert_eq!(Value::Array(found), want, "{path}");
        }
        for bad in ["a", ".a[", ".a[x]", ".l[?(x)]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }
}
