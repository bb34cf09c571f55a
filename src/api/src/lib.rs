//! The object model of the API: what resources there are, how their bodies are
//! decoded, defaulted, validated, patched, applied and printed. Everything works
//! on `serde_json::Value`; there is no I/O, no clock but `object::now_rfc3339`,
//! and nothing asynchronous in this crate.

pub mod cel;
pub mod crd;
pub mod decode;
pub mod field;
pub mod limits;
pub mod managed;
pub mod names;
pub mod object;
mod packed;
pub mod patch;
pub mod pod_security;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod registry;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod table;
