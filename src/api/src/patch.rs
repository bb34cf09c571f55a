use crate::{schema::SchemaRef,status::Status}; use serde_json::Value;
pub fn json_patch(_o:&Value,_p:&[u8])->Result<Value,Status>{Err(Status::internal("x"))}
pub fn merge_patch(o:&Value,_p:&Value)->Value{o.clone()}
pub fn strategic_merge_patch(_s:&SchemaRef,_o:&Value,_p:&Value)->Result<Value,Status>{Err(Status::internal("x"))}
