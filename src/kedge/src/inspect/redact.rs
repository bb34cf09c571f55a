//! Takes secrets out of text that leaves the machine in a bug report. Two nets: values that are known to be
//! secret (read from the disk and from Secret objects) go wherever they appear, and what looks like a
//! secret goes too. Better too much than too little.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use kedge_base::Order as _;
use regex::{Captures, Regex};
use serde_json::Value;

/// What stands in the place of a secret.
pub(crate) const REMOVED: &str = "<removed>";
/// Shorter values would tear holes into words.
const SHORTEST: usize = 6;

/// Keys whose values are secret, in any spelling of words.
const KEY: &str = r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|credentials?|api[-_]?key|access[-_]?key|private[-_]?key|auth|authorization|bearer|cookie|client-key-data|client-certificate-data|certificate-authority-data|join)";

pub(crate) struct Redactor {
    known: Vec<String>,
    patterns: Vec<(Regex, fn(&Captures<'_>) -> String)>,
    /// A word of a command line behind which a secret comes.
    flag: Regex,
}

impl Redactor {
    /// # Errors
    /// Never, unless this module's own patterns are wrong.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let whole: fn(&Captures<'_>) -> String = |_| REMOVED.to_owned();
        let tail: fn(&Captures<'_>) -> String = |found| format!("{}{REMOVED}", &found[1]);
        let both: fn(&Captures<'_>) -> String = |found| format!("{}{REMOVED}{}", &found[1], &found[2]);
        let rules = [
            // PEM of any kind, also with its line ends written as \n, and cut off at the end of a log.
            (r"(?s)-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\z)".to_owned(), whole),
            // The same in base64, as kubeconfigs and Secrets hold it.
            (r"LS0tLS1CRUdJTi[A-Za-z0-9+/=]+".to_owned(), whole),
            // JSON web tokens.
            (r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+".to_owned(), whole),
            // HOST:PORT/TOKEN/CA-HASH
            (r"(:[0-9]{1,5}/)[A-Za-z0-9._-]{6,}(/[0-9a-fA-F]{32,64})".to_owned(), both),
            (r"(?i)((?:bearer|basic) +)[A-Za-z0-9._~+/=-]{6,}".to_owned(), tail),
            // user:password@ and token@ in URLs
            (r#"(://)[^/?#\s"'<>]+(@)"#.to_owned(), both),
            // --some-token value and --some-token=value, up to the next space
            (
                format!(
                    r#"(?im)((?:^|[\s"'])--?[a-z0-9_.-]*{KEY}(?:=|[ \t]+))(?:"[^"\n]*"|'[^'\n]*'|[^\s"'-][^\s"']*)"#
                ),
                tail,
            ),
            // -u user:password, as curl takes it
            (
                r#"(?m)((?:^|[\s"'])(?:-u|--user|--proxy-user)[= \t]*["']?[^\s:"']+:)[^\s"']+"#.to_owned(),
                tail,
            ),
            // "some-token": "value" in JSON
            (format!(r#"(?i)("[a-z0-9_./-]*{KEY}"\s*:\s*)"(?:[^"\\]|\\.)*""#), |found| {
                format!("{}\"{REMOVED}\"", &found[1])
            }),
            // some-token: value in YAML, token=value in logs and command lines
            (
                format!(
                    r#"(?im)((?:^|[\s,;"'&?{{-])[a-z0-9_./-]*{KEY}(?:: +|=))(?:"[^"\n]*"|'[^'\n]*'|[^\s,;"'&}}]+)"#
                ),
                tail,
            ),
        ];
        let patterns = rules
            .into_iter()
            .map(|(pattern, replace)| Ok((Regex::new(&pattern)?, replace)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let flag = Regex::new(&format!("(?i)^--?[a-z0-9_.-]*{KEY}$"))?;
        Ok(Self { known: Vec::new(), patterns, flag })
    }

    /// This value is secret wherever it appears, as it is, in JSON's spelling and in base64.
    pub(crate) fn add(&mut self, value: &str) {
        use base64::Engine as _;
        let value = value.trim();
        if value.len() < SHORTEST {
            return;
        }
        let escaped = serde_json::to_string(value).unwrap_or_default();
        let encoded = base64::engine::general_purpose::STANDARD.encode(value);
        for form in [value.to_owned(), escaped.trim_matches('"').to_owned(), encoded] {
            if !self.known.contains(&form) {
                self.known.push(form);
            }
        }
        // A secret of many lines may appear line by line in a log.
        for line in value.lines().map(str::trim).filter(|line| line.len() >= 16 && *line != value) {
            if !line.starts_with("-----") && !self.known.iter().any(|known| known == line) {
                self.known.push(line.to_owned());
            }
        }
    }

    /// Every key file below a folder.
    pub(crate) fn add_keys_of(&mut self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                self.add_keys_of(&path);
            } else if path.extension().is_some_and(|ending| ending == "key")
                && let Ok(text) = fs::read_to_string(&path)
            {
                self.add(&text);
            }
        }
    }

    /// Every text in a file of YAML or JSON whose key says that it is secret.
    pub(crate) fn add_values_of(&mut self, file: &Path) {
        let Ok(text) = fs::read_to_string(file) else { return };
        let Ok(value) = serde_saphyr::from_str::<Value>(&text) else { return };
        let mut found = Vec::new();
        collect(&value, false, &mut found);
        found.iter().for_each(|text| self.add(text));
    }

    /// The values of a Secret object's `data`.
    pub(crate) fn add_secret(&mut self, data: &std::collections::BTreeMap<String, k8s_openapi::ByteString>) {
        for value in data.values() {
            if let Ok(text) = std::str::from_utf8(&value.0) {
                self.add(text);
            }
        }
    }

    /// `text` without secrets.
    pub(crate) fn clean(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        // The longest first: one may be a part of another.
        let mut known: Vec<&String> = self.known.iter().collect();
        known.order_by_key(|value| std::cmp::Reverse(value.len()));
        for value in known {
            if text.contains(value.as_str()) {
                text = Cow::Owned(text.replace(value.as_str(), REMOVED));
            }
        }
        for (pattern, replace) in &self.patterns {
            if let Cow::Owned(new) = pattern.replace_all(&text, *replace) {
                text = Cow::Owned(new);
            }
        }
        text.into_owned()
    }

    /// A list of API objects without Secrets, without what users wrote into environment variables and HTTP
    /// headers, and without the copies that `kubectl apply` keeps.
    pub(crate) fn clean_objects(&self, mut list: Value) -> String {
        if let Some(items) = list.get_mut("items").and_then(Value::as_array_mut) {
            items.retain(|item| item.get("kind").and_then(Value::as_str) != Some("Secret"));
        }
        self.strip(&mut list);
        self.clean(&serde_json::to_string_pretty(&list).unwrap_or_default())
    }

    fn strip(&self, value: &mut Value) {
        match value {
            // As it is, without JSON's backslashes.
            Value::String(text) => *text = self.clean(text),
            Value::Array(items) => {
                self.strip_words(items);
                items.iter_mut().for_each(|item| self.strip(item));
            }
            Value::Object(map) => {
                map.remove("managedFields");
                map.remove("kubectl.kubernetes.io/last-applied-configuration");
                for list in ["env", "httpHeaders"] {
                    let items = map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
                    for item in items.filter_map(Value::as_object_mut) {
                        if item.contains_key("value") {
                            item.insert("value".into(), REMOVED.into());
                        }
                    }
                }
                let annotations = map.get_mut("annotations").and_then(Value::as_object_mut);
                for (_, text) in annotations.into_iter().flatten().filter(|(key, _)| is_secret(key)) {
                    *text = REMOVED.into();
                }
                map.values_mut().for_each(|value| self.strip(value));
            }
            _ => {}
        }
    }

    /// A command line, one item a word: the secret is the word behind its flag.
    fn strip_words(&self, items: &mut [Value]) {
        let words: Vec<String> =
            items.iter().map(|item| item.as_str().unwrap_or_default().to_owned()).collect();
        for (item, pair) in items.iter_mut().skip(1).zip(words.windows(2)) {
            let [flag, word] = pair else { continue };
            if matches!(flag.as_str(), "-u" | "--user" | "--proxy-user") {
                if let Some((user, _)) = word.split_once(':') {
                    *item = format!("{user}:{REMOVED}").into();
                }
            } else if item.is_string() && self.flag.is_match(flag) && !self.flag.is_match(word) {
                *item = REMOVED.into();
            }
        }
    }
}

fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    ["pass", "secret", "token", "auth", "key", "credential", "join", "identity"]
        .iter()
        .any(|word| key.contains(word))
}

fn collect(value: &Value, secret: bool, found: &mut Vec<String>) {
    match value {
        Value::String(text) if secret => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, secret, found)),
        Value::Object(map) => {
            // A map below a secret's key (auth: {username, password}) holds more than secrets.
            map.iter().for_each(|(key, value)| collect(value, is_secret(key), found));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_FILE: &str = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIPlantedKeyLineNumberOne\nAwEHoUQDQgAEsecond\n-----END EC PRIVATE KEY-----\n";

    #[test]
    fn what_looks_like_a_secret_goes() {
        let redactor = Redactor::new().unwrap();
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVz.c2lnbmF0dXJlLXBsYW50ZWQ";
        let cases = [
            (format!("a {KEY_FILE} b"), "PlantedKeyLine", "a <removed>"),
            (KEY_FILE.replace('\n', "\\n"), "PlantedKeyLine", REMOVED),
            ("cut -----BEGIN RSA PRIVATE KEY-----\nMIIEplanted".into(), "MIIEplanted", "cut <removed>"),
            (
                "client-key-data: LS0tLS1CRUdJTiBQUklWQVRF".into(),
                "LS0tLS1CRUdJTiBQ",
                "client-key-data: <removed>",
            ),
            (format!("x {token} y"), "c2lnbmF0dXJl", "x <removed> y"),
            (
                format!("kedge join 192.0.2.1:25000/plantedtoken123/{}", "ab".repeat(16)),
                "plantedtoken123",
                "kedge join 192.0.2.1:25000/<removed>/abab",
            ),
            ("Authorization: Bearer planted.abc-123".into(), "planted", "Authorization: "),
            (
                "https://user:planted-pw@registry.example/v2".into(),
                "planted-pw",
                "https://<removed>@registry",
            ),
            (r#"{"bearerToken": "pl\"anted", "port": 6443}"#.into(), "anted", r#""port": 6443"#),
            ("  password: planted\n  port: 1".into(), "planted", "port: 1"),
            ("password: \"planted words\"\nport: 1".into(), "planted", "port: 1"),
            ("msg token=planted123 port=2".into(), "planted123", "port=2"),
            ("DB_PASSWORD=planted".into(), "planted", "DB_PASSWORD="),
            ("git clone https://planted@host.example/x".into(), "planted", "@host.example/x"),
            ("https://planted:x-oauth-basic@host".into(), "planted", "@host"),
            ("redis://:pl@nted@host/0".into(), "nted", "@host/0"),
            ("curl -u admin:pla,nted http://x".into(), "nted", "curl -u admin:<removed> http://x"),
            ("curl --user=admin:planted x".into(), "planted", "admin:<removed> x"),
            ("mysql --password planted --port 1".into(), "planted", "--port 1"),
            ("app --api-token=pla,nted --port 1".into(), "nted", "--port 1"),
            ("app -token 'planted words' -v".into(), "words", " -v"),
            (r#"{"example.com/api-token": "planted"}"#.into(), "planted", "example.com/api-token"),
            ("example.com/api-token: planted".into(), "planted", "example.com/api-token"),
        ];
        for (text, secret, kept) in cases {
            let clean = redactor.clean(&text);
            assert!(!clean.contains(secret), "{secret:?} is still in {clean:?}");
            assert!(clean.contains(kept), "{kept:?} is not in {clean:?}");
        }
    }

    #[test]
    fn plain_text_stays() {
        let redactor = Redactor::new().unwrap();
        for text in [
            "2026-01-01T00:00:00Z  INFO kedge_kubelet: pod started pod=default/web",
            "port: 6443\nnode-name: n1\n",
            "table inet kedge { chain services { ip daddr 10.96.0.1 tcp dport 443 goto x } }",
            "{\"secretName\": 1, \"count\": 2}",
            "the token controller started",
            "pull docker.io/library/web@sha256:0123 from https://registry.example:5000/v2/",
            "docker run -u 1000 web --auth --verbose",
        ] {
            assert_eq!(redactor.clean(text), text);
        }
    }

    #[test]
    fn known_values_go_in_every_form() {
        let mut redactor = Redactor::new().unwrap();
        redactor.add("hunter2-planted");
        redactor.add("abc");
        redactor.add(KEY_FILE);
        let text = "a hunter2-planted b aHVudGVyMi1wbGFudGVk c abc d MHcCAQEEIPlantedKeyLineNumberOne e";
        assert_eq!(redactor.clean(text), "a <removed> b <removed> c abc d <removed> e");
    }

    #[test]
    fn files_tell_what_is_secret() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pki")).unwrap();
        fs::write(dir.path().join("pki/ca.key"), KEY_FILE).unwrap();
        let registries = dir.path().join("registries.yaml");
        fs::write(
            &registries,
            "configs:\n  r.example:\n    auth:\n      username: robot\n      password: s3cret-planted\n",
        )
        .unwrap();
        let mut redactor = Redactor::new().unwrap();
        redactor.add_keys_of(dir.path());
        redactor.add_values_of(&registries);
        let clean = redactor.clean("AwEHoUQDQgAEsecond robot s3cret-planted");
        assert_eq!(clean, "<removed> robot <removed>");
    }

    #[test]
    fn pods_lose_what_their_commands_probes_and_annotations_say() {
        let redactor = Redactor::new().unwrap();
        let list = serde_json::json!({"items": [{"kind": "Pod",
        "metadata": {"name": "web", "annotations": {"example.com/api-token": "planted", "example.com/passwords-old": "planted"}},
        "spec": {"containers": [{
            "image": "registry.example/web:1.0",
            "command": ["app", "--verbose", "--auth", "--password", "planted word", "--port", "8080"],
            "args": ["curl", "-u", "admin:planted", "--token=\"planted\"", "https://planted@host.example/x"],
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080,
                "httpHeaders": [{"name": "X-Api-Key", "value": "planted"}]}},
            "readinessProbe": {"exec": {"command": ["sh", "-c", "curl -u \"admin:planted\" http://localhost/"]}},
        }]}}]});
        let clean = redactor.clean_objects(list);
        assert!(!clean.contains("planted"), "{clean}");
        for kept in [
            "registry.example/web:1.0",
            "--password",
            "--port",
            "8080",
            "admin:",
            "@host.example/x",
            "/healthz",
            "X-Api-Key",
            "http://localhost/",
            "example.com/api-token",
        ] {
            assert!(clean.contains(kept), "{kept} is not in {clean}");
        }
    }

    #[test]
    fn objects_lose_secrets_and_variables() {
        let redactor = Redactor::new().unwrap();
        let list = serde_json::json!({"items": [
            {"kind": "Secret", "data": {"a": "cGxhbnRlZA=="}},
            {"kind": "Pod", "metadata": {
                "name": "web", "managedFields": [{"x": 1}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "planted"}},
             "spec": {"containers": [{"env": [{"name": "MODE", "value": "planted"}, {"name": "REF", "valueFrom": {}}]}]}},
        ]});
        let clean = redactor.clean_objects(list);
        assert!(
            !clean.contains("planted") && !clean.contains("cGxhbnRlZA") && !clean.contains("managedFields")
        );
        assert!(
            clean.contains("\"web\"") && clean.contains("MODE") && clean.contains("valueFrom"),
            "{clean}"
        );
    }
}
