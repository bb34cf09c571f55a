//! Three control-plane nodes of one cluster, each on a machine of its own, and what is asked of any node: what
//! tests of a group begin with.

use std::time::{Duration, Instant};

use kedge_tests::{Amount, Cluster, Disk, Load, Network, Server, eventually, step};
use serde_json::Value;

pub(crate) const ALL: [usize; 3] = [0, 1, 2];

/// Three control-plane nodes that vote. The nodes go before their network.
pub(crate) struct Trio {
    pub(crate) nodes: Vec<Cluster>,
    /// The disk of the first node's store, when it has one of its own.
    pub(crate) disk: Option<Disk>,
    pub(crate) network: Network,
}

impl Trio {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| None)
    }

    pub(crate) fn start_with(disk: impl Fn(&Cluster) -> Option<Disk>) -> Self {
        step("a group of three");
        let network = Network::new(3);
        let mut nodes: Vec<Cluster> = (1..=3).map(|host| Cluster::prepare_on(&network, host)).collect();
        let disk = disk(&nodes[0]);
        nodes[0].run();
        nodes[0].wait_ready();
        for node in &nodes[1..] {
            node.kedge(&["join", &invitation(&nodes[0], &[]), "--timeout", "90"]).ok();
            node.write_kubeconfig();
        }
        let trio = Self { nodes, disk, network };
        trio.three_voters(0);
        trio
    }

    pub(crate) fn three_voters(&self, asked: usize) {
        eventually("three voters", || {
            let now = datastore(&self.nodes[asked])?;
            let voters = now["members"].as_array()?.iter().filter(|member| member["role"] == "voter").count();
            (voters == 3 && now["highAvailability"] == true).then_some(())
        });
    }

    /// Who leads, when all of `asked` say the same.
    pub(crate) fn leader(&self, asked: &[usize]) -> usize {
        eventually("a leader that all know", || {
            let mut said = asked.iter().map(|node| {
                let now = datastore(&self.nodes[*node])?;
                let leader =
                    now["members"].as_array()?.iter().find(|member| member["leader"] == true)?.clone();
                self.nodes.iter().position(|node| leader["name"] == node.node.as_str())
            });
            let first = said.next()??;
            said.all(|other| other == Some(first)).then_some(first)
        })
    }

    /// Grows with each election.
    pub(crate) fn elections(&self) -> u64 {
        eventually("a term", || datastore(&self.nodes[self.leader(&ALL)])?["term"].as_u64())
    }

    /// Whoever leads although it should not is killed, until another one does.
    pub(crate) fn first_leads(&mut self, wanted: bool) {
        for _ in 0..30 {
            let leader = self.leader(&ALL);
            if (leader == 0) == wanted {
                return;
            }
            self.nodes[leader].kill9();
            self.nodes[leader].run();
            self.answers(leader);
        }
        panic!("after 30 elections the first node still {}", if wanted { "follows" } else { "leads" });
    }

    pub(crate) fn servers(&self, asked: &[usize]) -> Vec<Server> {
        asked.iter().map(|node| Server::of(&self.nodes[*node])).collect()
    }

    /// Clients at all three.
    pub(crate) fn load(&self, name: &str) -> Load {
        Load::start(name, self.servers(&ALL), Amount::default())
    }

    /// The node answers a fresh read: it follows the leader, or leads.
    pub(crate) fn answers(&self, node: usize) {
        let server = Server::of(&self.nodes[node]);
        let path = "/api/v1/namespaces/default/configmaps?limit=1";
        // Closer than `eventually` looks: the next fault waits for it.
        let deadline = Instant::now() + kedge_tests::LIMIT;
        while !server.call("GET", path, "", Duration::from_secs(10)).is_ok_and(|(status, _)| status == 200) {
            assert!(
                Instant::now() < deadline,
                "node {} does not answer:\n{}",
                node + 1,
                self.nodes[node].log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Started again, Ready, and with everything that `names` lists in its own copy.
    pub(crate) fn back(&mut self, node: usize, names: &[String]) {
        self.nodes[node].run();
        self.nodes[node].wait_ready();
        self.holds(node, names);
    }

    pub(crate) fn holds(&self, node: usize, names: &[String]) {
        let proxy = self.nodes[node].proxy();
        eventually(&format!("node {} to have caught up", node + 1), || {
            // Version 0: from this node's own copy, without asking the leader.
            let answer = proxy.get("/api/v1/namespaces/default/configmaps?resourceVersion=0");
            if answer.status != 200 {
                return None;
            }
            let list = answer.json();
            let found: Vec<&str> = list["items"]
                .as_array()?
                .iter()
                .filter_map(|item| item["metadata"]["name"].as_str())
                .collect();
            names.iter().all(|name| found.contains(&name.as_str())).then_some(())
        });
    }
}

/// What `kedge join` takes, from `kedge add-node`.
pub(crate) fn invitation(node: &Cluster, arguments: &[&str]) -> String {
    let all = [&["add-node", "--format", "json"], arguments].concat();
    let invitation = node.kedge(&all).json();
    invitation["join"][0].as_str().expect("a join string").to_owned()
}

/// What the node's status says of the datastore, when the node answers.
pub(crate) fn datastore(node: &Cluster) -> Option<Value> {
    let out = node.kedge(&["status", "--format", "json"]);
    let status: Value = serde_json::from_str(&out.stdout).ok()?;
    status.get("datastore").cloned()
}

/// Pod names with their container ids, in order.
pub(crate) fn containers(node: &Cluster) -> Vec<String> {
    let path =
        "jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[0].containerID}{\"\\n\"}{end}";
    let mut lines: Vec<String> =
        node.kubectl(&["get", "pods", "-o", path]).ok().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
