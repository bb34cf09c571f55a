//! The `/etc/hosts` file that a pod's containers see (upstream `kubelet_pods.go`, `managedHostsFileContent`).

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::pod;

/// The first line tells users that edits are lost.
const HEADER: &str = "# Kubernetes-managed hosts file.\n";
const HOST_HEADER: &str = "# Kubernetes-managed hosts file (host network).\n";

/// The host's own file, with the pod's aliases, for pods on the host's network.
pub(crate) fn host_network(host_file: &str, pod: &Pod) -> String {
    format!("{HOST_HEADER}{host_file}{}", aliases(pod))
}

/// The file of a pod with its own network.
pub(crate) fn own_network(ips: &[String], hostname: &str, domain: &str, pod: &Pod) -> String {
    let mut text = HEADER.to_owned();
    text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n");
    text.push_str("fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
    for ip in ips {
        if domain.is_empty() {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        } else {
            text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
        }
    }
    text.push_str(&aliases(pod));
    text
}

fn aliases(pod: &Pod) -> String {
    let spec = pod::spec(pod);
    let list: Vec<HostAlias> = spec.host_aliases.unwrap_or_default();
    if list.is_empty() {
        return String::new();
    }
    let mut text = "\n# Entries added by HostAliases.\n".to_owned();
    for alias in list {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.unwrap_or_default().join("\t")));
    }
    text
}

/// The pod's host name and its domain, empty without a subdomain.
pub(crate) fn names(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod::spec(pod);
    if let Some(name) = spec.hostname_override.filter(|name| !name.is_empty()) {
        return (name, String::new());
    }
    // Linux allows 64 bytes; upstream cuts generated names at 63 and drops a trailing dash or dot.
    let mut hostname: String = spec
        .hostname
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| pod::name(pod).chars().take(63).collect());
    hostname.truncate(hostname.trim_end_matches(['-', '.']).len());
    let domain = spec
        .subdomain
        .filter(|subdomain| !subdomain.is_empty())
        .map(|subdomain| format!("{subdomain}.{}.svc.{cluster_domain}", pod::namespace(pod)))
        .unwrap_or_default();
    if spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        let full = format!("{hostname}.{domain}");
        if full.len() <= 64 {
            return (full, String::new());
        }
    }
    (hostname, domain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;

    #[test]
    fn file_has_names_and_aliases() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web-0".into());
        pod.metadata.namespace = Some("shop".into());
        pod.spec = Some(PodSpec {
            subdomain: Some("web".into()),
            host_aliases: Some(vec![HostAlias {
                ip: "192.0.2.7".into(),
                hostnames: Some(vec!["db".into(), "db.local".into()]),
            }]),
            ..PodSpec::default()
        });
        let (hostname, domain) = names(&pod, "cluster.local");
        assert_eq!((hostname.as_str(), domain.as_str()), ("web-0", "web.shop.svc.cluster.local"));
        let file = own_network(&["10.0.0.9".to_owned()], &hostname, &domain, &pod);
        assert!(file.contains("10.0.0.9\tweb-0.web.shop.svc.cluster.local\tweb-0\n"));
        assert!(file.ends_with("192.0.2.7\tdb\tdb.local\n"));
    }
}
