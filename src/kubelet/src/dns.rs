//! The resolver configuration of a pod by its DNS policy (upstream `pkg/kubelet/network/dns/dns.go`).

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::{Config, pod};

/// Limits of the C library that upstream keeps to.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// What the host's `resolv.conf` says.
pub(crate) fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            // The last line wins.
            Some("search") => {
                config.searches = words.map(|word| word.trim_end_matches('.').to_owned()).collect();
                config.searches.retain(|word| !word.is_empty());
            }
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config
}

/// The pod's resolver configuration, given the host's.
pub(crate) fn for_pod(config: &Config, host: DnsConfig, pod: &Pod) -> DnsConfig {
    let spec = pod::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = !config.cluster_dns.is_empty()
        && (policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !pod::host_network(pod)));
    let mut dns = if policy == "None" {
        DnsConfig::default()
    } else if cluster {
        let domain = config.cluster_domain.as_str();
        let mut searches = Vec::new();
        if !domain.is_empty() {
            searches.push(format!("{}.svc.{domain}", pod::namespace(pod)));
            searches.push(format!("svc.{domain}"));
            searches.push(domain.to_owned());
        }
        searches.extend(host.searches);
        DnsConfig {
            servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        host
    };
    if let Some(own) = &spec.dns_config {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            dns.options.retain(|existing| existing.split(':').next() != Some(name));
            dns.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            });
        }
    }
    unique(&mut dns.servers);
    unique(&mut dns.searches);
    dns.servers.truncate(MAX_SERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    dns
}

fn unique(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_file() {
        let dns =
            parse("# comment\nnameserver 192.0.2.1\nsearch a.example b.example.\noptions ndots:2 edns0\n");
        assert_eq!(dns.servers, ["192.0.2.1"]);
        assert_eq!(dns.searches, ["a.example", "b.example"]);
        assert_eq!(dns.options, ["ndots:2", "edns0"]);
    }
}
