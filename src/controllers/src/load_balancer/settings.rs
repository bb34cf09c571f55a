//! What the addon's ConfigMap says.

use k8s_openapi::api::core::v1::ConfigMap;
use kedge_base::AddressRange;
use kedge_client::Informer;

pub(super) const NAMESPACE: &str = "kube-system";
pub(super) const NAME: &str = "kedge-load-balancer";
const ADDRESSES: &str = "addresses";

/// Where Services answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// At the nodes' own addresses.
    Nodes,
    /// At addresses of these ranges.
    Pool(Vec<AddressRange>),
}

impl Mode {
    /// The value of the Service's annotation.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Pool(_) => "pool",
        }
    }
}

/// How the addon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Off,
    On(Mode),
    /// The ConfigMap makes no sense; the text says why.
    Broken(String),
}

/// The one object that is watched.
pub(super) fn selector() -> String {
    format!("metadata.name={NAME},metadata.namespace={NAMESPACE}")
}

pub(super) fn read(maps: &Informer<ConfigMap>) -> State {
    maps.get(NAMESPACE, NAME).as_deref().map_or(State::Off, of)
}

fn of(map: &ConfigMap) -> State {
    if map.metadata.deletion_timestamp.is_some() {
        return State::Off;
    }
    let text = map.data.as_ref().and_then(|data| data.get(ADDRESSES)).map_or("", String::as_str);
    match AddressRange::parse_list(text) {
        Ok(ranges) if ranges.is_empty() => State::On(Mode::Nodes),
        Ok(ranges) => State::On(Mode::Pool(ranges)),
        Err(error) => State::Broken(format!("{ADDRESSES} of the ConfigMap {NAMESPACE}/{NAME}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_follows_from_the_addresses() {
        let state = |text: Option<&str>| {
            let data = text.map(|text| [(ADDRESSES.to_owned(), text.to_owned())].into());
            of(&ConfigMap { data, ..ConfigMap::default() })
        };
        assert_eq!(state(None), State::On(Mode::Nodes));
        assert_eq!(state(Some("")), State::On(Mode::Nodes));
        let pool = AddressRange::parse_list("192.0.2.1-192.0.2.4,2001:db8::/126").unwrap();
        assert_eq!(state(Some("192.0.2.1-192.0.2.4,2001:db8::/126")), State::On(Mode::Pool(pool)));
        assert!(
            matches!(state(Some("here")), State::Broken(text) if text.contains("\"here\" is not an address"))
        );
    }
}
