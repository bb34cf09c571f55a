use crate::registry::Resource; use serde_json::Value;
pub fn columns(_r:&Resource)->Vec<Value>{vec![]}
pub fn row(_r:&Resource,_o:&Value,_n:jiff::Timestamp)->Vec<Value>{vec![]}
