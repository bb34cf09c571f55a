//! `HOST:PORT/TOKEN/CA-HASH`: where to join, with what right, and whom to trust there. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::{Error, Token};

/// The port of the cluster listener.
pub const CLUSTER_PORT: u16 = 25_000;
/// At least so many hexadecimal digits of the authority's hash: 128 bits.
const LEAST_DIGITS: usize = 32;

/// A place to connect to: an address or a name, and a port. In text: `192.0.2.1:25000`,
/// `[2001:db8::1]:25000` or `node1.example:25000`. A name is looked up when connecting and never otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The address or name, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// The host as an address, unless it is a name.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or("a \"[\" without \"]\"")?;
            host.parse::<Ipv6Addr>().map_err(|_| format!("{host:?} is not an IPv6 address"))?;
            (host, port.strip_prefix(':').ok_or("no \":PORT\" after \"]\"")?)
        } else {
            let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("no \":PORT\" after {text:?}"))?;
            if host.contains(':') {
                return Err(format!("the IPv6 address must stand in brackets, as in [{host}]:{port}"));
            }
            if !is_host(host) {
                return Err(format!("{host:?} is neither an address nor a host name"));
            }
            (host, port)
        };
        let port = match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(format!("{port:?} is not a port (1 to 65535)")),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

/// RFC 1123; all digits and dots must be an IPv4 address.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    host.len() <= 253
        && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
        && (!numeric || host.parse::<IpAddr>().is_ok())
}

/// What `kedge add-node` prints and `kedge join` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinString {
    /// A control-plane node.
    pub server: HostPort,
    /// The right to join.
    pub token: Token,
    /// The first digits, at least 32, of SHA-256 over the SubjectPublicKeyInfo of the cluster's authority.
    pub ca_hash: String,
}

impl fmt::Display for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.ca_hash.get(..LEAST_DIGITS).unwrap_or(&self.ca_hash);
        write!(f, "{}/{}/{digits}", self.server, self.token)
    }
}

impl FromStr for JoinString {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(Error::JoinString)
    }
}

fn parse(text: &str) -> Result<JoinString, String> {
    let text = text.trim();
    let text = text.strip_prefix("kedge join ").unwrap_or(text).trim();
    let parts: Vec<&str> = text.split('/').collect();
    let [server, token, hash] = parts[..] else {
        let parts = match parts.len() {
            1 => "no slash".to_owned(),
            number => format!("{number} parts between slashes and not 3"),
        };
        return Err(format!("it has {parts}"));
    };
    let server = server.parse()?;
    let token = token.parse()?;
    if !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("the CA hash {hash:?} does not consist of hexadecimal digits"));
    }
    if !(LEAST_DIGITS..=64).contains(&hash.len()) {
        return Err(format!("the CA hash has {} digits; 32 to 64 are needed; was it cut off?", hash.len()));
    }
    Ok(JoinString { server, token, ca_hash: hash.to_ascii_lowercase() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn every_kind_of_host_is_understood_and_printed_again() {
        let token = Token::generate().unwrap();
        for server in ["192.0.2.10:25000", "[2001:db8::1]:25000", "node1:1", "node1.example.org:65535"] {
            let text = format!("{server}/{token}/{HASH}");
            let parsed: JoinString = text.parse().unwrap();
            assert_eq!(parsed.server.to_string(), server);
            assert_eq!(parsed.token, token);
            assert_eq!(parsed.to_string(), text);
            assert_eq!(format!("  kedge join {text}\n").parse::<JoinString>().unwrap(), parsed);
        }
        let long = format!("n:1/{token}/{HASH}{}", HASH.to_uppercase());
        assert_eq!(long.parse::<JoinString>().unwrap().ca_hash, format!("{HASH}{HASH}"));
    }

    #[test]
    fn each_mistake_has_its_words() {
        let token = Token::generate().unwrap();
        for (text, hint) in [
            (String::new(), "no slash"),
            (format!("192.0.2.1:25000/{token}"), "2 parts"),
            (format!("192.0.2.1/{token}/{HASH}"), "no \":PORT\""),
            (format!("192.0.2.1:0/{token}/{HASH}"), "not a port"),
            (format!("192.0.2.1:99999/{token}/{HASH}"), "not a port"),
            (format!("192.0.2.999:1/{token}/{HASH}"), "neither an address"),
            (format!("2001:db8::1:25000/{token}/{HASH}"), "in brackets"),
            (format!("[2001:db8::1]/{token}/{HASH}"), "after \"]\""),
            (format!("[2001:db8::1:25000/{token}/{HASH}"), "without \"]\""),
            (format!("[n1]:25000/{token}/{HASH}"), "not an IPv6"),
            (format!("-n1:25000/{token}/{HASH}"), "neither an address"),
            (format!("n1:25000/abc/{HASH}"), "3 characters"),
            (format!("n1:25000/{token}/{}", &HASH[1..]), "31 digits"),
            (format!("n1:25000/{token}/{}x", &HASH[1..]), "hexadecimal"),
        ] {
            let error = text.parse::<JoinString>().unwrap_err();
            let error = kedge_base::Chain(&error).to_string();
            assert!(error.contains(hint), "{text}: {error}");
            assert!(!error.contains(&token.to_string()), "a token must not reach a log: {error}");
        }
    }
}
