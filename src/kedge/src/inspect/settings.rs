//! What settings name and this machine does not have: files, addons, a cluster. A node that starts with such
//! settings would wait for ever, or go without them in silence.

use std::path::Path;

use kedge_cluster::{Admitted, Role};

use super::{Context, Found, Moment, fail, ok, warn};
use crate::addons;
use crate::config::Config;
use crate::node::first_start;

/// For who installs and inspects: also what is in the file of registries.
pub(super) fn check(context: &Context<'_>) -> Vec<Found> {
    let config = context.config;
    let joins = context.moment == Moment::Join || joins(config);
    let mut found = missing(config, joins);
    found.extend(no_registries(config));
    found.extend(worker_of_nothing(config, joins));
    found.extend((!joins).then(|| dns_elsewhere(config)).flatten());
    for problem in kedge_kubelet::check_registries(&config.registries) {
        let what = format!("{}: {problem}", config.registries.display());
        found.push(fail(what, "correct it there; the running node takes the file over when it is right"));
    }
    if found.is_empty() {
        found.push(ok("what they name is there"));
    }
    found
}

/// With which a node does not even start. The file of registries is none of these: a node that ran with a wrong one, or
/// whose file went away, comes back after a power cut.
pub(crate) fn refused(config: &Config) -> Vec<Found> {
    missing(config, joins(config))
}

/// Is this node in a cluster that it did not begin, or going to be?
fn joins(config: &Config) -> bool {
    matches!(Admitted::read(&config.pki_dir()), Ok(Some(_))) || first_start::joins(config)
}

fn missing(config: &Config, joins: bool) -> Vec<Found> {
    let found = [unknown_addons(config, joins), no_bridge(config, Path::new("/sys/class/net"))];
    found.into_iter().flatten().collect()
}

/// A choice that one can make, for a cache on each node or a server of one's own. A member has its cluster's ranges.
fn dns_elsewhere(config: &Config) -> Option<Found> {
    (!config.is_service(config.cluster_dns)).then(|| {
        warn(
            format!(
                "{}: {} is not in service-cidr {}: pods ask it, and the addon dns cannot answer there",
                config.given.place("cluster-dns"),
                config.cluster_dns,
                crate::config::joined(&config.service_cidrs)
            ),
            "leave it out, unless something of yours answers there; then keep dns off (--without dns)",
        )
    })
}

fn no_registries(config: &Config) -> Option<Found> {
    (config.names_registries() && !config.registries.exists()).then(|| {
        fail(
            format!("{}: there is no file {}", config.given.place("registries"), config.registries.display()),
            "write that file, or leave the setting registries out",
        )
    })
}

/// They are enabled at the first start, which would never end.
fn unknown_addons(config: &Config, joins: bool) -> Option<Found> {
    let words = first_start::addons(config, joins)?;
    let place = config.given.place("addons");
    let catalog = match addons::catalog(config) {
        Ok(catalog) => catalog,
        Err(error) => return Some(fail(format!("{place}: {error:#}"), "leave the setting addons out")),
    };
    let error = addons::parse(&catalog, &words).err()?.into_error();
    let text = error.to_string();
    if !matches!(error.downcast_ref(), Some(kedge_addons::Error::Unknown { .. })) {
        return Some(fail(format!("{place}: {text}"), "write what kedge addons info shows of that addon"));
    }
    let names: Vec<&str> = catalog.iter().map(|addon| addon.name.as_str()).collect();
    // Its own remedy asks a cluster.
    let what = text.split("; ").next().unwrap_or_default();
    Some(fail(format!("{place}: {what}"), format!("there are {}", names.join(", "))))
}

/// It would be a control-plane node; one that left its cluster is meant to.
fn worker_of_nothing(config: &Config, joins: bool) -> Option<Found> {
    let founds = config.role == Role::Worker && !joins && config.join.is_none();
    (founds && !config.store_dir().exists()).then(|| {
        fail(
            format!("{}: a node that begins a cluster cannot be a worker of it", config.given.place("role")),
            "name the cluster with the setting join (kedge add-node prints it), or leave role out",
        )
    })
}

/// The bridge plugin makes its bridge, but no bridge of something else.
fn no_bridge(config: &Config, interfaces: &Path) -> Option<Found> {
    let interface = interfaces.join(&config.bridge_name);
    let other = config.own_pod_network && interface.exists() && !interface.join("bridge").exists();
    other.then(|| {
        fail(
            format!(
                "{}: this machine has an interface {} that is no bridge",
                config.given.place("bridge-name"),
                config.bridge_name
            ),
            "choose a name that no interface has",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::config::settings::Origin;

    fn messages(found: &[Found]) -> String {
        found
            .iter()
            .map(|Found(_, what, remedy)| format!("{what}; {}\n", remedy.clone().unwrap_or_default()))
            .collect()
    }

    #[test]
    fn settings_that_name_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let load = |more: &[(&'static str, &str)]| {
            let mut given = Settings::default();
            given.insert("data-dir", dir.path().display().to_string());
            more.iter().for_each(|(key, value)| given.insert(key, (*value).to_owned()));
            Config::load(Some(Path::new("/nonexistent")), &given).unwrap()
        };
        assert_eq!(refused(&load(&[])), Vec::new());
        let join = format!("192.0.2.1:25000/{}/{}", "0".repeat(52), "0123456789abcdef".repeat(2));
        for (given, parts) in [
            (
                [("registries", "/nonexistent/r.yaml"), ("addons", "dns metrics")].as_slice(),
                ["--registries: there is no file /nonexistent/r.yaml", "write that file"],
            ),
            (&[("addons", "dns metrcs")], ["--addons: ", "did you mean metrics?"]),
            (&[("addons", "dns:replicas=0")], ["--addons: ", "dns"]),
            (&[("role", "worker")], ["--role: ", "the setting join"]),
            (
                &[("cluster-dns", "169.254.20.10")],
                ["--cluster-dns: 169.254.20.10 is not in", "--without dns"],
            ),
        ] {
            let config = load(given);
            let said = messages(&check(&Context::new(&config, Moment::Install)));
            assert!(parts.iter().all(|part| said.contains(part)) && said.lines().count() == 1, "{said}");
        }
        assert_eq!(refused(&load(&[("registries", "/nonexistent/r.yaml")])), Vec::new(), "it came back");
        let worker = load(&[("role", "worker"), ("addons", "none-such")]);
        assert!(messages(&check(&Context::new(&worker, Moment::Join))).contains("is there"), "of kedge join");
        // A member's addons are its cluster's.
        assert_eq!(
            refused(&load(&[("role", "worker"), ("join", &join), ("addons", "none-such")])),
            Vec::new()
        );
        let mut from_snap = load(&[]);
        let (key, file) = ("registries", "/nonexistent/r.yaml");
        from_snap.given.insert_from(key, file.to_owned(), Origin::Environment);
        assert_eq!(refused(&from_snap), Vec::new());

        let interfaces = dir.path().join("net");
        std::fs::create_dir_all(interfaces.join("kedge0")).unwrap();
        assert!(
            messages(&no_bridge(&load(&[]), &interfaces).into_iter().collect::<Vec<_>>()).contains("kedge0")
        );
        std::fs::create_dir(interfaces.join("kedge0/bridge")).unwrap();
        assert_eq!(no_bridge(&load(&[]), &interfaces), None);
    }
}
