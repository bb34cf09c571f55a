use crate::core::Shared; use crate::Error;
pub(crate) async fn listen(_c:&Shared)->Result<(),Error>{Ok(())}
