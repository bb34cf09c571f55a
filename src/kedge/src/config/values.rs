//! Reads settings one by one: text in, checked values out.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use kedge_apiserver::is_restricted_label;
use kedge_cluster::Role;

use super::Fault;
use super::settings::{Origin, Settings};

/// A taint of the Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub(crate) effect: String,
}

const SMALLEST_SIZE: u64 = 1 << 20;
/// A snapshot is a copy of everything.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(5);
/// Services get their ports on nodes from here.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// `uninstall` and `reset` remove what a node has as its own folder.
const SYSTEM_FOLDERS: [&str; 20] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/local",
    "/var",
    "/var/lib",
    "/var/log",
];
/// The names of sockets are cut at this.
const LONGEST_SOCKET: usize = 107;
/// The longest one below the run folder.
const SOCKET: &str = "/containerd/containerd.sock.ttrpc";
const UNITS: [(&str, u32); 4] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];

fn parse_size(text: &str) -> Option<u64> {
    let unit = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The text that [`Reader::size`] reads as this.
pub(super) fn size_text(size: u64) -> String {
    if size == 0 {
        return "off".to_owned();
    }
    let whole = UNITS.iter().rev().find(|(_, shift)| size.trailing_zeros() >= *shift);
    whole.map_or_else(|| size.to_string(), |(unit, shift)| format!("{}{unit}", size >> shift))
}

/// Reads settings one by one and collects what is wrong; a fault yields the default.
pub(super) struct Reader {
    pub(super) settings: Settings,
    pub(super) faults: Vec<Fault>,
}

impl Reader {
    pub(super) fn optional<T: std::str::FromStr>(&mut self, key: &str, what: &str) -> Option<T> {
        let text = self.settings.get(key).filter(|text| !text.is_empty())?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(_) => {
                let text = format!("{text:?} is not {what}");
                self.fault(key, &text);
                None
            }
        }
    }

    pub(super) fn parsed<T: std::str::FromStr>(&mut self, key: &str, what: &str, default: T) -> T {
        self.optional(key, what).unwrap_or(default)
    }

    pub(super) fn port(&mut self, key: &str, default: u16) -> u16 {
        let port = self.parsed(key, "a port between 1 and 65535", default);
        if port == 0 {
            self.fault(key, "0 is not a port between 1 and 65535");
        }
        if NODE_PORTS.contains(&port) {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            self.refuse(
                key,
                format!("{port} is one of Services' node ports, {first}-{last}"),
                "choose another",
            );
        }
        port
    }

    pub(super) fn interval(&mut self, key: &str, default: &str) -> Option<Duration> {
        let text: String = self.parsed(key, "a time", default.to_owned());
        if matches!(text.as_str(), "off" | "never" | "0") {
            return None;
        }
        match parse_duration(&text) {
            Err(fault) => self.fault(key, &format!("{fault} (or off)")),
            Ok(_) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.refuse(key, format!("{text} has no unit"), format!("write {text}m, {text}h or {text}d"));
            }
            Ok(interval) if interval < SHORTEST_INTERVAL => {
                self.refuse(
                    key,
                    format!("{text} is too short"),
                    format!("write 5s or more; usual is {default}"),
                );
            }
            Ok(interval) => return Some(interval),
        }
        None
    }

    /// `512Mi`, `2Gi`, or `off`, which is 0.
    pub(super) fn size(&mut self, key: &str, default: u64) -> u64 {
        let Some(text) = self.optional::<String>(key, "a size") else { return default };
        if matches!(text.as_str(), "off" | "never" | "0") {
            return 0;
        }
        match parse_size(&text) {
            Some(size) if size >= SMALLEST_SIZE => size,
            Some(_) => {
                self.fault(key, &format!("{text:?} is less than 1Mi"));
                default
            }
            None => {
                self.fault(key, &format!("{text:?} is no size such as 512Mi or 2Gi (or off)"));
                default
            }
        }
    }

    pub(super) fn count(&mut self, key: &str, default: usize) -> usize {
        let count = self.parsed(key, "a number", default);
        if count == 0 {
            self.refuse(key, "0 would keep nothing", "use 1 or more");
        }
        count
    }

    pub(super) fn folder(&mut self, key: &str, default: &str) -> PathBuf {
        self.path(key, "a folder").unwrap_or_else(|| default.into())
    }

    /// A folder that this node has for itself.
    pub(super) fn own_folder(&mut self, key: &str, default: &str) -> PathBuf {
        let folder = self.folder(key, default);
        if SYSTEM_FOLDERS.iter().any(|system| folder == Path::new(system)) {
            let what = format!("{} is the system's, and kedge uninstall would remove it", folder.display());
            self.refuse(key, what, format!("choose a folder for kedge alone, such as {default}"));
        }
        // What parts the options of an overlay's mount.
        if folder.as_os_str().as_bytes().iter().any(|byte| b":,".contains(byte)) {
            let what = "has a colon or a comma, with which containers' file systems cannot be mounted";
            self.refuse(key, format!("{} {what}", folder.display()), "choose another");
        }
        folder
    }

    pub(super) fn run_dir(&mut self, key: &str) -> PathBuf {
        let folder = self.own_folder(key, "/run/kedge");
        let longest = LONGEST_SOCKET - SOCKET.len();
        if folder.as_os_str().len() > longest {
            let what = format!("{} is too long for the names of sockets in it", folder.display());
            self.refuse(key, what, format!("choose one of at most {longest} bytes"));
        }
        folder
    }

    /// The path of `what`: the service that reads it has no folder of its own to look from.
    pub(super) fn path(&mut self, key: &str, what: &str) -> Option<PathBuf> {
        let path: PathBuf = self.optional(key, "a path")?;
        let steps_back = path.components().any(|part| part == Component::ParentDir);
        if !path.is_absolute() || path.parent().is_none() || steps_back {
            self.fault(key, &format!("{} is not an absolute path of {what}, without ..", path.display()));
        }
        Some(path)
    }

    /// `rule` says what is `valid`.
    pub(super) fn name(&mut self, key: &str, default: &str, rule: &str, valid: fn(&str) -> bool) -> String {
        let name = match self.settings.get(key) {
            // A variable that is empty is one that is not set.
            Some("") if self.settings.origin(key) != Some(&Origin::Environment) => {
                self.refuse(key, "it is empty", format!("leave it out for {default}, or write {rule}"));
                default.to_owned()
            }
            None | Some("") => default.to_owned(),
            Some(name) => name.to_owned(),
        };
        if !valid(&name) {
            self.refuse(key, format!("{name:?} is not valid"), format!("write {rule}"));
        }
        name
    }

    /// `KEY=VALUE` each; upstream's rules for labels.
    pub(super) fn labels(&mut self, key: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for part in self.parts(key, ',') {
            match part.split_once('=') {
                Some((name, value)) if is_qualified(name) && is_label_value(value) => {
                    if is_restricted_label(name) {
                        let remedy =
                            "use one that is not Kubernetes' own, or kubectl label node when it runs";
                        self.refuse(key, format!("no node may give itself the label {name}"), remedy);
                    }
                    if labels.insert(name.to_owned(), value.to_owned()).is_some() {
                        self.refuse(key, format!("{name} is there twice"), "name it once");
                    }
                }
                _ => self.fault(key, &format!("{part:?} is no label such as disk=ssd")),
            }
        }
        labels
    }

    /// `REGISTRY=URL` each.
    pub(super) fn mirrors(&mut self, key: &str) -> kedge_kubelet::Mirrors {
        let mut mirrors = kedge_kubelet::Mirrors::new();
        for part in self.parts(key, ',') {
            let Some((registry, url)) = part.split_once('=') else {
                self.fault(key, &format!("{part:?} is no mirror such as docker.io=https://mirror.example"));
                continue;
            };
            match kedge_kubelet::check_mirror(registry, url) {
                Ok(()) => mirrors.entry(registry.to_owned()).or_default().push(url.to_owned()),
                Err(error) => self.fault(key, &error.to_string()),
            }
        }
        mirrors
    }

    /// `KEY[=VALUE]:EFFECT` each.
    pub(super) fn taints(&mut self, key: &str) -> Vec<Taint> {
        let mut taints = Vec::new();
        for part in self.parts(key, ',') {
            let (name, effect) = part.rsplit_once(':').unwrap_or((&part, ""));
            let (name, value) = name.split_once('=').unwrap_or((name, ""));
            let known = matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute");
            if known && is_qualified(name) && is_label_value(value) {
                if taints.iter().any(|taint: &Taint| taint.key == name && taint.effect == effect) {
                    self.refuse(key, format!("{name} with {effect} is there twice"), "name it once");
                }
                taints.push(Taint { key: name.into(), value: value.into(), effect: effect.into() });
            } else {
                self.fault(
                    key,
                    &format!(
                        "{part:?} is no taint such as edge=yes:NoSchedule (or PreferNoSchedule, NoExecute)"
                    ),
                );
            }
        }
        taints
    }

    /// Names with arguments, separated by white space.
    pub(super) fn words(&mut self, key: &str) -> Option<Vec<String>> {
        let text = self.settings.get(key)?;
        Some(text.split_whitespace().map(str::to_owned).collect())
    }

    pub(super) fn join(&mut self, key: &str) -> Option<String> {
        let text = self.settings.get(key).filter(|text| !text.is_empty())?.to_owned();
        if let Err(error) = text.parse::<kedge_cluster::JoinString>() {
            // Not the text itself: it holds a token.
            self.fault(key, &kedge_base::Chain(&error).to_string());
        }
        Some(text)
    }

    pub(super) fn role(&mut self, key: &str) -> Role {
        match self.settings.get(key) {
            None | Some("" | "control-plane") => Role::ControlPlane,
            Some("worker") => Role::Worker,
            Some(other) => {
                let text = format!("{other:?} is neither control-plane nor worker");
                self.fault(key, &text);
                Role::ControlPlane
            }
        }
    }

    /// `flannel`, or `none`.
    pub(super) fn pod_network(&mut self, key: &str) -> bool {
        match self.settings.get(key) {
            None | Some("" | "flannel") => true,
            Some("none") => false,
            Some(other) => {
                let text = format!("{other:?} is neither flannel nor none");
                self.fault(key, &text);
                true
            }
        }
    }

    pub(super) fn parts(&self, key: &str, separator: char) -> Vec<String> {
        let text = self.settings.get(key).unwrap_or_default();
        text.split(separator).map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    pub(super) fn fault(&mut self, key: &str, what: &str) {
        let what = format!("{}: {what}", self.settings.place(key));
        self.faults.push(Fault { what, remedy: None });
    }

    /// A fault of which is known what to write instead.
    pub(super) fn refuse(&mut self, key: &str, what: impl Display, remedy: impl Display) {
        let what = format!("{}: {what}", self.settings.place(key));
        self.faults.push(Fault::new(what, remedy));
    }

    /// The host's name in lower case, as upstream's kubelet takes it.
    pub(super) fn node_name(&mut self) -> String {
        let host = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .map(|name| name.trim().to_lowercase())
            .filter(|name| is_domain(name))
            .unwrap_or_else(|| "kedge".to_owned());
        // It is a label, too.
        let rule = "small letters, digits, - and dots, at most 63 characters";
        self.name("node-name", &host, rule, |name| name.len() <= 63 && is_domain(name))
    }

    pub(super) fn cluster_domain(&mut self) -> String {
        let rule = "a DNS name such as cluster.local";
        self.name("cluster-domain", "cluster.local", rule, |name| name.len() <= 253 && is_domain(name))
    }

    pub(super) fn table_name(&mut self) -> String {
        let rule = "a letter, then letters, digits, - _ and dots, at most 200 characters";
        self.name("table-name", "kedge", rule, |name| name.len() <= 200 && is_identifier(name))
    }

    pub(super) fn bridge_name(&mut self) -> String {
        // Linux cuts interface names at 15 characters; these names are taken.
        let valid = |name: &str| {
            name.len() <= 15 && is_identifier(name) && name != "lo" && !name.starts_with("flannel")
        };
        let rule = "a letter, then letters, digits, - _ and dots, at most 15 characters, and neither lo nor flannel...";
        self.name("bridge-name", "kedge0", rule, valid)
    }
}

/// RFC 1123 subdomain.
pub(super) fn is_domain(name: &str) -> bool {
    !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

pub(super) fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// `[DOMAIN/]NAME`, upstream's qualified name.
fn is_qualified(name: &str) -> bool {
    let (domain, name) = name.rsplit_once('/').map_or((None, name), |(domain, name)| (Some(domain), name));
    domain.is_none_or(is_domain) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    value.len() <= 63
        && value.bytes().all(inner)
        && ends(value.bytes().next())
        && ends(value.bytes().next_back())
}

/// `90`, `90s`, `15m`, `1h`, `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        Some((at, 'd')) => (&text[..at], 86_400),
        _ => (text, 1),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("{text:?} is no duration such as 90s, 15m, 1h or 7d"))?;
    match number.checked_mul(factor) {
        Some(0) => Err("it must be longer than nothing".to_owned()),
        Some(seconds) if seconds <= 366 * 86_400 => Ok(Duration::from_secs(seconds)),
        _ => Err("a year is the longest".to_owned()),
    }
}

/// In the largest unit that it is whole in.
pub(super) fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, 'd'), (3600, 'h'), (60, 'm')];
    let unit = units.into_iter().find(|(length, _)| seconds.is_multiple_of(*length));
    let (length, unit) = unit.unwrap_or((1, 's'));
    format!("{}{unit}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for text in ["5s", "90s", "15m", "90m", "12h", "7d"] {
            assert_eq!(parse_duration(text).map(duration_text).as_deref(), Ok(text));
        }
        for (text, seconds) in [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "h", "-1h", "0", "1w", "1.5h", "9999d", "99999999999999999999s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
