//! A schema's `pattern`. Definitions have hundreds and objects need few: each is compiled when it is
//! first needed.

use std::fmt;
use std::sync::OnceLock;

use regex::{Regex, RegexBuilder};

/// A regular expression in Go's syntax, compiled at first use.
#[derive(Clone, Debug)]
pub struct Pattern {
    source: Box<str>,
    compiled: OnceLock<Option<Regex>>,
}

/// Go's classes are those of ASCII; only what cannot be said in ASCII (a dot, a negated class) is
/// compiled with Unicode, whose tables are large.
fn compile(source: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(source).unicode(false).build().or_else(|_| Regex::new(source))
}

impl Pattern {
    /// Keeps the text; [`Pattern::check`] says whether it is a pattern.
    pub fn new(source: &str) -> Self {
        Self { source: source.into(), compiled: OnceLock::new() }
    }

    /// Compiles the text and forgets the result.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), regex::Error> {
        compile(&self.source).map(drop)
    }

    /// Whether the text matches somewhere. A pattern that cannot be compiled refuses nothing.
    pub fn is_match(&self, text: &str) -> bool {
        let compiled = self.compiled.get_or_init(|| compile(&self.source).ok());
        compiled.as_ref().is_none_or(|regex| regex.is_match(text))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (source, text, expected) in [
            ("^[a-z]+$", "abc", true),
            ("^[a-z]+$", "Abc", false),
            (r"^\d+$", "12", true),
            (r"^\d+$", "\u{661}", false),
            ("(?i)^on$", "ON", true),
            ("^.*é$", "café", true),
            ("^[^/]+$", "é", true),
            ("^.{1,253}$", "x", true),
        ] {
            assert_eq!(Pattern::new(source).is_match(text), expected, "{source}");
            assert!(Pattern::new(source).check().is_ok(), "{source}");
        }
        assert!(Pattern::new("(").check().is_err());
    }
}
