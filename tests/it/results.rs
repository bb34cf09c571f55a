//! What commands that do something say: progress for people on a terminal, one object for programs.

use kedge_tests::{Cluster, Out, assert_has, kedge_binary, run, step};
use serde_json::Value;

/// All of standard output is one object.
fn result(out: &Out, code: i32) -> Value {
    assert_eq!(out.code, code, "{}\n{}", out.stdout, out.stderr);
    serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", out.stdout))
}

#[test]
fn one_object_at_the_end() {
    let cluster = Cluster::start();
    let json = |words: &[&str]| cluster.kedge(&[words, &["--output", "json"]].concat());

    step("what was done, with what people read beside it");
    let enabled = json(&["enable", "dns"]);
    let object = result(&enabled, 0);
    assert_eq!((object["result"].as_str(), object["addons"][0].as_str()), (Some("enabled"), Some("dns")));
    assert_eq!(enabled.stderr.trim(), "dns is enabled");
    cluster.import_busybox();
    let archive = cluster.dir().join("busybox.tar").display().to_string();
    let imported = result(&json(&["images", "import", &archive]), 0);
    assert_eq!(imported["result"], "imported");
    assert!(imported["images"].as_array().is_some_and(|images| !images.is_empty()), "{imported}");
    let pruned = result(&json(&["images", "prune"]), 0);
    assert_eq!(pruned["result"], "pruned");
    assert!(pruned["removed"].is_array());
    let saved = result(&json(&["snapshot", "save"]), 0);
    assert_eq!(saved["result"], "saved");
    assert!(saved["objects"].as_u64() > Some(10), "{saved}");
    let rotated = result(&json(&["certs", "rotate"]), 0);
    assert_eq!(rotated["result"], "rotated");
    assert!(rotated["certificates"].as_array().is_some_and(|all| all.len() > 3), "{rotated}");
    assert_eq!(result(&json(&["disable", "dns"]), 0)["result"], "disabled");
    assert_eq!(result(&json(&["start"]), 0)["result"], "running");

    step("why it was not done, with the same exit codes");
    let unknown = result(&json(&["enable", "dsn"]), 2);
    assert_has(unknown["error"].as_str().unwrap_or_default(), &["dsn"]);
    let absent = result(&json(&["remove-node", "nobody"]), 1);
    assert_has(absent["error"].as_str().unwrap_or_default(), &["nobody"]);
    let missing = result(&json(&["images", "import", "/nonexistent.tar"]), 1);
    assert_has(missing["error"].as_str().unwrap_or_default(), &["/nonexistent.tar"]);

    step("what helps has its own field, whoever knew it");
    assert_eq!(unknown["remedy"], "kedge addons list shows them", "{unknown}");
    let save = ["snapshot", "save", "--name", "once"];
    result(&json(&save), 0);
    let twice = result(&json(&save), 1);
    assert_eq!(twice["error"], "save a snapshot: there is a snapshot once already");
    assert_eq!(twice["remedy"], "say --replace or choose another name");
    let token = result(&json(&["token", "revoke", "none-such"]), 1);
    assert_eq!(token["remedy"], "kedge token list shows them", "{token}");
    let none = result(&json(&["disable", "metrics"]), 1);
    assert_eq!(none["remedy"], Value::Null, "{none}");

    step("wrong usage too, also of what only shows something");
    for words in [["enable", "dns", "--nope"].as_slice(), &["addons", "list", "--nope"], &["no-such"]] {
        let wrong = result(&json(words), 2);
        let last = words.last().copied().unwrap_or_default();
        assert_has(wrong["error"].as_str().unwrap_or_default(), &[last]);
        assert!(wrong["remedy"].is_string(), "{wrong}");
    }
    let info = result(&json(&["addons", "info", "metrcs"]), 2);
    assert_has(info["error"].as_str().unwrap_or_default(), &["did you mean metrics?"]);

    step("YAML, and quiet");
    let file = cluster.dir().join("of-other").display().to_string();
    let built = json(&["images", "build", &file, "--binary", "/bin/ls"]);
    assert_has(result(&built, 1)["error"].as_str().unwrap_or_default(), &["it is no binary of Kedge"]);
    for words in [["certs", "rotate"].as_slice(), &["images", "prune"]] {
        let quiet = cluster.kedge(&[words, &["--quiet"]].concat());
        assert_eq!((quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()), (0, "", ""), "{words:?}");
    }
    let quiet = cluster.kedge(&["snapshot", "save", "--quiet"]).ok();
    assert_eq!(quiet.lines().count(), 1, "{quiet}");
    let yaml = cluster.kedge(&["images", "prune", "-o", "yaml"]);
    assert_has(&yaml.stdout, &["result: pruned"]);
    let quiet = json(&["enable", "dns", "--quiet"]);
    assert_eq!(result(&quiet, 0)["result"], "enabled");
    assert_eq!(quiet.stderr, "");
    let quiet = cluster.kedge(&["disable", "dns", "--quiet"]);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));

    step("on a terminal a spinner, without one nothing");
    let plain = cluster.kedge(&["enable", "dns"]);
    assert_eq!((plain.stdout.trim(), plain.stderr.as_str()), ("dns is enabled", ""));
    // A shell reads it, and thresholds have a `<`.
    let flags: String = cluster.flags().iter().map(|flag| format!(" '{flag}'")).collect();
    let line = format!("{} images prune{flags}", kedge_binary().display());
    let mut script = std::process::Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    let terminal = run(&mut script, b"");
    assert_has(&terminal.stdout, &["\u{1b}[", "looking for images that nothing uses"]);

    step("stopped");
    drop(cluster);
}
