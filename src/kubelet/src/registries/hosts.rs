//! The file as containerd wants it: a folder for each registry with a `hosts.toml`
//! (containerd's docs/hosts.md). Files that somebody else put there are left alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{File, Host, Mirror, Tls};
use crate::Error;

/// The first line of files that are ours.
const HEADING: &str = "# Written by kedge from registries.yaml; changes are lost.\n";

/// A mirror's URL in parts.
pub(super) struct Endpoint {
    scheme: String,
    /// With the port, if there is one.
    pub(super) host: String,
    /// Begins with a slash, ends with none.
    path: String,
}

impl Endpoint {
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let wrong =
            || Error::other(format!("the endpoint {url:?} is no URL; write it as https://HOST[:PORT]"));
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let (Some(scheme @ ("http" | "https")), Some(host)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong());
        };
        if uri.query().is_some() || host.as_str().contains('@') {
            return Err(wrong());
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            host: host.to_string(),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// Where Docker's registry really is.
pub(super) fn real_host(host: &str) -> &str {
    if host == "docker.io" { "registry-1.docker.io" } else { host }
}

/// Folder name to the content of its `hosts.toml`.
pub(super) fn render(file: &File) -> Result<BTreeMap<String, String>, Error> {
    let mut files = BTreeMap::new();
    for (registry, mirror) in &file.mirrors {
        check_host("mirrors", registry)?;
        let text = of_mirror(file, registry, mirror.as_ref().unwrap_or(&Mirror::default()))?;
        files.insert(folder(registry), text);
    }
    for (host, config) in &file.configs {
        check_host("configs", host)?;
        let Some(Host { tls: Some(tls), .. }) = config else { continue };
        check_tls(host, tls)?;
        if host != "*" && !files.contains_key(host) {
            files.insert(folder(host), of_mirror(file, host, &Mirror::default())?);
        }
    }
    Ok(files)
}

fn folder(registry: &str) -> String {
    if registry == "*" { "_default".to_owned() } else { registry.to_owned() }
}

pub(super) fn check_host(section: &str, host: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if host == "*" || (!host.is_empty() && !host.starts_with('.') && host.bytes().all(good)) {
        return Ok(());
    }
    Err(Error::other(format!(
        "{section}: {host:?} is no registry; write HOST or HOST:PORT without https://, or \"*\""
    )))
}

fn check_tls(host: &str, tls: &Tls) -> Result<(), Error> {
    if tls.cert_file.is_some() != tls.key_file.is_some() {
        return Err(Error::other(format!("configs.{host:?}.tls: cert_file and key_file belong together")));
    }
    for path in [&tls.ca_file, &tls.cert_file, &tls.key_file].into_iter().flatten() {
        if !path.is_absolute() {
            return Err(Error::other(format!(
                "configs.{host:?}.tls: {} is not an absolute path",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Certificates and keys that containerd could not read.
pub(super) fn check_files(file: &File) -> Vec<String> {
    let mut problems = Vec::new();
    for (host, config) in &file.configs {
        let Some(tls) = config.as_ref().and_then(|config| config.tls.as_ref()) else { continue };
        let certificates = |path: &Path| {
            let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            read.and_then(|found| if found.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(()) })
        };
        let key = |path: &Path| PrivateKeyDer::from_pem_file(path).map(drop);
        for (name, path, result) in [
            ("ca_file", &tls.ca_file, tls.ca_file.as_deref().map(certificates)),
            ("cert_file", &tls.cert_file, tls.cert_file.as_deref().map(certificates)),
            ("key_file", &tls.key_file, tls.key_file.as_deref().map(key)),
        ] {
            let (Some(path), Some(Err(error))) = (path, result) else { continue };
            let why = match error {
                pem::Error::Io(error) => error.to_string(),
                _ if name == "key_file" => "it holds no private key in PEM".to_owned(),
                _ => "it holds no certificate in PEM".to_owned(),
            };
            problems.push(format!("configs.{host:?}.tls.{name}: {}: {why}", path.display()));
        }
    }
    problems
}

fn of_mirror(file: &File, registry: &str, mirror: &Mirror) -> Result<String, Error> {
    let mut text = HEADING.to_owned();
    let own = file.host(registry).and_then(|host| host.tls.as_ref());
    if let (true, Some(tls)) = (registry != "*", own) {
        let _ = writeln!(text, "server = {}", quoted(&format!("https://{}", real_host(registry))));
        write_tls(&mut text, tls);
    }
    let prefix = prefix(registry, mirror)?;
    for url in &mirror.endpoint {
        let endpoint = Endpoint::parse(url)?;
        let mut path = endpoint.path.clone();
        if let Some(prefix) = &prefix {
            path = format!("{}/{prefix}", if path.is_empty() { "/v2" } else { &path });
        }
        let plain = path.is_empty() || path == "/v2";
        let base = format!("{}://{}{path}", endpoint.scheme, endpoint.host);
        let _ = writeln!(text, "\n[host.{}]\n  capabilities = [\"pull\", \"resolve\"]", quoted(&base));
        if !plain {
            text.push_str("  override_path = true\n");
        }
        if let Some(tls) = file.host(&endpoint.host).and_then(|host| host.tls.as_ref()) {
            write_tls(&mut text, tls);
        }
    }
    Ok(text)
}

/// containerd cannot rewrite names, but it can put a path before all of them, which is what registries that
/// hold copies of others are used with.
fn prefix(registry: &str, mirror: &Mirror) -> Result<Option<String>, Error> {
    let mut rules = mirror.rewrite.iter();
    let Some((pattern, replacement)) = rules.next() else { return Ok(None) };
    let whole = matches!(pattern.as_str(), "^(.*)$" | "^(.*)" | "(.*)$" | "(.*)" | "^(.+)$" | "(.+)");
    let prefix = replacement.strip_suffix("$1").or_else(|| replacement.strip_suffix("${1}"));
    match prefix.map(|prefix| prefix.trim_matches('/')) {
        Some(prefix) if whole && rules.next().is_none() && !prefix.contains('$') => {
            Ok((!prefix.is_empty()).then(|| prefix.to_owned()))
        }
        _ => Err(Error::other(format!(
            "mirrors.{registry:?}: rewrite can only put a path before every name, as in \"^(.*)$\": \"PATH/$1\""
        ))),
    }
}

fn write_tls(text: &mut String, tls: &Tls) {
    if let Some(ca) = &tls.ca_file {
        let _ = writeln!(text, "  ca = {}", path(ca));
    }
    if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
        let _ = writeln!(text, "  client = [[{}, {}]]", path(cert), path(key));
    }
    if tls.insecure_skip_verify {
        text.push_str("  skip_verify = true\n");
    }
}

/// A TOML string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// Makes the folder hold exactly these of our files.
pub(super) fn write(dir: &Path, files: &BTreeMap<String, String>) -> Result<(), Error> {
    let failed = |path: &Path| {
        let what = format!("write {}", path.display());
        move |error| Error::io(what, error)
    };
    for folder in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = folder.file_name().to_string_lossy().into_owned();
        let file: PathBuf = folder.path().join("hosts.toml");
        let ours = std::fs::read_to_string(&file).is_ok_and(|text| text.starts_with(HEADING));
        if ours && !files.contains_key(&name) {
            std::fs::remove_file(&file).map_err(failed(&file))?;
            // It stays when there is more in it.
            let _ = std::fs::remove_dir(folder.path());
        }
    }
    for (name, text) in files {
        let file = dir.join(name).join("hosts.toml");
        let old = kedge_base::read_optional(&file).map_err(failed(&file))?;
        if old.as_deref() == Some(text.as_bytes()) {
            continue;
        }
        std::fs::create_dir_all(dir.join(name)).map_err(failed(&file))?;
        kedge_base::write_atomic(&file, text.as_bytes(), 0o644).map_err(failed(&file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn containerd_gets_its_files() {
        let file = parse(
            r#"
mirrors:
  docker.io:
    endpoint: ["https://mirror.example:5000", "http://10.0.0.1:5000/v2"]
  "*":
    endpoint: [https://all.example/v2/cache]
  quay.io:
    endpoint: [https://harbor.example]
    rewrite: {"^(.*)$": "quay/$1"}
configs:
  mirror.example:5000:
    tls: {ca_file: /etc/ca.pem, cert_file: /etc/c.pem, key_file: /etc/k.pem}
  "own.example:5000":
    tls: {insecure_skip_verify: true}
  only-login.example:
    auth: {username: a, password: b}
"#,
        )
        .expect("valid");
        let files = render(&file).expect("rendered");
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["_default", "docker.io", "mirror.example:5000", "own.example:5000", "quay.io"]);
        let expected = format!(
            r#"{HEADING}
[host."https://mirror.example:5000"]
  capabilities = ["pull", "resolve"]
  ca = "/etc/ca.pem"
  client = [["/etc/c.pem", "/etc/k.pem"]]

[host."http://10.0.0.1:5000/v2"]
  capabilities = ["pull", "resolve"]
"#
        );
        assert_eq!(files["docker.io"], expected);
        assert!(files["_default"].contains("[host.\"https://all.example/v2/cache\"]"));
        assert!(files["_default"].contains("override_path = true"));
        assert!(files["quay.io"].contains("[host.\"https://harbor.example/v2/quay\"]"));
        assert_eq!(
            files["own.example:5000"],
            format!("{HEADING}server = \"https://own.example:5000\"\n  skip_verify = true\n")
        );
    }
}
