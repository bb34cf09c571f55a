//! Prometheus' text format 0.0.4, as much of it as kubelets write.

use std::borrow::Cow;

/// One line that is a sample.
#[derive(Debug, PartialEq)]
pub(crate) struct Sample<'a> {
    pub(crate) name: &'a str,
    labels: Vec<(&'a str, Cow<'a, str>)>,
    pub(crate) value: f64,
    /// Milliseconds since 1970.
    pub(crate) at: Option<i64>,
}

impl Sample<'_> {
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(own, _)| *own == name).map(|(_, value)| &**value)
    }
}

/// The samples of a text; comments and lines that are none are passed over.
pub(crate) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' ', '\t'])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        (labels, rest) = self::labels(inside)?;
    }
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    let at = words.next().and_then(|text| text.parse().ok());
    Some(Sample { name, labels, value, at })
}

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// `name="value",...}` and what follows.
fn labels(mut rest: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, value) = rest.split_once('=')?;
        let value = value.trim_start().strip_prefix('"')?;
        let mut end = 0;
        let bytes = value.as_bytes();
        while *bytes.get(end)? != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        labels.push((name.trim(), unescape(&value[..end])));
        rest = &value[end + 1..];
    }
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => {}
            },
            (c, false) => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_samples() {
        let text = "# HELP a b\n# TYPE a counter\na 1\nb{x=\"1\",y=\"a\\\"b}\\\\c\\n\"} 2.5e3 1700000000000\n\
                    c{} 3\nbroken{x=\"1 4\nalso broken\nnan NaN\n";
        let found: Vec<Sample<'_>> = samples(text).collect();
        let names: Vec<&str> = found.iter().map(|sample| sample.name).collect();
        assert_eq!(names, ["a", "b", "c", "nan"]);
        assert_eq!((found[0].value, found[0].at), (1.0, None));
        assert_eq!((found[1].value, found[1].at), (2500.0, Some(1_700_000_000_000)));
        assert_eq!(found[1].label("y"), Some("a\"b}\\c\n"));
        assert_eq!(found[1].label("z"), None);
        assert!(found[3].value.is_nan());
    }
}
