//! Which servers resolve the names of others: given ones, or those of the host. A server on a loopback
//! address is only asked when somebody has named it: in a pod, systemd-resolved's 127.0.0.53 of the
//! host's file would be this server itself or nothing.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::Error;

const DNS_PORT: u16 = 53;

/// A domain whose names are resolved by servers of its own: `DOMAIN=IP[:PORT][,IP[:PORT]]...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StubDomain {
    /// The domain; names below it belong to it too.
    pub domain: String,
    /// Its servers, asked in this order.
    pub servers: Vec<SocketAddr>,
}

impl FromStr for StubDomain {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((domain, servers)) = text.split_once('=') else {
            return Err(Error::Invalid(format!(
                "{text:?} is no stub domain; write DOMAIN=ADDRESS[,ADDRESS], for example corp.example=192.0.2.53"
            )));
        };
        let domain = domain.trim().trim_end_matches('.').to_ascii_lowercase();
        if domain.is_empty() || super::name::parse_name(&domain).is_none() {
            return Err(Error::Invalid(format!("{domain:?} is no domain name")));
        }
        let servers = servers.split(',').map(parse_server).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { domain, servers })
    }
}

impl fmt::Display for StubDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.domain)?;
        for (place, server) in self.servers.iter().enumerate() {
            write!(f, "{}{server}", if place > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// The address of a DNS server: `192.0.2.53`, `192.0.2.53:5353`, `2001:db8::53` or `[2001:db8::53]:5353`.
///
/// # Errors
/// When the text is none of these. Names are not accepted: who would resolve them?
pub fn parse_server(text: &str) -> Result<SocketAddr, Error> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, DNS_PORT)),
        Err(_) => text.parse::<SocketAddr>().ok(),
    };
    address.filter(|address| address.port() != 0 && !address.ip().is_unspecified()).ok_or_else(|| {
        Error::Invalid(format!(
            "{text:?} is no address of a DNS server; write an IP address, with :PORT when it is not 53"
        ))
    })
}

/// Several servers, separated by commas; empty text is none.
///
/// # Errors
/// When one of them is no address.
pub fn parse_servers(text: &str) -> Result<Vec<SocketAddr>, Error> {
    parts(text, ',').map(parse_server).collect()
}

/// Several stub domains, separated by semicolons; empty text is none.
///
/// # Errors
/// When one of them is no stub domain.
pub fn parse_stub_domains(text: &str) -> Result<Vec<StubDomain>, Error> {
    parts(text, ';').map(str::parse).collect()
}

fn parts(text: &str, separator: char) -> impl Iterator<Item = &str> {
    text.split(separator).map(str::trim).filter(|part| !part.is_empty())
}

/// The resolver configuration of this host that pods can use: `/etc/resolv.conf`, unless it names only
/// loopback addresses and systemd-resolved's own file knows better (as kubeadm decides it).
pub fn host_resolv_conf() -> PathBuf {
    let files = host_files();
    let good = files
        .iter()
        .find(|file| from_files(std::slice::from_ref(*file)).is_ok_and(|found| !found.is_empty()));
    good.unwrap_or(&files[0]).clone()
}

/// Where a Linux host keeps its resolvers, best first.
pub(crate) fn host_files() -> [PathBuf; 2] {
    ["/etc/resolv.conf".into(), "/run/systemd/resolve/resolv.conf".into()]
}

/// The first file that names a server which a pod can reach, and what it names. Files that do not
/// exist are passed over.
pub(crate) fn from_files(files: &[PathBuf]) -> Result<Vec<SocketAddr>, Error> {
    for file in files {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                let servers = usable(&text);
                if !servers.is_empty() {
                    return Ok(servers);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("read", file, error)),
        }
    }
    Ok(Vec::new())
}

fn usable(resolv_conf: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // A link-local address with a zone (`fe80::1%eth0`) names an interface of the host.
        let Some(ip) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        let ip = ip.to_canonical();
        let server = SocketAddr::new(ip, DNS_PORT);
        if !ip.is_loopback() && !ip.is_unspecified() && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_servers() {
        for (text, expected) in [
            ("192.0.2.53", Some("192.0.2.53:53")),
            ("192.0.2.53:5353", Some("192.0.2.53:5353")),
            ("2001:db8::53", Some("[2001:db8::53]:53")),
            ("[2001:db8::53]", Some("[2001:db8::53]:53")),
            ("[2001:db8::53]:5353", Some("[2001:db8::53]:5353")),
            ("127.0.0.1:5300", Some("127.0.0.1:5300")),
            ("dns.example.com", None),
            ("192.0.2.53:0", None),
            ("0.0.0.0", None),
            ("", None),
        ] {
            let expected = expected.map(|text| text.parse::<SocketAddr>().unwrap());
            assert_eq!(parse_server(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn stub_domains() {
        let stub: StubDomain = "Corp.Example.=192.0.2.1,192.0.2.2:5353".parse().unwrap();
        assert_eq!(stub.to_string(), "corp.example=192.0.2.1:53,192.0.2.2:5353");
        let both = parse_stub_domains("a.example=192.0.2.1,192.0.2.2; b.example=192.0.2.3;").unwrap();
        assert_eq!(both.iter().map(|stub| stub.servers.len()).collect::<Vec<_>>(), [2, 1]);
        assert!(parse_stub_domains("").unwrap().is_empty() && parse_servers(" ").unwrap().is_empty());
        assert_eq!(parse_servers("192.0.2.1, 192.0.2.2:54").unwrap().len(), 2);
        assert!(parse_servers("192.0.2.1,x").is_err());
        for text in ["corp.example", "=192.0.2.1", "corp.example=", "a..b=192.0.2.1", "corp.example=dns"] {
            assert!(text.parse::<StubDomain>().is_err(), "{text}");
        }
    }

    #[test]
    fn loopback_servers_of_the_host_are_never_asked() {
        let folder = tempfile::tempdir().unwrap();
        let (stub, full) = (folder.path().join("stub"), folder.path().join("full"));
        std::fs::write(&stub, "# systemd\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 0.0.0.0\n")
            .unwrap();
        let servers = "nameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver 192.0.2.53\n\
                       search example.com\n nameserver 2001:db8::53 \nnameserver ::ffff:127.0.0.53\n";
        std::fs::write(&full, servers).unwrap();
        let missing = folder.path().join("missing");
        let found = from_files(&[missing.clone(), stub.clone(), full]).unwrap();
        let text: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["192.0.2.53:53", "[2001:db8::53]:53"]);
        assert!(from_files(&[missing, stub]).unwrap().is_empty());
    }
}
