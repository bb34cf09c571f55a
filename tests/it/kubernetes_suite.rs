//! Kubernetes' own end-to-end suite against a cluster of two nodes. The programs are not part of the project:
//! `GINKGO` and `E2E` name a `ginkgo` and the `e2e.test` of one release, `E2E_IMAGES` a folder with archives of
//! the images that it wants; `E2E_FOCUS` and `E2E_SKIP` choose tests (the conformance suite unless told
//! otherwise), `E2E_REPORT` names a folder for its report. Run by name with `--run-ignored only`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kedge_tests::{Cluster, Network, step};

fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| panic!("{variable} is to be set"))
}

fn chosen(variable: &str, otherwise: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| otherwise.to_owned())
}

fn import(node: &Cluster, folder: &Path) {
    for file in fs::read_dir(folder).expect("the folder of images").flatten() {
        node.kedge(&["images", "import", &file.path().display().to_string()]).ok();
    }
}

#[test]
#[ignore = "GINKGO, E2E and E2E_IMAGES have to name Kubernetes' suite"]
fn kubernetes_own_suite() {
    let (ginkgo, suite, images) = (named("GINKGO"), named("E2E"), named("E2E_IMAGES"));
    let network = Network::new(2);
    let mut first = Cluster::prepare_on(&network, 1);
    first.run();
    first.wait_ready();
    let second = Cluster::prepare_on(&network, 2);
    let invitation = first.kedge(&["add-node", "--output", "json"]).json();
    let join = invitation["join"][0].as_str().expect("a join string");
    second.kedge(&["join", join, "--worker", "--timeout", "120"]).ok();
    first.kedge(&["enable", "dns"]).ok();
    for node in [&first, &second] {
        import(node, &images);
    }

    step("the suite");
    let report = std::env::var_os("E2E_REPORT").map_or_else(|| first.dir().join("e2e"), PathBuf::from);
    fs::create_dir_all(&report).expect("make the report's folder");
    let status = Command::new(ginkgo)
        .args([
            "--procs=4",
            "--timeout=3h",
            "--no-color",
            "--silence-skips",
            "--output-interceptor-mode=none",
        ])
        .arg(format!("--focus={}", chosen("E2E_FOCUS", r"\[Conformance\]")))
        .arg(format!("--skip={}", chosen("E2E_SKIP", r"\[Serial\]|\[Disruptive\]")))
        .arg(suite)
        .arg("--")
        .args(["-provider=skeleton", "-num-nodes=2", "-disable-log-dump", "-dump-logs-on-failure=false"])
        .arg(format!("-kubeconfig={}", first.kubeconfig().display()))
        .arg(format!("-kubectl-path={}", kedge_tests::kubectl_program().display()))
        .arg(format!("-report-dir={}", report.display()))
        .env("KUBECONFIG", first.kubeconfig())
        .status()
        .expect("start ginkgo");
    assert!(status.success(), "{status}");
}
