//! The configuration file and its drop-ins: `/etc/kedge/config.yaml`, then `/etc/kedge/config.yaml.d/*.yaml`
//! (and `*.yml`) in the order of their names. Each is a flat YAML map; a later one wins.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Fault;
use super::settings::{Origin, SETTINGS, Settings, find};

/// The first line of a file that [`persist`] made.
pub(super) const HEADING: &str =
    "# Settings of this Kedge node; every key is a flag of the same name (kedge run --help).\n";

/// The folder of drop-ins: the file's name with `.d`.
pub(super) fn drop_in_dir(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".d");
    name.into()
}

/// The file and its drop-ins, as far as they exist, the winning ones last.
pub(crate) fn files(file: &Path) -> Vec<PathBuf> {
    let mut drop_ins: Vec<PathBuf> = fs::read_dir(drop_in_dir(file))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let is_yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
            is_yaml && !hidden && path.is_file()
        })
        .collect();
    drop_ins.sort();
    Some(file.to_path_buf()).filter(|file| file.exists()).into_iter().chain(drop_ins).collect()
}

/// What the files say.
pub(super) fn read(file: &Path, faults: &mut Vec<Fault>) -> Settings {
    let mut settings = Settings::default();
    let other = file.with_extension("yml");
    if other != file && !file.exists() && other.exists() {
        faults.push(Fault::new(
            format!("{} is not read", other.display()),
            format!("rename it to {}", file.display()),
        ));
    }
    for path in files(file) {
        match fs::read_to_string(&path) {
            Ok(text) => settings.extend(&parse(&path, &text, faults)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let what = format!("cannot read {}: {error}", path.display());
                faults.push(Fault { what, remedy: None });
            }
        }
    }
    settings
}

/// One file's settings.
pub(super) fn parse(path: &Path, text: &str, faults: &mut Vec<Fault>) -> Settings {
    let mut settings = Settings::default();
    let place = path.display();
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return settings;
    }
    let map: BTreeMap<String, Value> = match serde_saphyr::from_str(text) {
        Ok(map) => map,
        Err(error) => {
            let what = format!("{place} is not a YAML map of settings: {error}");
            faults.push(Fault { what, remedy: None });
            return settings;
        }
    };
    for (name, value) in map {
        let Some(setting) = find(&name) else {
            let remedy = match nearest(&name) {
                _ if name == "worker" => Some("write \"role: worker\"".to_owned()),
                near => near.map(|key| format!("did you mean {key:?}?")),
            };
            faults.push(Fault { what: format!("{place}: unknown key {name:?}"), remedy });
            continue;
        };
        let key = setting.key;
        let text = match (value, setting.list) {
            (Value::Null, _) => continue,
            // What YAML 1.1 makes of the word off.
            (Value::Bool(false), _)
                if matches!(key, "snapshot-interval" | "eviction-hard" | "eviction-soft") =>
            {
                Some("off".to_owned())
            }
            (Value::Array(items), Some(separator)) => {
                let parts: Option<Vec<String>> = items.iter().map(scalar).collect();
                parts.map(|parts| parts.join(&separator.to_string()))
            }
            (Value::Object(map), Some(',')) => {
                let parts: Option<Vec<String>> =
                    map.iter().map(|(name, value)| Some(format!("{name}={}", scalar(value)?))).collect();
                parts.map(|parts| parts.join(","))
            }
            (value, _) => scalar(&value).filter(|_| !value.is_boolean()),
        };
        let Some(text) = text else {
            let takes = match setting.list {
                Some(_) => "a list of texts",
                None => "one value, not a list, a map or true/false",
            };
            faults.push(Fault { what: format!("{place}: {key} takes {takes}"), remedy: None });
            continue;
        };
        settings.insert_from(key, text, Origin::File(path.into()));
    }
    settings
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

/// The valid key that differs least, if it is close.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let wanted = name.replace('_', "-").to_lowercase();
    let plain = |text: &str| text.replace('-', "");
    SETTINGS
        .iter()
        .map(|setting| setting.key)
        .map(|key| {
            let distance =
                strsim::osa_distance(&wanted, key).min(strsim::osa_distance(&plain(&wanted), &plain(key)));
            (distance, key)
        })
        .filter(|(distance, key)| *distance <= (key.len() / 3).max(2))
        .min()
        .map(|(_, key)| key)
}

/// Write `given` into the configuration file so that the service and later commands see it: lines of the
/// file with such a key are replaced, others (comments too) stay.
///
/// # Errors
/// When the file cannot be written, or a drop-in says something else and would win.
pub(crate) fn persist(path: &Path, given: &Settings) -> io::Result<()> {
    let mut drop_ins = Settings::default();
    for drop_in in files(path).into_iter().filter(|file| file != path) {
        let text = fs::read_to_string(&drop_in)?;
        drop_ins.extend(&parse(&drop_in, &text, &mut Vec::new()));
    }
    for (key, value) in given.iter() {
        if let Some(Origin::File(winner)) = drop_ins.origin(key).filter(|_| drop_ins.get(key) != Some(value))
        {
            return Err(io::Error::other(format!(
                "{} sets {key} to another value and would win over {}; change it there",
                winner.display(),
                path.display()
            )));
        }
    }
    let old = kedge_base::read_optional(path)?.unwrap_or_default();
    let old = String::from_utf8_lossy(&old).into_owned();
    let new = merged(&old, given);
    if new == old {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // A join string is a secret for as long as its token is valid.
    let secret = new.lines().any(|line| line.starts_with("join:"));
    kedge_base::write_atomic(path, new.as_bytes(), if secret { 0o600 } else { 0o644 })
}

fn merged(old: &str, given: &Settings) -> String {
    let mut text = String::new();
    if old.is_empty() {
        text.push_str(HEADING);
    }
    // The lines of a list or map below a key that is replaced go with it.
    let mut replaced = false;
    for line in old.lines() {
        if !line.starts_with([' ', '\t', '-']) {
            let key = line.split(':').next().unwrap_or_default();
            replaced = given.get(key).is_some();
        }
        if !replaced {
            text.push_str(line);
            text.push('\n');
        }
    }
    for (key, value) in given.iter() {
        text.push_str(&format!("{key}: {}\n", Value::from(value)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Settings, Vec<String>) {
        let mut faults = Vec::new();
        let settings = parse(Path::new("/etc/kedge/config.yaml"), text, &mut faults);
        (settings, faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn lists_and_maps_where_they_make_sense() {
        let (settings, faults) = parsed(
            "node-labels: {zone: a, disk: ssd}\nnode-taints:\n- edge=yes:NoSchedule\naddons:\n- dns:upstream=192.0.2.1\n- metrics\nport: 7443\n",
        );
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(settings.get("node-labels"), Some("disk=ssd,zone=a"));
        assert_eq!(settings.get("node-taints"), Some("edge=yes:NoSchedule"));
        assert_eq!(settings.get("addons"), Some("dns:upstream=192.0.2.1 metrics"));
        assert_eq!(settings.place("port"), "/etc/kedge/config.yaml: port");
        for (wrong, part) in [
            ("port: [1]\n", "takes one value"),
            ("port: true\n", "takes one value"),
            ("addons: {dns: {}}\n", "takes a list"),
            ("addons: [[dns]]\n", "takes a list"),
            ("worker: true\n", "role: worker"),
        ] {
            assert!(parsed(wrong).1.first().is_some_and(|fault| fault.contains(part)), "{wrong}");
        }
    }

    #[test]
    fn any_text_gives_settings_or_faults() {
        let seed = b"node-name: a\npod-cidr: [10.244.0.0/16, fd00::/56]\nnode-labels: {a: b}\nport: 6443\n";
        let words = &["&a ", "*a", "- ", ": ", "{", "[", "<<", "|\n", "!!binary ", "node-name", "~", "\n"];
        let mut inputs = kedge_fuzz::Mutator::new(0, vec![seed.to_vec()], words);
        for _ in 0..500 {
            let text = String::from_utf8_lossy(&inputs.next_input()).into_owned();
            let (settings, faults) = parsed(&text);
            assert!(faults.iter().all(|fault| !fault.is_empty()), "{text:?}");
            drop(settings);
        }
    }

    #[test]
    fn the_nearest_key_is_named() {
        for (name, key) in [
            ("prot", Some("port")),
            ("dataDir", Some("data-dir")),
            ("node_name", Some("node-name")),
            ("addon", Some("addons")),
            ("zzzzzz", None),
        ] {
            assert_eq!(nearest(name), key, "{name}");
        }
    }

    #[test]
    fn drop_ins_win_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        let drop_ins = dir.path().join("config.yaml.d");
        fs::create_dir(&drop_ins).unwrap();
        fs::write(&file, "port: 1000\nnode-name: a\n").unwrap();
        fs::write(drop_ins.join("20-b.yaml"), "port: 3000\n").unwrap();
        fs::write(drop_ins.join("10-a.yaml"), "port: 2000\ncluster-port: 2001\n").unwrap();
        fs::write(drop_ins.join("15-c.yml"), "cluster-port: 3001\n").unwrap();
        fs::write(drop_ins.join("30-c.yaml.off"), "port: 4000\n").unwrap();
        fs::write(drop_ins.join(".40-d.yaml"), "port: 5000\n").unwrap();
        let mut faults = Vec::new();
        let settings = read(&file, &mut faults);
        assert_eq!((settings.get("port"), settings.get("cluster-port")), (Some("3000"), Some("3001")));
        assert_eq!(settings.get("node-name"), Some("a"));
        assert!(settings.place("port").contains("20-b.yaml"));

        let mut faults = Vec::new();
        fs::rename(&file, dir.path().join("config.yml")).unwrap();
        read(&file, &mut faults);
        assert!(faults[0].to_string().ends_with("config.yaml"), "{faults:?}");
        fs::rename(dir.path().join("config.yml"), &file).unwrap();

        // A value that would not count is refused, not lost.
        let mut given = Settings::default();
        given.insert("port", "9000".into());
        let error = persist(&file, &given).unwrap_err().to_string();
        assert!(error.contains("20-b.yaml") && error.contains("port"), "{error}");
    }

    #[test]
    fn persisting_keeps_comments_and_replaces_keys() {
        let mut given = Settings::default();
        given.insert("port", "7443".into());
        given.insert("addons", "dns".into());
        let text = merged("# hello\nport: 6443\naddons:\n- metrics\n  # why\nnode-name: n1\n", &given);
        assert_eq!(text, "# hello\nnode-name: n1\naddons: \"dns\"\nport: \"7443\"\n");
        assert_eq!(merged(&text, &given), text);
    }

    #[test]
    fn a_join_string_is_kept_from_others() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        let mut given = Settings::default();
        given.insert("port", "7443".into());
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        persist(&file, &given).unwrap();
        assert_eq!(mode(), 0o644);
        given.insert("join", "192.0.2.1:25000/t/h".into());
        persist(&file, &given).unwrap();
        assert_eq!(mode(), 0o600);
    }
}
