//! Reads settings one by one: text in, checked values out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kedge_cluster::Role;

use super::settings::Settings;

/// A taint of the Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub(crate) effect: String,
}

const SMALLEST_SIZE: u64 = 1 << 20;
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
    pub(super) faults: Vec<String>,
}

impl Reader {
    pub(super) fn optional<T: std::str::FromStr>(&mut self, key: &str, what: &str) -> Option<T> {
        let text = self.settings.get(key).filter(|text| !text.is_empty())?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(_) => {
                self.faults.push(format!("{}: {text:?} is not {what}", self.settings.place(key)));
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
            self.faults.push(format!("{key}: 0 is not a port between 1 and 65535"));
        }
        port
    }

    pub(super) fn interval(&mut self, key: &str, default: &str) -> Option<Duration> {
        let text: String = self.parsed(key, "a time", default.to_owned());
        if matches!(text.as_str(), "off" | "never" | "0") {
            return None;
        }
        match parse_duration(&text) {
            Ok(interval) => Some(interval),
            Err(fault) => {
                self.faults.push(format!("{key}: {fault} (or off)"));
                None
            }
        }
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
            self.faults.push(format!("{key}: 0 would keep nothing; use 1 or more"));
        }
        count
    }

    pub(super) fn folder(&mut self, key: &str, default: &str) -> PathBuf {
        let path: PathBuf = self.parsed(key, "a path", PathBuf::from(default));
        if !path.is_absolute() || path.parent().is_none() {
            self.faults.push(format!("{key}: {} is not an absolute path of a folder", path.display()));
        }
        path
    }

    pub(super) fn name(
        &mut self,
        key: &str,
        default: &str,
        longest: usize,
        valid: fn(&str) -> bool,
    ) -> String {
        let name: String = self.parsed(key, "a name", default.to_owned());
        if name.len() > longest || !valid(&name) {
            self.faults.push(format!("{key}: {name:?} is not a valid name of at most {longest} characters"));
        }
        name
    }

    /// `KEY=VALUE` each; upstream's rules for labels.
    pub(super) fn labels(&mut self, key: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for part in self.parts(key, ',') {
            match part.split_once('=') {
                Some((name, value)) if is_qualified(name) && is_label_value(value) => {
                    labels.insert(name.to_owned(), value.to_owned());
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

    pub(super) fn fault(&mut self, key: &str, text: &str) {
        self.faults.push(format!("{}: {text}", self.settings.place(key)));
    }

    /// The host's name in lower case, as upstream's kubelet takes it.
    pub(super) fn node_name(&mut self) -> String {
        let host = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .map(|name| name.trim().to_lowercase())
            .filter(|name| is_domain(name))
            .unwrap_or_else(|| "kedge".to_owned());
        self.name("node-name", &host, 253, is_domain)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "h", "-1h", "0", "1w", "1.5h", "9999d", "99999999999999999999s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
