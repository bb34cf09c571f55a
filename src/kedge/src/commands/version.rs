//! `kedge version`.

use serde_json::json;

use crate::output;

/// `short` is the line that scripts compare; `json` and `yaml` hold the parts.
pub(crate) fn run(format: &str) {
    let git_version = kedge_base::git_version();
    let parts = [
        ("version", kedge_base::VERSION),
        ("kubernetesVersion", kedge_base::KUBERNETES_VERSION),
        ("gitVersion", git_version.as_str()),
        ("platform", platform()),
    ];
    match format {
        "json" => {
            let object: serde_json::Map<String, serde_json::Value> =
                parts.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
            output::say(&format!("{:#}", serde_json::Value::Object(object)));
        }
        "yaml" => parts.iter().for_each(|(key, value)| output::say(&format!("{key}: {value}"))),
        _ => output::say(&format!("kedge {} (Kubernetes {git_version})", kedge_base::VERSION)),
    }
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        "aarch64" => "linux/arm64",
        other => other,
    }
}
