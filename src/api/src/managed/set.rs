//! A set of field paths, kept as a trie whose keys are path elements in the form
//! that `fieldsV1` writes them: `f:name`, `k:{"name":"a"}`, `v:"x"`, `i:0`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Sets nested deeper than this are refused.
const MAX_DEPTH: usize = 200;

/// A node of the trie: whether the path to it is a member, and what is below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    pub member: bool,
    pub children: BTreeMap<Box<str>, FieldSet>,
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// The node below, made if missing.
    pub fn child(&mut self, element: &str) -> &mut FieldSet {
        if !self.children.contains_key(element) {
            self.children.insert(element.into(), FieldSet::default());
        }
        match self.children.get_mut(element) {
            Some(c) => c,
            None => unreachable!("was just inserted"),
        }
    }

    /// Drops nodes that lead nowhere.
    fn prune(&mut self) {
        self.children.retain(|_, c| !c.is_empty());
    }

    /// Whether all members of `other` are members.
    pub fn contains(&self, other: &FieldSet) -> bool {
        (self.member || !other.member)
            && other.children.iter().all(|(e, theirs)| match self.children.get(e) {
                Some(mine) => mine.contains(theirs),
                None => theirs.is_empty(),
            })
    }

    /// Whether any member of `other` is a member.
    pub fn intersects(&self, other: &FieldSet) -> bool {
        (self.member && other.member)
            || other
                .children
                .iter()
                .any(|(e, theirs)| self.children.get(e).is_some_and(|mine| mine.intersects(theirs)))
    }

    pub fn union(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (e, c) in &other.children {
            match self.children.get_mut(e) {
                Some(mine) => mine.union(c),
                None => drop(self.children.insert(e.clone(), c.clone())),
            }
        }
    }

    /// Removes the members of `other`, not what is below them.
    pub fn difference(&mut self, other: &FieldSet) {
        if other.member {
            self.member = false;
        }
        for (e, c) in &other.children {
            if let Some(mine) = self.children.get_mut(e) {
                mine.difference(c);
            }
        }
        self.prune();
    }

    /// Removes the members of `other` and all that is below them.
    pub fn recursive_difference(&mut self, other: &FieldSet) {
        for (e, c) in &other.children {
            if c.member {
                self.children.remove(e);
            } else if let Some(mine) = self.children.get_mut(e) {
                mine.recursive_difference(c);
            }
        }
        self.prune();
    }

    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet { member: self.member && other.member, ..Default::default() };
        for (e, c) in &self.children {
            if let Some(o) = other.children.get(e) {
                let both = c.intersection(o);
                if !both.is_empty() {
                    out.children.insert(e.clone(), both);
                }
            }
        }
        out
    }

    /// All members as paths in upstream's notation: `.spec.replicas`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(&mut String::new(), &mut out);
        out
    }

    fn collect(&self, path: &mut String, out: &mut Vec<String>) {
        if self.member {
            out.push(path.clone());
        }
        for (e, c) in &self.children {
            let len = path.len();
            push_element(path, e);
            c.collect(path, out);
            path.truncate(len);
        }
    }

    /// As `fieldsV1` writes it.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (e, c) in &self.children {
            map.insert(e.to_string(), c.to_value());
        }
        Value::Object(map)
    }

    /// From `fieldsV1`.
    pub fn from_value(v: &Value) -> Option<FieldSet> {
        let map = v.as_object()?;
        let mut root = FieldSet::default();
        for (k, child) in map {
            if k == "." {
                continue;
            }
            root.children.insert(element(k)?, Self::read(child, 0)?);
        }
        Some(root)
    }

    fn read(v: &Value, depth: usize) -> Option<FieldSet> {
        let map = v.as_object().filter(|_| depth < MAX_DEPTH)?;
        let mut out = FieldSet { member: map.is_empty() || map.contains_key("."), ..Default::default() };
        for (k, child) in map.iter().filter(|(k, _)| *k != ".") {
            out.children.insert(element(k)?, Self::read(child, depth + 1)?);
        }
        Some(out)
    }
}

/// A checked path element; keys and values in canonical JSON.
fn element(text: &str) -> Option<Box<str>> {
    let (kind, rest) = text.split_once(':')?;
    match kind {
        "f" => Some(text.into()),
        "i" => rest.parse::<i64>().ok().map(|_| text.into()),
        "k" | "v" => {
            let v: Value = serde_json::from_str(rest).ok()?;
            Some(format!("{kind}:{v}").into())
        }
        _ => None,
    }
}

fn push_element(path: &mut String, e: &str) {
    match e.split_once(':') {
        Some(("f", name)) => {
            path.push('.');
            path.push_str(name);
        }
        Some(("k", key)) => {
            let Ok(Value::Object(map)) = serde_json::from_str::<Value>(key) else { return };
            let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k}={v}")).collect();
            path.push_str(&format!("[{}]", parts.join(",")));
        }
        Some(("v", value)) => path.push_str(&format!("[={value}]")),
        Some((_, index)) => path.push_str(&format!("[{index}]")),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn round_trip_and_algebra() {
        let v = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"x\"}": {".": {}, "f:image": {}}}, "f:l": {"v:\"z\"": {}}}});
        let s = FieldSet::from_value(&v).unwrap();
        assert_eq!(s.to_value(), v);
        assert_eq!(
            s.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.a",
                r#".spec.containers[name="x"]"#,
                r#".spec.containers[name="x"].image"#,
                r#".spec.l[="z"]"#
            ]
        );
        let mut d = s.clone();
        d.difference(&s);
        assert!(d.is_empty());
        assert_eq!(s.intersection(&s), s);
        let mut u = s.clone();
        u.union(&s);
        assert_eq!(u, s);
        let part = FieldSet::from_value(&json!({"f:spec": {"f:l": {"v:\"z\"": {}}}})).unwrap();
        let other = FieldSet::from_value(&json!({"f:spec": {"f:l": {"v:\"y\"": {}}}})).unwrap();
        assert!(s.contains(&part) && s.intersects(&part) && part.intersects(&s));
        assert!(!part.contains(&s) && !s.contains(&other) && !s.intersects(&other));
        // A path that only leads to a member is none.
        let holder = FieldSet::from_value(&json!({"f:spec": {}})).unwrap();
        assert!(!s.contains(&holder) && !s.intersects(&holder) && s.contains(&FieldSet::default()));
        for bad in [json!({"x": {}}), json!({"k:{": {}}), json!({"f:a": 1}), json!([])] {
            assert!(FieldSet::from_value(&bad).is_none(), "{bad}");
        }
    }
}
