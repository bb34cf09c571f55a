//! Field numbers of every message, parsed once at first use from `data/protobuf.txt`.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::schema::SchemaSet;

const TEXT: &str = include_str!("../../data/protobuf.txt");

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    String,
    Bytes,
    Integer,
    Bool,
    Double,
    Message(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    number: u32,
    /// The JSON field; `*` when the message's fields are inline.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) is_repeated: bool,
    pub(super) is_map: bool,
}

#[derive(Debug, Default)]
pub(super) struct Message(Vec<Known>);

impl Message {
    pub(super) fn field(&self, number: u32) -> Option<&Known> {
        self.0.iter().find(|known| known.number == number)
    }
}

/// All messages by their short names.
pub(super) struct Table(HashMap<&'static str, Message>);

impl Table {
    pub(super) fn get() -> &'static Self {
        static TABLE: LazyLock<Table> = LazyLock::new(Table::parse);
        &TABLE
    }

    pub(super) fn message(&self, name: &str) -> Option<&Message> {
        self.0.get(name)
    }

    /// The message of a built-in kind.
    pub(super) fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Message> {
        let schema = SchemaSet::builtin().by_gvk(group, version, kind);
        let name = schema.map(|schema| schema.node().name.to_string());
        // Options of writes are of every group; some kinds travel in bodies only.
        let name = name.unwrap_or_else(|| format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
        self.message(&short(&name))
    }

    fn parse() -> Self {
        let mut messages: HashMap<&'static str, Message> = HashMap::new();
        let mut current = "";
        for line in TEXT.lines() {
            if let Some(name) = line.strip_prefix("T ") {
                current = name;
                messages.insert(name, Message::default());
            } else if let Some(known) = line.strip_prefix(' ').and_then(field)
                && let Some(message) = messages.get_mut(current)
            {
                message.0.push(known);
            }
        }
        Self(messages)
    }
}

fn field(line: &'static str) -> Option<Known> {
    let mut parts = line.split(' ');
    let (number, name, kind) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let (is_repeated, is_map) = (kind.starts_with('['), kind.starts_with('{'));
    let kind = match kind.trim_start_matches(['[', '{']) {
        "s" => Kind::String,
        "y" => Kind::Bytes,
        "i" => Kind::Integer,
        "b" => Kind::Bool,
        "d" | "f" => Kind::Double,
        message => Kind::Message(message.strip_prefix('@')?),
    };
    Some(Known { number, name, kind, is_repeated, is_map })
}

/// The prefixes of `data/types.txt`.
fn short(name: &str) -> String {
    for (long, short) in [
        ("io.k8s.apimachinery.pkg.apis.meta.v1.", "+"),
        ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.", "~"),
        ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.", "^"),
        ("io.k8s.api.", "."),
    ] {
        if let Some(rest) = name.strip_prefix(long) {
            return format!("{short}{rest}");
        }
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood_and_every_message_is_there() {
        let lines = TEXT.lines().filter(|line| line.starts_with(' ')).count();
        let table = Table::get();
        assert_eq!(table.0.values().map(|message| message.0.len()).sum::<usize>(), lines);
        for message in table.0.values() {
            for known in &message.0 {
                if let Kind::Message(name) = known.kind {
                    assert!(table.message(name).is_some(), "{name} is missing");
                }
            }
        }
        for (group, version, kind) in [
            ("", "v1", "Pod"),
            ("apps", "v1", "Deployment"),
            ("", "v1", "DeleteOptions"),
            ("policy", "v1", "Eviction"),
            ("authentication.k8s.io", "v1", "TokenRequest"),
        ] {
            assert!(table.kind(group, version, kind).is_some(), "{kind}");
        }
    }
}
