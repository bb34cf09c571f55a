use crate::{schema::SchemaRef,status::Status}; use serde_json::Value;
pub struct Manager{pub name:String,pub api_version:String,pub time:String,pub subresource:String}
pub fn track_update(_s:&SchemaRef,_l:Option<&Value>,_n:&mut Value,_m:&Manager){}
pub fn apply(_s:&SchemaRef,_l:Option<&Value>,_a:&Value,_m:&Manager,_f:bool)->Result<Value,Status>{Err(Status::internal("x"))}
