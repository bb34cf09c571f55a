//! `addon.yaml`: what an addon is and which arguments it takes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kedge_base::AddressRange;
use serde::{Deserialize, Serialize};

use crate::check::Check;
use crate::error::Error;

/// An addon as its folder describes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addon {
    /// The name that `kedge enable` takes: a DNS label.
    pub name: String,
    /// The addon's own version.
    pub version: String,
    /// One line.
    pub description: String,
    /// What may be written behind the name: `name:key=value;key=value`, or one value for the first.
    #[serde(default)]
    pub arguments: Vec<Argument>,
    /// OCI architecture names; empty: all.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Addons that must be enabled before.
    #[serde(default)]
    pub requires: Vec<String>,
    /// What must be so for it to be healthy, beside what its objects' own status says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<Check>,
    /// A part of Kedge itself, which applies no manifests for it; configured by its arguments, or where `notes`
    /// says when it has none.
    #[serde(default)]
    pub builtin: bool,
    /// A remark that is shown when the addon was enabled.
    #[serde(default)]
    pub notes: String,
    /// File names and contents, in the order of their names; not part of `addon.yaml`.
    #[serde(skip)]
    pub manifests: Vec<(String, String)>,
}

/// One argument of an addon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Argument {
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(rename = "type", default)]
    pub kind: ArgumentType,
    /// Used when the argument is not given.
    #[serde(default)]
    pub default: serde_json::Value,
    /// The only values allowed, when there are any.
    #[serde(default)]
    pub values: Vec<String>,
    /// The smallest and largest number allowed.
    #[serde(default)]
    pub min: Option<u32>,
    #[serde(default)]
    pub max: Option<u32>,
}

/// What an argument's text must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArgumentType {
    #[default]
    String,
    /// A whole number, not negative.
    Int,
    Bool,
    Ip,
    /// A range of addresses: `10.244.0.0/16`.
    Cidr,
    /// A folder or file of the nodes, from the root on.
    Path,
    /// Comma-separated texts.
    List,
    /// Comma-separated addresses, ranges (`192.0.2.200-192.0.2.220`) and networks (`2001:db8::10/124`).
    Addresses,
    /// Comma-separated DNS servers: IP or IP:PORT.
    Servers,
    /// Domains with servers of their own, separated by semicolons: `DOMAIN=IP[:PORT][,IP[:PORT]]`.
    Domains,
}

impl ArgumentType {
    /// As `addon.yaml` names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Int => "int",
            Self::Bool => "bool",
            Self::Ip => "ip",
            Self::Cidr => "cidr",
            Self::Path => "path",
            Self::List => "list",
            Self::Addresses => "addresses",
            Self::Servers => "servers",
            Self::Domains => "domains",
        }
    }
}

impl Addon {
    /// Parses `addon.yaml`; `place` names it in errors.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(place: &str, text: &str, manifests: Vec<(String, String)>) -> Result<Self, Error> {
        let invalid = |what: String| Error::Definition { place: place.to_owned(), what };
        let mut addon: Self = serde_saphyr::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let label = |name: &str| {
            !name.is_empty()
                && name.len() <= 50
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !label(&addon.name) {
            return Err(invalid(format!("{:?} is not a name of small letters, digits and -", addon.name)));
        }
        if addon.builtin && !addon.health.is_empty() {
            return Err(invalid("a part of Kedge has no health here".to_owned()));
        }
        for argument in &addon.arguments {
            if argument.min > argument.max.or(Some(u32::MAX)) {
                return Err(invalid(format!("{}: min is bigger than max", argument.name)));
            }
            let default = argument.default_text();
            argument.check(&default).map_err(|what| invalid(format!("default: {what}")))?;
        }
        addon.manifests = manifests;
        Ok(addon)
    }

    /// Every argument's value as text: the given one or the default.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name or a value of the wrong type.
    pub fn values(&self, given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
        let refuse = |what: String| Error::Argument { addon: self.name.clone(), what };
        if let Some(unknown) = given.keys().find(|key| self.arguments.iter().all(|a| a.name != **key)) {
            let known: Vec<&str> = self.arguments.iter().map(|argument| argument.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(refuse(format!("unknown argument {unknown:?}; it takes: {known}")));
        }
        self.arguments
            .iter()
            .map(|argument| {
                let value = given.get(&argument.name).cloned().unwrap_or_else(|| argument.default_text());
                argument.check(&value).map_err(refuse)?;
                Ok((argument.name.clone(), value))
            })
            .collect()
    }

    /// What stands behind the colon: `key=value;key=value`, or one bare value for the first argument
    /// (`dns:1.1.1.1,8.8.8.8`), as MicroK8s takes it.
    ///
    /// # Errors
    /// [`Error::Argument`] when the addon takes none, or one is written twice.
    pub fn split_arguments(&self, text: &str) -> Result<BTreeMap<String, String>, Error> {
        let refuse = |what: &str| Error::Argument { addon: self.name.clone(), what: what.to_owned() };
        let mut given = BTreeMap::new();
        if text.is_empty() {
            return Ok(given);
        }
        if self.builtin && self.arguments.is_empty() {
            let notes = self.notes.trim().to_owned();
            return Err(Error::BuiltIn { addon: self.name.clone(), notes });
        }
        let known = |key: &str| self.arguments.iter().any(|argument| argument.name == key);
        let bare =
            !text.split_once('=').is_some_and(|(key, _)| known(key) || !text.contains([',', ':', '/']));
        if bare {
            let first = self.arguments.first().ok_or_else(|| refuse("it takes no arguments"))?;
            given.insert(first.name.clone(), text.to_owned());
            return Ok(given);
        }
        let mut last: Option<String> = None;
        for part in text.split(';').filter(|part| !part.is_empty()) {
            let named = part.split_once('=');
            match (named, &last) {
                // A value may have semicolons of its own: what begins with no argument's name goes on.
                (named, Some(last)) if named.is_none_or(|(key, _)| !known(key)) => {
                    let value: &mut String = given.entry(last.clone()).or_default();
                    value.push(';');
                    value.push_str(part);
                }
                (Some((key, value)), _) => {
                    if given.insert(key.to_owned(), value.to_owned()).is_some() {
                        return Err(refuse(&format!("{key} is given twice")));
                    }
                    last = Some(key.to_owned());
                }
                (None, _) => return Err(refuse(&format!("{part:?} is not key=value"))),
            }
        }
        Ok(given)
    }
}

impl Argument {
    fn default_text(&self) -> String {
        match &self.default {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(items) => {
                let texts: Vec<&str> = items.iter().filter_map(serde_json::Value::as_str).collect();
                texts.join(",")
            }
            other => other.to_string(),
        }
    }

    fn allows(&self, number: u32) -> bool {
        self.min.is_none_or(|min| number >= min) && self.max.is_none_or(|max| number <= max)
    }

    fn check(&self, text: &str) -> Result<(), String> {
        let name = &self.name;
        let wrong = |what: &str| Err(format!("{name}: {text:?} is not {what}"));
        match self.kind {
            ArgumentType::Int if text.parse::<u32>().is_err() => return wrong("a whole number"),
            ArgumentType::Int if text.parse::<u32>().is_ok_and(|number| !self.allows(number)) => {
                let (min, max) = (self.min.unwrap_or(0), self.max.unwrap_or(u32::MAX));
                return wrong(&format!("a number from {min} to {max}"));
            }
            ArgumentType::Bool if !matches!(text, "true" | "false") => return wrong("true or false"),
            ArgumentType::Ip if !text.is_empty() && text.parse::<IpAddr>().is_err() => {
                return wrong("an IP address");
            }
            ArgumentType::Cidr if !text.is_empty() && !is_cidr(text) => {
                return wrong("a range of addresses such as 10.244.0.0/16");
            }
            ArgumentType::Addresses => {
                AddressRange::parse_list(text).map_err(|error| format!("{name}: {error}"))?;
            }
            ArgumentType::Servers => {
                if let Some(server) = parts(text, ',').find(|server| !is_server(server)) {
                    return Err(format!(
                        "{name}: {server:?} is not the address of a server, which is IP or IP:PORT (IPv6: [IP]:PORT)"
                    ));
                }
            }
            ArgumentType::Domains => {
                if let Some(domain) = parts(text, ';').find(|domain| !is_domain_with_servers(domain)) {
                    return Err(format!(
                        "{name}: {domain:?} is not DOMAIN=IP[:PORT][,IP[:PORT]], for example corp.example=192.0.2.53"
                    ));
                }
            }
            // A default may begin with one of the cluster's folders.
            ArgumentType::Path if !text.starts_with("${") && !is_plain_path(text) => {
                return wrong("a path from the root on, without . and ..");
            }
            _ => {}
        }
        // The value ends up inside YAML: what could break out of a quoted text is refused.
        if text.chars().any(|c| c.is_control() || matches!(c, '"' | '\\' | '\'')) {
            return wrong("free of quotes and control characters");
        }
        if text.contains('$') && text != self.default_text() {
            return wrong("free of $");
        }
        if !self.values.is_empty() && !self.values.iter().any(|value| value == text) {
            return wrong(&format!("one of {}", self.values.join(", ")));
        }
        Ok(())
    }
}

fn parts(text: &str, separator: char) -> impl Iterator<Item = &str> {
    text.split(separator).map(str::trim).filter(|part| !part.is_empty())
}

fn is_server(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) => Some((ip, 53)),
        Err(_) => text.parse::<SocketAddr>().ok().map(|address| (address.ip(), address.port())),
    };
    address.is_some_and(|(ip, port)| !ip.is_unspecified() && port != 0)
}

fn is_domain_with_servers(text: &str) -> bool {
    let Some((domain, servers)) = text.split_once('=') else { return false };
    let domain = domain.trim().trim_end_matches('.');
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    domain.len() <= 253 && domain.split('.').all(label) && servers.split(',').map(str::trim).all(is_server)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn is_plain_path(text: &str) -> bool {
    let mut parts = text.strip_prefix('/').unwrap_or_default().split('/');
    parts.all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addon() -> Addon {
        let text = r#"
name: dns
version: "1"
description: d
arguments:
- name: upstream
  type: list
  default: []
- name: replicas
  type: int
  default: 1
- name: mode
  values: [a, b]
  default: a
- name: pool
  type: addresses
- name: servers
  type: servers
- name: domains
  type: domains
- name: few
  type: int
  default: 2
  min: 1
  max: 3
"#;
        Addon::parse("test", text, Vec::new()).unwrap()
    }

    #[test]
    fn arguments_are_split() {
        let addon = addon();
        for (text, expected) in [
            ("", vec![]),
            ("1.1.1.1,8.8.8.8", vec![("upstream", "1.1.1.1,8.8.8.8")]),
            ("replicas=2", vec![("replicas", "2")]),
            ("replicas=2;upstream=1.1.1.1:53", vec![("replicas", "2"), ("upstream", "1.1.1.1:53")]),
            ("replcas=2", vec![("replcas", "2")]),
            ("mode=x=1,2;y=3;replicas=2", vec![("mode", "x=1,2;y=3"), ("replicas", "2")]),
            ("pool=192.0.2.1-192.0.2.9,2001:db8::/126", vec![("pool", "192.0.2.1-192.0.2.9,2001:db8::/126")]),
        ] {
            let expected: BTreeMap<String, String> =
                expected.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            assert_eq!(addon.split_arguments(text).unwrap(), expected, "{text}");
        }
        assert!(addon.split_arguments("replicas=2;replicas=3").is_err());
    }

    #[test]
    fn values_are_checked() {
        let addon = addon();
        let values = |key: &str, value: &str| addon.values(&[(key.to_owned(), value.to_owned())].into());
        assert_eq!(values("replicas", "3").unwrap()["replicas"], "3");
        assert_eq!(values("replicas", "3").unwrap()["mode"], "a");
        for (key, value) in [
            ("servers", ""),
            ("servers", "192.0.2.1, 192.0.2.2:5353,2001:db8::53,[2001:db8::53]:5353,[2001:db8::54]"),
            ("domains", "corp.example=192.0.2.53,[2001:db8::53]:5353; _x.example.=192.0.2.1;"),
            ("few", "3"),
        ] {
            assert_eq!(values(key, value).unwrap()[key], value);
        }
        for (key, value, words) in [
            ("replicas", "three", "replicas: \"three\" is not a whole number"),
            (
                "replcas",
                "3",
                "unknown argument \"replcas\"; it takes: upstream, replicas, mode, pool, servers, domains, few",
            ),
            ("mode", "c", "is not one of a, b"),
            ("upstream", "\"\nkind: Evil", "free of quotes"),
            ("pool", "192.0.2.9-192.0.2.1", "pool: \"192.0.2.9-192.0.2.1\" is not an address, a range"),
            ("servers", "1.2.3.4,foo", "servers: \"foo\" is not the address of a server"),
            ("servers", "1.2.3.4:0", "is not the address of a server"),
            ("servers", "0.0.0.0", "is not the address of a server"),
            ("domains", "corp.example", "domains: \"corp.example\" is not DOMAIN=IP"),
            ("domains", "corp.example=", "is not DOMAIN=IP"),
            ("domains", "a=192.0.2.1;b..c=192.0.2.2", "\"b..c=192.0.2.2\" is not DOMAIN=IP"),
            ("few", "0", "few: \"0\" is not a number from 1 to 3"),
            ("few", "999999", "is not a number from 1 to 3"),
        ] {
            let error = values(key, value).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
