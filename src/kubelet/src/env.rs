//! The environment of a container: values, references, `$(VAR)` expansion and services
//! (upstream `kubelet_pods.go`, `makeEnvironmentVariables`, and `pkg/kubelet/envvars`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, Service};

use crate::fields::{self, NodeFacts};
use crate::objects::{Objects, Source};
use crate::{Error, pod};

/// The services whose addresses are put into the environment.
pub(crate) fn of_services(
    services: &[std::sync::Arc<Service>],
    namespace: &str,
    links: bool,
) -> Vec<(String, String)> {
    let mut chosen: BTreeMap<String, std::sync::Arc<Service>> = BTreeMap::new();
    for service in services {
        let Some(name) = service.metadata.name.clone() else { continue };
        let own = service.metadata.namespace.as_deref() == Some(namespace);
        let master = service.metadata.namespace.as_deref() == Some("default") && name == "kubernetes";
        if (own && links) || (master && !chosen.contains_key(&name)) {
            chosen.insert(name, service.clone());
        }
    }
    let mut variables = Vec::new();
    for (name, service) in chosen {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
            continue;
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let prefix = variable_name(&name);
        variables.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
        variables.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                variables.push((
                    format!("{prefix}_SERVICE_PORT_{}", variable_name(port_name)),
                    port.port.to_string(),
                ));
            }
        }
        // The variables of Docker's old links.
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let lower = protocol.to_lowercase();
            let url = format!("{lower}://{host}:{}", port.port);
            if index == 0 {
                variables.push((format!("{prefix}_PORT"), url.clone()));
            }
            let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            variables.push((port_prefix.clone(), url));
            variables.push((format!("{port_prefix}_PROTO"), lower));
            variables.push((format!("{port_prefix}_PORT"), port.port.to_string()));
            variables.push((format!("{port_prefix}_ADDR"), ip.to_owned()));
        }
    }
    variables
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace(['-', '.'], "_")
}

/// All variables of a container, in the order in which they were named.
pub(crate) async fn make(
    pod: &Pod,
    container: &Container,
    services: Vec<(String, String)>,
    objects: &Objects,
    facts: &NodeFacts,
) -> Result<Vec<(String, String)>, Error> {
    let namespace = pod::namespace(pod).to_owned();
    let mut result = Variables::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.clone().unwrap_or_default();
        let (secret, name, optional) = if let Some(map) = &from.config_map_ref {
            (false, map.name.clone(), map.optional.unwrap_or(false))
        } else if let Some(secret) = &from.secret_ref {
            (true, secret.name.clone(), secret.optional.unwrap_or(false))
        } else {
            continue;
        };
        let source = Source { secret, namespace: namespace.clone(), name };
        match objects.get(&source).await? {
            Some(object) => {
                for (key, value) in &object.data {
                    result.set(format!("{prefix}{key}"), text(value, &source)?);
                }
            }
            None if optional => {}
            None => return Err(missing(&source)),
        }
    }
    // What `$(VAR)` may refer to: services, and what was defined before.
    let services: BTreeMap<String, String> = services.into_iter().collect();
    for variable in container.env.iter().flatten() {
        let mut value = variable.value.clone().unwrap_or_default();
        if !value.is_empty() {
            value = expand(&value, |name| result.get(name).or_else(|| services.get(name).cloned()));
        } else if let Some(from) = &variable.value_from {
            if let Some(field) = &from.field_ref {
                value = fields::field(pod, &field.field_path, facts)?;
            } else if let Some(resource) = &from.resource_field_ref {
                value = fields::resource(pod, resource, &container.name, facts)?;
            } else {
                let (secret, name, key, optional) = if let Some(map) = &from.config_map_key_ref {
                    (false, map.name.clone(), map.key.clone(), map.optional.unwrap_or(false))
                } else if let Some(secret) = &from.secret_key_ref {
                    (true, secret.name.clone(), secret.key.clone(), secret.optional.unwrap_or(false))
                } else {
                    return Err(Error::config(format!(
                        "the source of environment variable {} is not supported",
                        variable.name
                    )));
                };
                let source = Source { secret, namespace: namespace.clone(), name };
                match objects.get(&source).await? {
                    None if optional => continue,
                    None => return Err(missing(&source)),
                    Some(object) => match object.data.get(&key) {
                        Some(bytes) => value = text(bytes, &source)?,
                        None if optional => continue,
                        None => {
                            return Err(Error::config(format!(
                                "couldn't find key {key} in {} {}/{}",
                                if secret { "Secret" } else { "ConfigMap" },
                                source.namespace,
                                source.name
                            )));
                        }
                    },
                }
            }
        }
        result.set(variable.name.clone(), value);
    }
    for (name, value) in services {
        if result.get(&name).is_none() {
            result.set(name, value);
        }
    }
    Ok(result.0)
}

fn missing(source: &Source) -> Error {
    Error::config(format!(
        "{} {:?} not found",
        if source.secret { "secret" } else { "configmap" },
        source.name
    ))
}

fn text(bytes: &[u8], source: &Source) -> Result<String, Error> {
    match String::from_utf8(bytes.to_vec()) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(Error::config(format!(
            "a value of {} {} is not text and cannot be an environment variable",
            if source.secret { "secret" } else { "configmap" },
            source.name
        ))),
    }
}

#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

/// Replaces `$(NAME)`; `$$` is a literal dollar; an unknown name stays as it was written
/// (upstream `third_party/forked/golang/expansion`).
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

/// Command or arguments with the container's variables filled in.
pub(crate) fn expand_all(words: Option<&Vec<String>>, variables: &[(String, String)]) -> Vec<String> {
    let lookup =
        |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    words.into_iter().flatten().map(|word| expand(word, lookup)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
    use std::sync::Arc;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn services_of_the_namespace_and_the_api_server() {
        let service = |namespace: &str, name: &str| {
            let mut service = Service::default();
            service.metadata.namespace = Some(namespace.into());
            service.metadata.name = Some(name.into());
            service.spec = Some(ServiceSpec {
                cluster_ip: Some("10.96.0.1".into()),
                ports: Some(vec![ServicePort {
                    name: Some("https".into()),
                    port: 443,
                    ..Default::default()
                }]),
                ..Default::default()
            });
            Arc::new(service)
        };
        let all = [service("default", "kubernetes"), service("shop", "my-db"), service("other", "x")];
        let names = |links| -> Vec<String> {
            of_services(&all, "shop", links).into_iter().map(|(name, _)| name).collect()
        };
        assert!(names(true).contains(&"MY_DB_SERVICE_PORT_HTTPS".to_owned()));
        assert!(names(true).contains(&"KUBERNETES_PORT_443_TCP_ADDR".to_owned()));
        assert!(!names(false).contains(&"MY_DB_SERVICE_HOST".to_owned()));
        assert!(names(false).contains(&"KUBERNETES_SERVICE_HOST".to_owned()));
        assert!(!names(true).iter().any(|name| name.starts_with("X_")));
    }
}
