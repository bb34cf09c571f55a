//! The syntax of names, labels and keys with the messages of apimachinery's
//! `util/validation`. Each check returns what is wrong; empty means valid.

const LABEL_MSG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035_MSG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE_MSG: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const NAME_PART_MSG: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED_MSG: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const CONFIG_KEY_MSG: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const WILDCARD_MSG: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn label_chars(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && lower_alnum(b[0])
        && lower_alnum(b[b.len() - 1])
        && b.iter().all(|c| lower_alnum(*c) || *c == b'-')
}

/// A name part: alphanumerics at both ends, `-`, `_` and `.` between.
fn word_chars(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

fn collect(max: usize, s: &str, ok: bool, message: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > max {
        out.push(too_long(max));
    }
    if !ok {
        out.push(message.to_string());
    }
    out
}

/// A DNS label (RFC 1123), at most 63 bytes.
pub fn dns1123_label(s: &str) -> Vec<String> {
    collect(63, s, label_chars(s), LABEL_MSG)
}

/// A DNS subdomain (RFC 1123), at most 253 bytes.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    collect(253, s, !s.is_empty() && s.split('.').all(label_chars), SUBDOMAIN_MSG)
}

/// A DNS subdomain with `*.` before it.
pub fn wildcard_subdomain(s: &str) -> Vec<String> {
    let rest = s.strip_prefix("*.").unwrap_or_default();
    let ok = !rest.is_empty() && rest.split('.').all(label_chars);
    collect(253, s, ok, WILDCARD_MSG)
}

/// A DNS label (RFC 1035): must begin with a letter.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let ok = label_chars(s) && s.as_bytes()[0].is_ascii_lowercase();
    collect(63, s, ok, LABEL_1035_MSG)
}

pub fn label_value(s: &str) -> Vec<String> {
    collect(63, s, s.is_empty() || word_chars(s), LABEL_VALUE_MSG)
}

/// `[prefix/]name`: keys of labels, annotations and conditions, finalizers.
pub fn qualified_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut parts = s.split('/');
    let first = parts.next().unwrap_or_default();
    let name = match (parts.next(), parts.next()) {
        (None, _) => first,
        (Some(name), None) => {
            if first.is_empty() {
                out.push("prefix part must be non-empty".to_string());
            } else {
                out.extend(dns1123_subdomain(first).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => return vec![QUALIFIED_MSG.to_string()],
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_string());
    } else if name.len() > 63 {
        out.push(format!("name part {}", too_long(63)));
    }
    if !word_chars(name) {
        out.push(NAME_PART_MSG.to_string());
    }
    out
}

/// A name that only has to fit into a URL path (RBAC objects).
pub fn path_segment(s: &str) -> Vec<String> {
    match s {
        "." => vec!["may not be '.'".to_string()],
        ".." => vec!["may not be '..'".to_string()],
        _ => {
            ["/", "%"].iter().filter(|c| s.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
        }
    }
}

/// A key of a ConfigMap's or Secret's data.
pub fn config_key(s: &str) -> Vec<String> {
    let ok = !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    let mut out = collect(253, s, ok, CONFIG_KEY_MSG);
    if s == "." {
        out.push("must not be '.'".to_string());
    } else if s == ".." {
        out.push("must not be '..'".to_string());
    } else if s.starts_with("..") {
        out.push("must not start with '..'".to_string());
    }
    out
}

/// The name of an environment variable (KEP-4369: printable ASCII without `=`).
pub fn env_var_name(s: &str) -> Vec<String> {
    if s.is_empty() {
        return vec!["environment variable name must not be empty".to_string()];
    }
    if s.bytes().all(|c| (32..127).contains(&c) && c != b'=') {
        Vec::new()
    } else {
        vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_string()]
    }
}

pub fn port_number(n: i64) -> Vec<String> {
    if (1..=65535).contains(&n) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_string()]
    }
}

/// The name of a container's port (IANA_SVC_NAME).
pub fn port_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 15 {
        out.push("must be no more than 15 characters".to_string());
    }
    if !s.bytes().all(|c| lower_alnum(c) || c == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_string());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_string());
    }
    if s.contains("--") {
        out.push("must not contain consecutive hyphens".to_string());
    }
    if s.starts_with('-') || s.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_string());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax() {
        let cases: &[(fn(&str) -> Vec<String>, &str, bool)] = &[
            (dns1123_label, "a-b", true),
            (dns1123_label, "a.b", false),
            (dns1123_label, "-a", false),
            (dns1123_label, "", false),
            (dns1123_subdomain, "a.b-c.d", true),
            (dns1123_subdomain, "a..b", false),
            (dns1123_subdomain, "A", false),
            (wildcard_subdomain, "*.a.b", true),
            (wildcard_subdomain, "*.", false),
            (wildcard_subdomain, "a.*.b", false),
            (dns1035_label, "1a", false),
            (dns1035_label, "a1", true),
            (label_value, "", true),
            (label_value, "a_b.C", true),
            (label_value, "a b", false),
            (qualified_name, "example.com/Name", true),
            (qualified_name, "/x", false),
            (qualified_name, "a/b/c", false),
            (config_key, "a.conf", true),
            (config_key, "..a", false),
            (env_var_name, "a=b", false),
            (env_var_name, "my.VAR-1", true),
            (port_name, "http", true),
            (port_name, "80", false),
            (path_segment, "system:node", true),
            (path_segment, "a/b", false),
        ];
        for (f, s, ok) in cases {
            assert_eq!(f(s).is_empty(), *ok, "{s:?}: {:?}", f(s));
        }
        assert!(!dns1123_label(&"a".repeat(64)).is_empty());
    }
}
