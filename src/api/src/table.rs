use crate::registry::Resource; use serde_json::Value;
pub fn columns(_r:&Resource)->Vec<Value>{vec![serde_json::json!({"name":"Name","type":"string","format":"name","description":"","priority":0})]}
pub fn row(_r:&Resource,o:&Value,_n:jiff::Timestamp)->Vec<Value>{vec![o["metadata"]["name"].clone()]}
