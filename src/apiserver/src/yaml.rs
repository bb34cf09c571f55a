//! YAML bodies as JSON values, with upstream's words for keys that come twice (sigs.k8s.io/yaml): the last one
//! counts, and strict clients are told.

use std::fmt;

use kedge_api::status::Status;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Spanned, options, with_deserializer_from_str_with_options};

/// No more keys that come twice are told.
const MOST: usize = 100;

/// The value, and the keys that are there twice.
pub(crate) fn parse(body: &[u8]) -> Result<(Value, Twice), Status> {
    let failed = |error: String| Status::bad_request(format!("error decoding YAML: {error}"));
    let text = std::str::from_utf8(body).map_err(|error| failed(error.to_string()))?;
    let options = options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    let mut twice = Twice::default();
    let value = with_deserializer_from_str_with_options(text, options, |deserializer| {
        Node { twice: &mut twice }.deserialize(deserializer)
    });
    Ok((value.map_err(|error| failed(error.to_string()))?, twice))
}

/// `line 9: key "foo" already set in map`
#[derive(Debug, Default)]
pub(crate) struct Twice(Vec<String>);

impl Twice {
    /// What strict decoding says, if anything.
    pub(crate) fn told(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| format!("yaml: unmarshal errors:\n  {}", self.0.join("\n  ")))
    }
}

struct Node<'a> {
    twice: &'a mut Twice,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value that JSON has too")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that JSON does not have"))
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = seq.next_element_seed(Node { twice: &mut *self.twice })? {
            all.push(value);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let value = access.next_value_seed(Node { twice: &mut *self.twice })?;
            if self.twice.0.len() < MOST && map.contains_key(&key.value) {
                self.twice.0.push(format!(
                    "line {}: key {:?} already set in map",
                    key.referenced.line(),
                    key.value
                ));
            }
            map.insert(key.value, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_of_two_counts_and_is_told() {
        let text =
            "\na: 1\nspec:\n  foo: one\n  bar: [1, 2.5, true, null, ~]\n  foo: two\n1: one\na: {b: \"2\"}\n";
        let (value, twice) = parse(text.as_bytes()).unwrap();
        assert_eq!(
            value,
            json!({ "a": { "b": "2" }, "1": "one", "spec": { "foo": "two", "bar": [1, 2.5, true, null, null] } })
        );
        let told = "yaml: unmarshal errors:\n  line 6: key \"foo\" already set in map\n  line 8: key \"a\" already set in map";
        assert_eq!(twice.told().unwrap(), told);
        assert_eq!(parse(b"{\"a\": 1, \"b\": [{}]}").unwrap().1.told(), None);
        let (value, twice) = parse("a: 1\n".repeat(1000).as_bytes()).unwrap();
        assert_eq!((value, twice.0.len()), (json!({ "a": 1 }), MOST));
    }

    #[test]
    fn reads_what_the_plain_way_reads() {
        for text in [
            "a: &x {b: 1}\nc: *x\n",
            "a: |\n  text\n  more\nb: >-\n  one\n  two\n",
            "on: yes\noff: 0x1f\noctal: 0o17\nn: 1e3\nbig: 18446744073709551615\nneg: -5\n",
            "date: 2026-01-02\ns: '1'\nt: \"\\u00e9\"\n? k\n: v\n",
            "[]",
            "",
            "text",
            "a: !!str 1\nb: .5\n",
        ] {
            let plain: Result<Value, _> = serde_saphyr::from_str(text);
            match plain {
                Ok(plain) => assert_eq!(parse(text.as_bytes()).unwrap().0, plain, "{text}"),
                Err(_) => assert!(parse(text.as_bytes()).is_err(), "{text}"),
            }
        }
        assert!(parse(b"a: [").unwrap_err().to_string().starts_with("error decoding YAML: "));
        assert!(parse(b"a: 1\n---\nb: 2\n").is_err());
    }
}
