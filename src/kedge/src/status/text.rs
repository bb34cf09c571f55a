//! A status in lines for people.

use super::{Datastore, REMOVED, State, Status};
use crate::output::{self, Hue};

impl Status {
    /// Lines for people.
    pub(crate) fn to_short(&self) -> String {
        let hue = match self.state {
            State::Ready => Hue::Good,
            State::Starting => Hue::Doubtful,
            State::Degraded | State::Stopped => Hue::Bad,
        };
        let state = output::paint(hue, self.state.as_str());
        let mut text = format!("kedge is {state} on node {} ({})\n", self.node, self.version);
        if self.was_removed() {
            text.push_str(REMOVED);
            text.push('\n');
        }
        if let Some(last) = &self.last_failure {
            text.push_str(&format!(
                "  ended: {}\n  error: {}\n",
                last.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
                last.error
            ));
            if let Some(remedy) = &last.remedy {
                text.push_str(&format!("  remedy: {remedy}\n"));
            }
        }
        if !self.addresses.is_empty() {
            text.push_str(&format!("addresses: {}\n", self.addresses.join(", ")));
        }
        match self.pod_network.as_str() {
            "" => {}
            "none" => text.push_str("pod network: none of Kedge's\n"),
            backend => text.push_str(&format!("pod network: {backend}\n")),
        }
        if !self.virtual_addresses.is_empty() {
            let list = self.virtual_addresses.join(", ");
            text.push_str(&format!("virtual address: {list} (on the leader)\n"));
        }
        if !self.datastore.role.is_empty() {
            text.push_str(&self.datastore.to_short());
        }
        let width = self.components.iter().map(|component| component.name.len()).max().unwrap_or(0);
        for component in &self.components {
            let (hue, state) = if component.ready { (Hue::Good, "ready") } else { (Hue::Bad, "not ready") };
            let state = output::paint(hue, state);
            text.push_str(&format!("  {:width$}  {state}\n", component.name));
            if let Some(error) = &component.last_error {
                text.push_str(&format!("  {:width$}  error: {error}\n", ""));
            }
            if let Some(remedy) = &component.remedy {
                text.push_str(&format!("  {:width$}  remedy: {remedy}\n", ""));
            }
        }
        if !self.addons.is_empty() {
            text.push_str("addons:\n");
        }
        let width = self.addons.iter().map(|addon| addon.name.len()).max().unwrap_or(0);
        for addon in &self.addons {
            let state = crate::addons::word(addon.state);
            text.push_str(&format!("  {:width$}  {state}\n", addon.name));
            for reason in &addon.reasons {
                text.push_str(&format!("  {:width$}  {reason}\n", ""));
            }
            if let Some(remedy) = &addon.remedy {
                text.push_str(&format!("  {:width$}  remedy: {remedy}\n", ""));
            }
        }
        for (what, problem) in &self.problems {
            text.push_str(&format!("problem: {what}: {problem}\n"));
        }
        for warning in &self.warnings {
            let name = output::paint(Hue::Doubtful, &warning.name);
            text.push_str(&format!("warning: {name}: {}\n  remedy: {}\n", warning.message, warning.remedy));
        }
        text
    }
}

impl Datastore {
    fn to_short(&self) -> String {
        let list = |role: &str| {
            let mut names: Vec<String> = self
                .members
                .iter()
                .filter(|member| member.role == role)
                .map(|member| {
                    let sick = if member.healthy == Some(false) { " (does not answer)" } else { "" };
                    format!("{}{sick}", member.name)
                })
                .collect();
            names.sort();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let leader = self.members.iter().find(|member| member.leader);
        let silent: Vec<&str> = self
            .members
            .iter()
            .filter(|member| member.role == "voter" && member.healthy == Some(false))
            .map(|member| member.name.as_str())
            .collect();
        let mut text = match (self.high_availability, silent.as_slice()) {
            (true, []) => "high-availability: yes\n".to_owned(),
            (true, [one]) => format!("high-availability: yes (degraded: {one} does not answer)\n"),
            (true, more) => format!("high-availability: yes (degraded: {} do not answer)\n", more.join(", ")),
            (false, _) => "high-availability: no\n".to_owned(),
        };
        text.push_str(&format!("  datastore voters: {}\n", list("voter")));
        text.push_str(&format!("  datastore standby: {}\n", list("standby")));
        for role in ["joining", "leaving"] {
            if self.members.iter().any(|member| member.role == role) {
                text.push_str(&format!("  datastore {role}: {}\n", list(role)));
            }
        }
        let leader = match (leader, self.has_leader) {
            (Some(leader), _) => leader.name.clone(),
            (None, true) => "this node".to_owned(),
            (None, false) => "none (nothing can be written)".to_owned(),
        };
        text.push_str(&format!("  leader: {leader}, revision {}\n", self.revision));
        if let Some(percent) = self.bytes.saturating_mul(100).checked_div(self.quota_bytes) {
            let (bytes, quota) = (crate::snapshot::size(self.bytes), crate::snapshot::size(self.quota_bytes));
            text.push_str(&format!("  objects: {bytes} of {quota} ({percent} %)\n"));
        }
        if let Some(last) = &self.last_snapshot {
            let time = last.time.strftime("%Y-%m-%dT%H:%M:%SZ");
            text.push_str(&format!("  last snapshot: {time}, {}\n", crate::snapshot::size(last.bytes)));
        }
        if let Some(waits) = &self.waits {
            text.push_str(&format!("  waits: {waits}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::status;
    use super::super::{Datastore, Member};

    #[test]
    fn names_the_failing_part_its_error_and_the_remedy() {
        let text = status().to_short();
        for part in [
            "dns  unhealthy",
            "0 of 1 pods",
            "degraded",
            "containerd  not ready",
            "error: exit status 1",
            "remedy: see the log",
            "problem: a.yaml: no kind",
            "warning: disk slow: a write takes 300 ms",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }

    #[test]
    fn a_voter_that_does_not_answer_degrades_high_availability() {
        let member = |name: &str, healthy| Member {
            name: name.into(),
            id: String::new(),
            address: String::new(),
            role: "voter".into(),
            leader: false,
            healthy: Some(healthy),
        };
        let mut store = Datastore { high_availability: true, ..Datastore::default() };
        store.members = vec![member("n2", true), member("n1", true)];
        assert!(store.to_short().contains("datastore voters: n1, n2\n"));
        assert!(store.to_short().starts_with("high-availability: yes\n"));
        store.members.push(member("n3", false));
        let text = store.to_short();
        assert!(text.starts_with("high-availability: yes (degraded: n3 does not answer)\n"), "{text}");
    }
}
