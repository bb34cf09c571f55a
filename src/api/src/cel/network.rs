//! Addresses, address blocks and URLs (apiserver `pkg/cel/library`: `ip.go`, `cidr.go`, `urls.go`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::meter::Meter;
use super::value::{Key, Value};
use super::{Outcome, Stop, no_overload};

/// An address block; the address may have bits beyond the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Cidr {
    /// How many bytes its prefix has.
    pub(super) fn bytes(&self) -> usize {
        usize::from(self.bits).div_ceil(8)
    }

    fn masked(&self) -> Self {
        let address = match self.address {
            IpAddr::V4(ip) => IpAddr::from((u32::from(ip) & mask32(self.bits)).to_be_bytes()),
            IpAddr::V6(ip) => IpAddr::from((u128::from(ip) & mask128(self.bits)).to_be_bytes()),
        };
        Self { address, bits: self.bits }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => (u32::from(own) ^ u32::from(ip)) & mask32(self.bits) == 0,
            (IpAddr::V6(own), IpAddr::V6(ip)) => (u128::from(own) ^ u128::from(ip)) & mask128(self.bits) == 0,
            _ => false,
        }
    }
}

fn mask32(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0)
}

fn mask128(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0)
}

/// Addresses of IPv4 in the clothes of IPv6 and zones are refused, as upstream does.
fn parse_ip(text: &str) -> Result<IpAddr, Stop> {
    let parsed: IpAddr = text.parse().map_err(|_| {
        Stop::failed(format!(
            "IP Address {text:?} parse error during conversion from string: unable to parse IP"
        ))
    })?;
    match parsed {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            Err(Stop::failed(format!("IPv4-mapped IPv6 address {text:?} is not allowed")))
        }
        _ => Ok(parsed),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr, Stop> {
    let wrong = || {
        Stop::failed(format!(
            "network address parse error during conversion from string: netip.ParsePrefix({text:?}): invalid prefix"
        ))
    };
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let address = parse_ip(address)?;
    let digits = bits.bytes().all(|c| c.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits: u8 = bits.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
    if bits > if address.is_ipv4() { 32 } else { 128 } {
        return Err(wrong());
    }
    Ok(Cidr { address, bits })
}

/// `ip(text)`, and `block.ip()`
pub(super) fn ip(meter: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::String(text)] => {
            meter.traverse(args[0].size(), 1)?;
            parse_ip(text).map(Value::Ip)
        }
        [Value::Cidr(cidr)] => {
            meter.spend(1)?;
            Ok(Value::Ip(cidr.address))
        }
        _ => no_overload(),
    }
}

pub(super) fn is_ip(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    Ok(parse_ip(text).is_ok().into())
}

/// `ip.isCanonical(text)`
pub(super) fn is_canonical(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 2)?;
    Ok((parse_ip(text)?.to_string() == **text).into())
}

pub(super) fn family(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Ip(ip)] = args else { return no_overload() };
    Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 }))
}

macro_rules! questions {
    ($($name:ident => $question:expr),* $(,)?) => {
        $(pub(super) fn $name(_: &mut Meter, args: &[Value]) -> Outcome {
            let [Value::Ip(ip)] = args else { return no_overload() };
            let question: fn(&IpAddr) -> bool = $question;
            Ok(question(ip).into())
        })*
    };
}

questions! {
    is_unspecified => IpAddr::is_unspecified,
    is_loopback => IpAddr::is_loopback,
    is_link_local_multicast => link_local_multicast,
    is_link_local_unicast => link_local_unicast,
    is_global_unicast => |ip| {
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        !broadcast
            && !ip.is_unspecified()
            && !ip.is_loopback()
            && !ip.is_multicast()
            && !link_local_unicast(ip)
    },
}

fn link_local_multicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn link_local_unicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

pub(super) fn cidr(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    parse_cidr(text).map(Value::Cidr)
}

pub(super) fn is_cidr(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    Ok(parse_cidr(text).is_ok().into())
}

pub(super) fn contains_ip(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Cidr(cidr), other] = args else { return no_overload() };
    meter.traverse(args[0].size(), 2)?;
    let ip = match other {
        Value::Ip(ip) => *ip,
        Value::String(text) => {
            meter.traverse(other.size(), 1)?;
            parse_ip(text)?
        }
        _ => return no_overload(),
    };
    Ok(cidr.contains(ip).into())
}

pub(super) fn contains_cidr(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Cidr(cidr), other] = args else { return no_overload() };
    meter.traverse(args[0].size(), 3)?;
    let inner = match other {
        Value::Cidr(inner) => *inner,
        Value::String(text) => {
            meter.traverse(other.size(), 1)?;
            parse_cidr(text)?
        }
        _ => return no_overload(),
    };
    Ok((cidr.bits <= inner.bits && cidr.contains(inner.address)).into())
}

pub(super) fn masked(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Cidr(cidr)] = args else { return no_overload() };
    Ok(Value::Cidr(cidr.masked()))
}

pub(super) fn prefix_length(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Cidr(cidr)] = args else { return no_overload() };
    Ok(Value::Int(cidr.bits.into()))
}

/// An absolute URL or path, as a server gets to see it (Go's `url.ParseRequestURI`).
#[derive(Debug)]
pub struct Url {
    pub(super) text: Box<str>,
    scheme: String,
    /// With the port.
    host: String,
    path: String,
    query: String,
}

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("parse {text:?}: {why}"));
        if text.is_empty() {
            return wrong("empty url");
        }
        if text.bytes().any(|c| c < 0x20 || c == 0x7f) {
            return wrong("net/url: invalid control character in URL");
        }
        let colon = text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.'));
        let (scheme, rest) = match colon {
            Some(0) if text.starts_with(':') => return wrong("missing protocol scheme"),
            Some(at) if text[at..].starts_with(':') && text.as_bytes()[0].is_ascii_alphabetic() => {
                (text[..at].to_ascii_lowercase(), &text[at + 1..])
            }
            _ => (String::new(), text),
        };
        if !rest.starts_with('/') {
            return wrong("invalid URI for request");
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = if scheme.is_empty() { None } else { rest.strip_prefix("//") };
        let (host, path) = match authority {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let port = match host.rfind(']') {
            _ if host.starts_with('[') && !host.contains(']') => return wrong("missing ']' in host"),
            Some(end) => &host[end + 1..],
            None => host.rfind(':').map_or("", |at| &host[at..]),
        };
        let digits = port.strip_prefix(':').unwrap_or("x").bytes().all(|c| c.is_ascii_digit());
        if !port.is_empty() && !digits {
            return Err(format!("parse {text:?}: invalid port {port:?} after host"));
        }
        if let Some(bad) =
            host.chars().find(|c| matches!(c, ' ' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}'))
        {
            return Err(format!("parse {text:?}: invalid character {:?} in host name", bad.to_string()));
        }
        if !escapes_are_whole(path) {
            return wrong("invalid URL escape");
        }
        let escaped = escape_path(path);
        Ok(Self { text: text.into(), scheme, host: host.to_owned(), path: escaped, query: query.to_owned() })
    }

    fn hostname(&self) -> &str {
        match (self.host.strip_prefix('['), self.host.rfind(':')) {
            (Some(rest), _) => rest.split(']').next().unwrap_or(rest),
            (None, Some(at)) => &self.host[..at],
            (None, None) => &self.host,
        }
    }

    fn port(&self) -> &str {
        let after = self.host.rfind(']').map_or(0, |at| at + 1);
        self.host[after..].rsplit_once(':').map_or("", |(_, port)| port)
    }
}

fn escapes_are_whole(text: &str) -> bool {
    let b = text.as_bytes();
    (0..b.len())
        .filter(|at| b[*at] == b'%')
        .all(|at| b.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)))
}

/// What may stand in a path stays, the rest is escaped.
fn escape_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A part of a query with its escapes undone; `None`: they are broken.
fn unescape(text: &str) -> Option<String> {
    let (b, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while at < b.len() {
        match b[at] {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = text.get(at + 1..at + 3)?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
                at += 2;
            }
            byte => out.push(byte),
        }
        at += 1;
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

pub(super) fn url(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    let parsed = Url::parse(text)
        .map_err(|error| Stop::failed(format!("URL parse error during conversion from string: {error}")))?;
    Ok(Value::Url(Arc::new(parsed)))
}

pub(super) fn is_url(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    Ok(Url::parse(text).is_ok().into())
}

macro_rules! url_parts {
    ($($name:ident => $part:expr),* $(,)?) => {
        $(pub(super) fn $name(_: &mut Meter, args: &[Value]) -> Outcome {
            let [Value::Url(url)] = args else { return no_overload() };
            let part: fn(&Url) -> &str = $part;
            Ok(part(url).into())
        })*
    };
}

url_parts! {
    scheme => |url| &url.scheme,
    host => |url| &url.host,
    hostname => Url::hostname,
    port => Url::port,
    escaped_path => |url| &url.path,
}

/// `getQuery()`: a list of values for every key.
pub(super) fn query(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Url(url)] = args else { return no_overload() };
    meter.traverse(url.query.len() as u64, 1)?;
    let mut found: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (unescape(key), unescape(value)) {
            found.entry(Key::String(key.into())).or_default().push(value.into());
        }
    }
    Ok(Value::Map(Arc::new(found.into_iter().map(|(key, values)| (key, values.into())).collect())))
}
