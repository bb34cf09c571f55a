//! Links in what a proxy shows lead through the proxy again (apimachinery `util/proxy/transport.go`): paths
//! from the root get the proxy's own path in front. Only HTML is looked into, and only its attributes that
//! hold addresses.

/// Elements and their attributes that hold an address.
const ADDRESSES: [(&str, &[&str]); 26] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["formaction", "src", "usemap"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("track", &["src"]),
    ("video", &["poster", "src"]),
];

/// The address as seen through the proxy at `prefix`: changed when it is a path from the root that does not
/// go there already.
pub(crate) fn address(address: &str, prefix: &str) -> String {
    if !address.starts_with('/') || address.starts_with("//") || address.starts_with(prefix) {
        return address.to_owned();
    }
    format!("{}{address}", prefix.trim_end_matches('/'))
}

/// A page whose addresses lead through the proxy.
pub(crate) fn page(html: &str, prefix: &str) -> String {
    let mut out = String::with_capacity(html.len() + html.len() / 8);
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            let end = comment.find("-->").map_or(rest.len(), |at| at + 7);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let end = tag_end(rest);
        tag(&rest[..end], prefix, &mut out);
        let script = rest[1..end].to_ascii_lowercase();
        rest = &rest[end..];
        // What is inside of these is no markup.
        for raw in ["script", "style"] {
            if script
                .strip_prefix(raw)
                .is_some_and(|more| !more.starts_with(|c: char| c.is_ascii_alphanumeric()))
            {
                let at = end_of(rest, raw);
                out.push_str(&rest[..at]);
                rest = &rest[at..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Where the end tag of the element begins, however it is written.
fn end_of(text: &str, element: &str) -> usize {
    let closes = |at: &usize| {
        let name = text.as_bytes().get(at + 2..at + 2 + element.len());
        name.is_some_and(|name| name.eq_ignore_ascii_case(element.as_bytes()))
    };
    text.match_indices("</").map(|(at, _)| at).find(closes).unwrap_or(text.len())
}

/// Where the tag at the beginning ends, quoted `>` left aside.
fn tag_end(text: &str) -> usize {
    let mut quote = None;
    for (at, c) in text.char_indices().skip(1) {
        match (quote, c) {
            (None, '>') => return at + 1,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), close) if open == close => quote = None,
            _ => {}
        }
    }
    text.len()
}

fn tag(text: &str, prefix: &str, out: &mut String) {
    let name_end = text[1..].find(|c: char| !c.is_ascii_alphanumeric()).map_or(text.len(), |at| at + 1);
    let name = text[1..name_end].to_ascii_lowercase();
    let known = ADDRESSES.iter().find(|(element, _)| *element == name).map(|(_, attributes)| *attributes);
    let Some(attributes) = known else {
        out.push_str(text);
        return;
    };
    out.push_str(&text[..name_end]);
    let mut rest = &text[name_end..];
    while let Some(equals) = rest.find('=') {
        let attribute = rest[..equals].trim_end();
        let attribute = attribute.rsplit(|c: char| c.is_whitespace() || c == '/').next().unwrap_or_default();
        let wanted = attributes.contains(&attribute.to_ascii_lowercase().as_str());
        let after = &rest[equals + 1..];
        let value_at = equals + 1 + (after.len() - after.trim_start().len());
        out.push_str(&rest[..value_at]);
        let value = &rest[value_at..];
        let (open, inner, used) = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => match value[1..].find(quote) {
                Some(end) => (1, &value[1..=end], end + 2),
                None => (0, "", 0),
            },
            _ => {
                let end = value.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(value.len());
                (0, &value[..end], end)
            }
        };
        out.push_str(&value[..open]);
        if wanted {
            out.push_str(&address(inner, prefix));
        } else {
            out.push_str(inner);
        }
        out.push_str(&value[open + inner.len()..used]);
        rest = &value[used..];
        if used == 0 {
            break;
        }
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "/api/v1/namespaces/n/pods/p/proxy";

    #[test]
    fn addresses_from_the_root_lead_through_the_proxy() {
        for (before, after) in [
            ("/x", "/api/v1/namespaces/n/pods/p/proxy/x"),
            ("/x/?q=1", "/api/v1/namespaces/n/pods/p/proxy/x/?q=1"),
            ("x", "x"),
            ("//other.example.com/x", "//other.example.com/x"),
            ("https://other.example.com/x", "https://other.example.com/x"),
            ("/api/v1/namespaces/n/pods/p/proxy/x", "/api/v1/namespaces/n/pods/p/proxy/x"),
        ] {
            assert_eq!(address(before, PREFIX), after);
        }
    }

    #[test]
    fn pages_are_changed_in_their_addresses_only() {
        let here = "/proxy";
        for (before, after) in [
            (r#"<a href="/rewriteme">test</a>"#, r#"<a href="/proxy/rewriteme">test</a>"#),
            ("<A class=b HREF='/x'>/x</A>", "<A class=b HREF='/proxy/x'>/x</A>"),
            ("<img alt=\"a > b\" src=/i.png>", "<img alt=\"a > b\" src=/proxy/i.png>"),
            (r#"<p title="/x">href="/y"</p>"#, r#"<p title="/x">href="/y"</p>"#),
            (r#"<a data-href="/x" href="rel">"#, r#"<a data-href="/x" href="rel">"#),
            (r#"<!-- <a href="/x"> -->"#, r#"<!-- <a href="/x"> -->"#),
            (
                r#"<script src="/s.js"></script><script>if (a<b) '<a href="/x">'</script>"#,
                r#"<script src="/proxy/s.js"></script><script>if (a<b) '<a href="/x">'</script>"#,
            ),
            ("a < b and <unclosed href=\"/x", "a < b and <unclosed href=\"/x"),
            ("<link rel = \"x\" href = \"/é\" />", "<link rel = \"x\" href = \"/proxy/é\" />"),
            ("<a href=\"/x", "<a href=\"/x"),
            ("<", "<"),
        ] {
            assert_eq!(page(before, here), after);
        }
    }
}
