//! Three control-plane nodes of one cluster, each on a machine of its own, and what is asked of any node: what
//! tests and figures of a group begin with.

use std::time::{Duration, Instant};

use crate::{Amount, Cluster, Disk, Load, Network, Server, eventually, step};
use serde_json::Value;

/// The places of the nodes in [`Trio::nodes`].
pub const ALL: [usize; 3] = [0, 1, 2];

/// Three control-plane nodes that vote. The nodes go before their network.
pub struct Trio {
    pub nodes: Vec<Cluster>,
    /// The disk of the first node's store, when it has one of its own.
    pub disk: Option<Disk>,
    pub network: Network,
}

impl Trio {
    /// Nodes whose stores lie in their own folders.
    ///
    /// # Panics
    /// Like all of these, when a node does not do what is waited for.
    pub fn start() -> Self {
        Self::start_with(|_| None)
    }

    /// The same; `disk` may give the first node's store a disk of its own.
    pub fn start_with(disk: impl Fn(&Cluster) -> Option<Disk>) -> Self {
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

    /// Waits until the asked node tells of three voters.
    pub fn three_voters(&self, asked: usize) {
        eventually("three voters", || {
            let now = datastore(&self.nodes[asked])?;
            let voters = now["members"].as_array()?.iter().filter(|member| member["role"] == "voter").count();
            (voters == 3 && now["highAvailability"] == true).then_some(())
        });
    }

    /// Who leads, when all of `asked` say the same.
    pub fn leader(&self, asked: &[usize]) -> usize {
        eventually("a leader that all know", || {
            let mut said = asked.iter().map(|node| {
                let leader = leader_of(&self.nodes[*node])?;
                self.nodes.iter().position(|node| leader == node.node)
            });
            let first = said.next()??;
            said.all(|other| other == Some(first)).then_some(first)
        })
    }

    /// Kills whoever leads, again and again, under a load on all three. How long it took each time until the
    /// next write was acknowledged, the shortest first.
    pub fn leader_killed(&mut self, load: &Load, rounds: usize) -> Vec<Duration> {
        let mut took: Vec<Duration> = (0..rounds)
            .map(|_| {
                let leader = self.leader(&ALL);
                let began = Instant::now();
                self.nodes[leader].kill9();
                let took = load.acknowledged_after(began);
                self.nodes[leader].run();
                self.answers(leader);
                took
            })
            .collect();
        took.sort_unstable();
        took
    }

    /// Grows with each election.
    pub fn elections(&self) -> u64 {
        eventually("a term", || datastore(&self.nodes[self.leader(&ALL)])?["term"].as_u64())
    }

    /// Whoever leads although it should not is killed, until another one does.
    pub fn first_leads(&mut self, wanted: bool) {
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

    /// The API of some nodes.
    pub fn servers(&self, asked: &[usize]) -> Vec<Server> {
        asked.iter().map(|node| Server::of(&self.nodes[*node])).collect()
    }

    /// Clients at all three.
    pub fn load(&self, name: &str) -> Load {
        Load::start(name, self.servers(&ALL), Amount::default())
    }

    /// The node answers a fresh read: it follows the leader, or leads.
    pub fn answers(&self, node: usize) {
        let server = Server::of(&self.nodes[node]);
        let path = "/api/v1/namespaces/default/configmaps?limit=1";
        // Closer than `eventually` looks: the next fault waits for it.
        let deadline = Instant::now() + crate::LIMIT;
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
    pub fn back(&mut self, node: usize, names: &[String]) {
        self.nodes[node].run();
        self.nodes[node].wait_ready();
        self.holds(node, names);
    }

    /// Waits until the node's own copy has everything that `names` lists.
    pub fn holds(&self, node: usize, names: &[String]) {
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
pub fn invitation(node: &Cluster, arguments: &[&str]) -> String {
    let all = [&["add-node", "--format", "json"], arguments].concat();
    let invitation = node.kedge(&all).json();
    invitation["join"][0].as_str().expect("a join string").to_owned()
}

/// What the node's status says of the datastore, when the node answers.
pub fn datastore(node: &Cluster) -> Option<Value> {
    let out = node.kedge(&["status", "--format", "json"]);
    let status: Value = serde_json::from_str(&out.stdout).ok()?;
    status.get("datastore").cloned()
}

/// Who leads, as far as the node knows.
pub fn leader_of(node: &Cluster) -> Option<String> {
    let now = datastore(node)?;
    let leader = now["members"].as_array()?.iter().find(|member| member["leader"] == true)?;
    leader["name"].as_str().map(str::to_owned)
}

/// Pod names with their container ids, in order.
pub fn containers(node: &Cluster) -> Vec<String> {
    let path =
        "jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[0].containerID}{\"\\n\"}{end}";
    let mut lines: Vec<String> =
        node.kubectl(&["get", "pods", "-o", path]).ok().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
