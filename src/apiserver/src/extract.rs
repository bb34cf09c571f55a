//! Takes labels, selectable fields and the uid out of an object's JSON without building the object.

use std::fmt;

use kedge_api::registry::{Absent, Selectable};
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use uuid::Uuid;

/// What selectors look at, and who holds a token bound to the object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extracted {
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    /// In the order of [`Paths::names`].
    pub(crate) fields: Box<[Box<str>]>,
    /// Nil if there is none.
    pub(crate) uid: Uuid,
}

impl Extracted {
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| &**name == key).map(|(_, value)| &**value)
    }
}

/// The fields of one resource that a field selector may name, as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    names: Vec<Box<str>>,
    /// Of the fields by their names' order, then of the places that stand in for them.
    slots: usize,
    /// What a field is when it is empty.
    absent: Vec<(usize, Instead)>,
    root: Node,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Instead {
    Text(&'static str),
    Slot(usize),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    children: Vec<(Box<str>, Node)>,
    slots: Vec<usize>,
}

impl Paths {
    pub(crate) fn new(fields: &[Selectable]) -> Self {
        let mut paths = Self { slots: fields.len(), ..Self::default() };
        for (index, field) in fields.iter().enumerate() {
            paths.names.push(field.name.as_ref().into());
            paths.place(&field.path, index);
            match field.absent {
                Absent::Text("") => {}
                Absent::Text(text) => paths.absent.push((index, Instead::Text(text))),
                Absent::Path(path) => {
                    paths.place(path, paths.slots);
                    paths.absent.push((index, Instead::Slot(paths.slots)));
                    paths.slots += 1;
                }
            }
        }
        paths
    }

    /// Two fields may have one place.
    fn place(&mut self, path: &str, slot: usize) {
        let mut node = &mut self.root;
        for part in path.split('/').skip(1) {
            let index = node.children.iter().position(|(child, _)| &**child == part).unwrap_or_else(|| {
                node.children.push((part.into(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[index].1;
        }
        node.slots.push(slot);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Where a field's value is found in [`Extracted::fields`].
    pub(crate) fn index(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| &**known == name)
    }

    /// Bytes that are not JSON give nothing: they cannot have come through the API.
    pub(crate) fn extract(&self, bytes: &[u8]) -> Extracted {
        let mut labels = Vec::new();
        let mut fields = vec![Box::<str>::default(); self.slots];
        let mut uid = Uuid::nil();
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let walk = Walk {
            node: Some(&self.root),
            place: Place::Root,
            labels: &mut labels,
            fields: &mut fields,
            uid: &mut uid,
        };
        if let Err(error) = walk.deserialize(&mut deserializer) {
            tracing::debug!(%error, "stored object is not JSON");
        }
        for (field, instead) in &self.absent {
            if fields[*field].is_empty() {
                fields[*field] = match instead {
                    Instead::Text(text) => (*text).into(),
                    Instead::Slot(slot) => fields[*slot].clone(),
                };
            }
        }
        fields.truncate(self.names.len());
        Extracted { labels: labels.into(), fields: fields.into(), uid }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    Metadata,
    Labels,
    Uid,
    Elsewhere,
}

struct Walk<'a> {
    node: Option<&'a Node>,
    place: Place,
    labels: &'a mut Vec<(Box<str>, Box<str>)>,
    fields: &'a mut [Box<str>],
    uid: &'a mut Uuid,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Walk<'_> {
    fn leaf(self, text: impl Fn() -> Box<str>) {
        for slot in self.node.into_iter().flat_map(|node| &node.slots) {
            self.fields[*slot] = text();
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            if self.place == Place::Labels {
                let value: std::borrow::Cow<'_, str> = map.next_value()?;
                self.labels.push((key.into(), value.into()));
                continue;
            }
            let node = self
                .node
                .and_then(|node| node.children.iter().find(|(name, _)| **name == *key))
                .map(|(_, n)| n);
            let place = match (self.place, &*key) {
                (Place::Root, "metadata") => Place::Metadata,
                (Place::Metadata, "labels") => Place::Labels,
                (Place::Metadata, "uid") => Place::Uid,
                _ => Place::Elsewhere,
            };
            if node.is_none() && place == Place::Elsewhere {
                map.next_value::<IgnoredAny>()?;
            } else {
                let (labels, fields, uid) = (&mut *self.labels, &mut *self.fields, &mut *self.uid);
                map.next_value_seed(Walk { node, place, labels, fields, uid })?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        if self.place == Place::Uid {
            *self.uid = value.parse().unwrap_or_default();
        }
        self.leaf(|| value.into());
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.leaf(|| value.to_string().into());
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.leaf(|| value.to_string().into());
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.leaf(|| value.to_string().into());
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.leaf(|| value.to_string().into());
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_labels_and_fields_and_nothing_else() {
        let field = |name: &'static str, absent| Selectable {
            name: name.into(),
            path: format!("/{}", name.replace('.', "/")).into(),
            absent,
        };
        let paths = Paths::new(&[
            field("spec.nodeName", Absent::Text("")),
            field("status.phase", Absent::Text("")),
            field("spec.unschedulable", Absent::Text("false")),
            field("spec.hostNetwork", Absent::Text("false")),
            field("spec.replicas", Absent::Text("0")),
            field("spec.nobody", Absent::Path("/spec/nodeName")),
            Selectable { name: "also".into(), ..field("spec.nodeName", Absent::Text("")) },
        ]);
        let bytes = br#"{"metadata":{"labels":{"app":"web","a\"b":"c"},"name":"x",
            "uid":"0b1f4d3e-8c6a-4f0e-9d2b-7a5c3e1f2d4b"},
            "spec":{"uid":"no","nodeName":"n1","unschedulable":true,"replicas":3,"labels":{"no":"no"},"list":[{"nodeName":"n2"}]}}"#;
        let extracted = paths.extract(bytes);
        assert_eq!(extracted.label("app"), Some("web"));
        assert_eq!(extracted.label("a\"b"), Some("c"));
        assert_eq!(extracted.labels.len(), 2);
        assert_eq!(extracted.uid.to_string(), "0b1f4d3e-8c6a-4f0e-9d2b-7a5c3e1f2d4b");
        let field = |name| &*extracted.fields[paths.index(name).expect("known")];
        assert_eq!(field("spec.nodeName"), "n1");
        assert_eq!(field("spec.unschedulable"), "true");
        assert_eq!(field("spec.replicas"), "3");
        assert_eq!(field("status.phase"), "");
        assert_eq!(field("spec.hostNetwork"), "false");
        assert_eq!(field("spec.nobody"), "n1");
        assert_eq!(field("also"), "n1");
        assert_eq!(extracted.fields.len(), 7);
    }

    #[test]
    fn hostile_bytes_give_nothing() {
        for bytes in [
            &b""[..],
            b"{",
            b"[1,2]",
            b"\"x\"",
            b"{\"metadata\":{\"labels\":{\"a\":1}}}",
            b"{\"metadata\":null}",
        ] {
            assert!(Paths::new(&[]).extract(bytes).labels.is_empty());
        }
    }
}
