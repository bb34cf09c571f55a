//! Before an expression is parsed: whether the parser has stack enough for it. It goes down step by step, and
//! on after what it cannot read; so what is inside of strings and comments has to be told apart from the rest
//! exactly as it does (`CEL.g4`), and strings that do not end are refused at once.

/// How many steps an expression may have at most; nothing that people write comes near.
const MOST_STEPS: usize = 1000;

/// Refuses what could be too deep: every operator, selection and bracket could be one level.
pub(super) fn check(source: &str) -> Result<(), String> {
    let steps = steps(source)?;
    if steps > MOST_STEPS { Err(format!("the expression has more than {MOST_STEPS} steps")) } else { Ok(()) }
}

fn steps(source: &str) -> Result<usize, String> {
    let b = source.as_bytes();
    // Where the word that is being read has begun.
    let (mut steps, mut at, mut word) = (0, 0, 0);
    while at < b.len() {
        match b[at] {
            b'/' if b.get(at + 1) == Some(&b'/') => {
                at = source[at..].find('\n').map_or(b.len(), |end| at + end);
                word = at;
                continue;
            }
            quote @ (b'"' | b'\'') => {
                steps += usize::from(&source[word..at] == "in");
                at = string(source, at, is_raw(&source[word..at])?, quote)?;
                word = at;
                continue;
            }
            c if c.is_ascii_alphanumeric() || c == b'_' => {}
            c => {
                steps += usize::from(b".([{!?:-+*/%<>=&|`".contains(&c));
                // The one operator that is a word; a number may stand right before it.
                steps += usize::from(source[word..at].ends_with("in"));
                word = at + c_len(c);
                at = word;
                continue;
            }
        }
        at += 1;
    }
    Ok(steps)
}

/// How many bytes the character has that begins with this one.
fn c_len(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// Whether a string with this before its quote takes backslashes as they are.
fn is_raw(prefix: &str) -> Result<bool, String> {
    match prefix.to_ascii_lowercase().as_str() {
        "" | "b" | "in" => Ok(false),
        "r" | "br" => Ok(true),
        // What the parser makes of it is a mistake, whatever follows.
        _ => Err(format!("Syntax error: {prefix:?} stands before a string")),
    }
}

/// Where the string ends whose quote is at `start`.
fn string(source: &str, start: usize, raw: bool, quote: u8) -> Result<usize, String> {
    let b = source.as_bytes();
    let unterminated = || "Syntax error: a string has no end".to_owned();
    let long = b.get(start + 1) == Some(&quote) && b.get(start + 2) == Some(&quote);
    let mut at = start + if long { 3 } else { 1 };
    loop {
        match *b.get(at).ok_or_else(unterminated)? {
            c if c == quote && !long => return Ok(at + 1),
            c if c == quote && b.get(at + 1) == Some(&quote) && b.get(at + 2) == Some(&quote) => {
                return Ok(at + 3);
            }
            b'\n' | b'\r' if !long => return Err(unterminated()),
            b'\\' if !raw => at += escape(&b[at + 1..])? + 1,
            _ => at += 1,
        }
    }
}

/// How long an escape is, its backslash left aside.
fn escape(rest: &[u8]) -> Result<usize, String> {
    let wrong = || "Syntax error: a string has an escape that is none".to_owned();
    let hex = |digits: usize| {
        let all = rest.get(1..=digits).is_some_and(|found| found.iter().all(u8::is_ascii_hexdigit));
        if all { Ok(digits + 1) } else { Err(wrong()) }
    };
    match rest.first().ok_or_else(wrong)? {
        b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' | b'"' | b'\'' | b'\\' | b'?' | b'`' => Ok(1),
        b'x' | b'X' => hex(2),
        b'u' => hex(4),
        b'U' => hex(8),
        b'0'..=b'3' if rest.get(1..3).is_some_and(|two| two.iter().all(|c| (b'0'..=b'7').contains(c))) => {
            Ok(3)
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_text_counts() {
        for (source, expected) in [
            ("a.b == 'x.y.z'", Some(3)),
            ("'it\\'s' + \"a.b\" + r'\\' + '''a'b''' // c.d.e", Some(3)),
            ("// '\na.b.c", Some(2)),
            ("1 in 2in [1] in'x'", Some(4)),
            ("ä.ö == 'ü'", Some(3)),
            ("b'\\x00' + br\"\\\" + R\"\"\"a\"b\\\"\"\"", Some(2)),
            ("'\\u00e9\\101' == ''", Some(2)),
            ("'a.b", None),
            ("'a\n.b'", None),
            ("'\\q' + a.b", None),
            ("xr'\\' + '", None),
            ("1r'\\' + '", None),
            ("'''a''", None),
        ] {
            assert_eq!(steps(source).ok(), expected, "{source}");
        }
    }

    /// Hidden from whoever counts carelessly, a long way down for the parser.
    #[test]
    fn what_goes_too_deep_is_found() {
        let deep = "1+".repeat(20_000);
        assert!(check(&"1 in ".repeat(2000)).is_err());
        for before in ["// '\n", "'\\q ", "' ", "r'\\' + ", "\"\"\" ' \"\"\" + ", "'\n", "xr'\\' + "] {
            assert!(check(&format!("{before}{deep}1")).is_err(), "{before}");
        }
        assert!(check(&format!("a == '{deep}'")).is_ok());
    }
}
