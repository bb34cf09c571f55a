//! The addon's manifests are what this server needs: typed, without an unknown field, ports that match.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{Config, parse_servers, parse_stub_domains};

const FILES: [&str; 3] = [
    include_str!("../../../../addons/dns/10-access.yaml"),
    include_str!("../../../../addons/dns/20-service.yaml"),
    include_str!("../../../../addons/dns/30-deployment.yaml"),
];
const ADDON: &str = include_str!("../../../../addons/dns/addon.yaml");

fn filled(upstream: &str, stub_domains: &str) -> Vec<Value> {
    let values = [
        ("${version}", "1.2.3"),
        ("${cluster_dns}", "10.96.0.10"),
        ("${cluster_domain}", "cluster.local"),
        ("${upstream}", upstream),
        ("${stub_domains}", stub_domains),
        ("${replicas}", "2"),
    ];
    let mut objects = Vec::new();
    for file in FILES {
        let text = values.iter().fold(file.to_owned(), |text, (name, value)| text.replace(name, value));
        assert!(!text.contains("${"), "an unknown placeholder in\n{text}");
        for document in text.split("\n---\n") {
            objects.push(serde_saphyr::from_str::<Value>(document).unwrap());
        }
    }
    objects
}

fn find<T: serde::de::DeserializeOwned + serde::Serialize>(objects: &[Value], kind: &str) -> T {
    let object = objects.iter().find(|object| object["kind"] == kind).unwrap();
    let typed: T = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(&serde_json::to_value(&typed).unwrap(), object, "a field that {kind} does not have");
    typed
}

fn container(objects: &[Value]) -> Container {
    let deployment: Deployment = find(objects, "Deployment");
    deployment.spec.unwrap().template.spec.unwrap().containers.remove(0)
}

#[test]
fn probes_and_ports_are_those_of_the_server() {
    let objects = filled("", "");
    let container = container(&objects);
    let config = Config::default();
    let port = |probe: Option<k8s_openapi::api::core::v1::Probe>| {
        let get = probe.unwrap().http_get.unwrap();
        (get.path.unwrap(), get.port)
    };
    let number = |address: Option<std::net::SocketAddr>| i32::from(address.unwrap().port());
    assert_eq!(
        port(container.liveness_probe),
        ("/health".to_owned(), IntOrString::Int(number(config.health)))
    );
    assert_eq!(
        port(container.readiness_probe),
        ("/ready".to_owned(), IntOrString::Int(number(config.ready)))
    );
    let ports = container.ports.unwrap();
    let named =
        |name: &str| ports.iter().find(|port| port.name.as_deref() == Some(name)).unwrap().container_port;
    assert_eq!((named("dns"), named("dns-tcp")), (53, 53));
    assert_eq!(named("metrics"), number(config.metrics));
    let service: Service = find(&objects, "Service");
    let spec = service.spec.unwrap();
    assert_eq!(spec.cluster_ip.as_deref(), Some("10.96.0.10"));
    for port in spec.ports.unwrap() {
        let Some(IntOrString::String(target)) = port.target_port else { panic!("targets are named") };
        assert_eq!(port.port, named(&target), "{target}");
    }
    assert_eq!(service.metadata.name, Some(config.service.1));
    assert_eq!(service.metadata.namespace, Some(config.service.0));
}

#[test]
fn arguments_are_what_the_flags_take() {
    for (upstream, stubs, counts) in [
        ("", "", (0, 0)),
        ("192.0.2.53,[2001:db8::53]:5353", "corp.example=192.0.2.1,192.0.2.2;lab.example=192.0.2.3", (2, 2)),
    ] {
        let arguments = container(&filled(upstream, stubs)).args.unwrap();
        let value = |flag: &str| {
            arguments
                .iter()
                .find_map(|argument| argument.strip_prefix(flag))
                .unwrap_or_else(|| panic!("{flag}"))
        };
        assert_eq!(value("--domain="), "cluster.local");
        let servers = parse_servers(value("--upstream=")).unwrap();
        let stubs = parse_stub_domains(value("--stub-domains=")).unwrap();
        assert_eq!((servers.len(), stubs.len()), counts);
    }
}

#[test]
fn every_argument_is_used_and_documented() {
    let addon: Value = serde_saphyr::from_str(ADDON).unwrap();
    assert_eq!(addon["name"], "dns");
    for argument in addon["arguments"].as_array().unwrap() {
        let placeholder = format!("${{{}}}", argument["name"].as_str().unwrap());
        assert!(FILES.iter().any(|file| file.contains(&placeholder)), "{placeholder} is not used");
        assert!(argument["description"].is_string() && !argument["default"].is_null(), "{placeholder}");
    }
}
