//! What helps against errors that come without a remedy of their own: other programs', the kernel's.

/// What helps against errors that are known; `part` is a component's name, or `process`.
pub(crate) fn remedy_for(part: &str, error: &str) -> Option<String> {
    const KNOWN: [(&str, &str, &str); 19] = [
        ("", "No space left", "free some space in the data folder's file system (df -h), then kedge start"),
        (
            "",
            "Read-only file system",
            "the disk was mounted read-only, as happens to broken cards: see dmesg",
        ),
        ("", "Address already in use", "kedge inspect names the program that has the port"),
        ("", "Address in use", "kedge inspect names the program that has the port"),
        ("", "Permission denied", "kedge needs root: put sudo before the command"),
        ("", "find this node's address", "give an interface an address, or name it with --node-ip"),
        ("", "too many open files", "kedge inspect shows the limits that are too small"),
        ("", "Too many open files", "kedge inspect shows the limits that are too small"),
        ("", "nftables", "use a kernel with nf_tables; kedge inspect shows what is missing"),
        (
            "",
            "start containerd",
            "install the package containerd (apt-get install -y containerd), name the program by the setting \
             containerd, or leave that setting out; then kedge start",
        ),
        (
            "kubelet",
            "the API server does not answer",
            "nothing to do while the others start: it goes on by itself. Else a majority of the control-plane nodes \
             must run and be reached from here: kedge status on them, kedge inspect here",
        ),
        (
            "kubelet",
            "the API server refuses it",
            "was this node removed from the cluster? kedge leave --force makes it a single node, then join again",
        ),
        ("kubelet", "container runtime is down", "see the part containerd above"),
        ("network", "CNI plugins are missing", crate::preflight::CNI_REMEDY),
        (
            "kubelet",
            "network",
            "the pod network is not there yet: see the part network above, and kedge inspect",
        ),
        ("kubelet", "not registered", "the API server does not know this node yet: see the parts above"),
        (
            "containerd",
            "does not answer",
            "it is stopped, hangs, or its disk does: see its log in the data folder and dmesg. When its process is \
             ended (kill -9), kedge starts it again by itself, and containers go on meanwhile",
        ),
        (
            "containerd",
            "",
            "is containerd installed and whole? kedge inspect checks it; its words are in the log",
        ),
        (
            "apiserver",
            "",
            "a majority of the control-plane nodes must run: kedge status on the others, or kedge recover",
        ),
    ];
    KNOWN
        .iter()
        .find(|(of, words, _)| (of.is_empty() || *of == part) && error.contains(words))
        .map(|(_, _, remedy)| (*remedy).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_are_known_have_remedies() {
        for (part, error, word) in [
            ("process", "open the datastore: No space left on device (os error 28)", "free some space"),
            ("process", "listen on 0.0.0.0:6443: Address already in use (os error 98)", "has the port"),
            ("kubelet", "the node is not registered", "API server"),
            ("containerd", "exit status 1", "containerd"),
            ("containerd", "it does not answer within 10 s", "kill -9"),
            ("kubelet", "container runtime is down: it does not answer within 10 s", "the part containerd"),
            (
                "kubelet",
                "this node is not registered: the API server does not answer: Network is unreachable",
                "a majority of the control-plane nodes",
            ),
            (
                "kubelet",
                "this node is not registered: the API server refuses it: Unauthorized",
                "kedge leave --force",
            ),
            ("network", "CNI plugins are missing in /usr/lib/cni: bridge", "containernetworking-plugins"),
            (
                "process",
                "run the node: start containerd: start containerd (/nonexist): No such file or directory",
                "the setting containerd",
            ),
        ] {
            let remedy = remedy_for(part, error).unwrap();
            assert!(remedy.contains(word), "{error}: {remedy}");
        }
        assert_eq!(remedy_for("scheduler", "something else"), None);
    }
}
