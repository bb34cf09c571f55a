//! Kubeconfig files: what kubectl, helm and client libraries read.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{Error, Leaf};

/// A kubeconfig with one cluster entry per server URL (`https://192.0.2.1:6443`); the first one is the
/// current context `kedge`, further ones are `kedge-2`, `kedge-3`. The certificate and key are embedded.
pub fn kubeconfig(server_urls: &[String], ca_pem: &str, certificate_pem: &str, key_pem: &str) -> String {
    let ca = STANDARD.encode(ca_pem);
    let mut text = String::from("apiVersion: v1\nkind: Config\nclusters:\n");
    // Writing to a String cannot fail.
    for (index, url) in server_urls.iter().enumerate() {
        let name = entry_name(index);
        let _ = write!(
            text,
            "- name: {name}\n  cluster:\n    certificate-authority-data: {ca}\n    server: {}\n",
            quoted(url)
        );
    }
    text.push_str("contexts:\n");
    for index in 0..server_urls.len() {
        let name = entry_name(index);
        let _ = write!(text, "- name: {name}\n  context:\n    cluster: {name}\n    user: kedge-admin\n");
    }
    let _ = write!(
        text,
        "current-context: kedge\npreferences: {{}}\nusers:\n- name: kedge-admin\n  user:\n    \
         client-certificate-data: {}\n    client-key-data: {}\n",
        STANDARD.encode(certificate_pem),
        STANDARD.encode(key_pem)
    );
    text
}

/// The administrator's kubeconfig from the files in a PKI folder, without opening (and so perhaps
/// changing) the folder.
///
/// # Errors
/// When one of the three files cannot be read: there is no cluster yet, or the caller is not root.
pub fn admin_kubeconfig(pki_dir: &Path, server_urls: &[String]) -> Result<String, Error> {
    let read = |name: String| {
        let path = pki_dir.join(name);
        std::fs::read_to_string(&path).map_err(|source| Error::File { action: "read", path, source })
    };
    let admin = Leaf::Admin.file_stem();
    let (ca, certificate, key) =
        (read("ca.crt".into())?, read(format!("{admin}.crt"))?, read(format!("{admin}.key"))?);
    Ok(kubeconfig(server_urls, &ca, &certificate, &key))
}

fn entry_name(index: usize) -> String {
    if index == 0 { "kedge".into() } else { format!("kedge-{}", index + 1) }
}

/// A YAML string in double quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_every_server_and_the_credentials() {
        let servers = ["https://192.0.2.1:6443".to_owned(), "https://[2001:db8::1]:6443".to_owned()];
        let text = kubeconfig(&servers, "CA", "CERT", "KEY");
        assert!(text.contains("server: \"https://192.0.2.1:6443\""));
        assert!(text.contains("- name: kedge-2\n  cluster:\n"));
        assert!(text.contains("server: \"https://[2001:db8::1]:6443\""));
        assert!(text.contains("current-context: kedge\n"));
        for (field, value) in [
            ("certificate-authority-data", "CA"),
            ("client-certificate-data", "CERT"),
            ("client-key-data", "KEY"),
        ] {
            assert!(text.contains(&format!("{field}: {}\n", STANDARD.encode(value))), "{text}");
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = admin_kubeconfig(Path::new("/nonexistent/pki"), &[]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/pki/ca.crt"), "{error}");
    }
}
