//! `kedge version`.

use std::collections::BTreeMap;

use crate::cli::Format;

/// The text is the line that scripts compare; JSON and YAML hold the parts.
pub(crate) fn run(format: Format) -> anyhow::Result<()> {
    let git_version = kedge_base::git_version();
    let parts = [
        ("version", kedge_base::VERSION),
        ("kubernetesVersion", kedge_base::KUBERNETES_VERSION),
        ("gitVersion", git_version.as_str()),
        ("platform", platform()),
    ];
    let short = format!("kedge {} (Kubernetes {git_version})\n", kedge_base::VERSION);
    super::print(format, &short, &BTreeMap::from(parts))
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        "aarch64" => "linux/arm64",
        other => other,
    }
}
